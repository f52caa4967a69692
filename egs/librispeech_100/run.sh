#!/usr/bin/env bash
# One-pass compression of a speech foundation model on LibriSpeech-100h; see --help.
set -euo pipefail
[[ -o privileged ]] || exec bash -p "$0" "$@" # without functions and shell options that the caller has exported
unset CDPATH # with which cd may go elsewhere, and prints
called_from=${PWD}
cd "$(dirname "${BASH_SOURCE[0]}")"

train_set=train_clean_100
valid_set=dev # dev_clean and dev_other together
test_sets="dev_clean dev_other test_clean test_other"
upstream=wav2vec2_base
data_paths="librispeech ways"
way_sets="train dev test" # of a corpus by another way in: training, validation, test

. local/pinch.sh
