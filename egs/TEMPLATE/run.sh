#!/usr/bin/env bash
# One-pass compression of a speech foundation model on NAME; see --help.
set -euo pipefail
[[ -o privileged ]] || exec bash -p "$0" "$@" # without functions and shell options that the caller has exported
unset CDPATH # with which cd may go elsewhere, and prints
called_from=${PWD}
cd "$(dirname "${BASH_SOURCE[0]}")"

# The sets, as local/data.sh leaves them in data/. Reports count the sets whose names begin with "test" together.
train_set=train
valid_set=dev
test_sets="dev test"
upstream=wav2vec2_base # what to start from, where --upstream does not say: conf/wav2vec2_base.yaml
data_paths="ways"      # options of local/data.sh that name a file or a folder; "ways" are those of the ways in

. local/pinch.sh
