#!/usr/bin/env bash
# A mini corpus in Hindi, in LibriSpeech's layout: espeak-ng speaks it in stage 0.
set -euo pipefail

help_message="  (no options of its own: the corpus is made here)"
options="stage stop_stage data nj python"
stage=0
stop_stage=1
python=python3
given=("$@")

. ./path.sh
. utils/step.sh
. utils/parse_options.sh

if within 0; then
    step downloads/mini_hindi/corpus.done "corpus mini_hindi" -- \
        "${python}" -m espnet_pinch.bin.make_mini_corpus --out downloads/mini_hindi --language hi
fi
exec bash -p ../librispeech_100/local/data.sh --librispeech downloads/mini_hindi "${given[@]}" # the rest is the same
