#!/usr/bin/env bash
# One-pass compression of a speech foundation model on spoken digits, human speech (FSDD); see --help.
set -euo pipefail
[[ -o privileged ]] || exec bash -p "$0" "$@" # without functions and shell options that the caller has exported
unset CDPATH # with which cd may go elsewhere, and prints
called_from=${PWD}
cd "$(dirname "${BASH_SOURCE[0]}")"

train_set=train
valid_set=dev
test_sets="dev test"
upstream=mini
data_paths="fsdd"

. local/pinch.sh
