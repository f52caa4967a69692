#!/usr/bin/env bash
# LibriSpeech-100h: stage 0 fetches it, stage 1 writes its data directories (the contract: egs/TEMPLATE/local/data.sh).
set -euo pipefail

help_message="  --librispeech DIR        a corpus in LibriSpeech's layout that is there already       [downloaded]"
options="stage stop_stage data nj python librispeech"
stage=0
stop_stage=1
data=data
# shellcheck disable=SC2034  # audio is opened afterwards
nj=4
python=python3
librispeech=

. ./path.sh
. utils/step.sh
. utils/parse_options.sh
corpus=${librispeech:-downloads/librispeech_100}

if within 0 && [ -z "${librispeech}" ]; then
    step "${corpus}/corpus.done" "corpus LibriSpeech-100h" -- \
        "${python}" -m espnet_pinch.bin.fetch_librispeech --out "${corpus}"
fi

if within 1; then
    [ -d "${corpus}" ] || die "${corpus} is missing: run stage 0 first (./run.sh --stage 0)"
    step "${data}/prepare.done" "data directories ${data}" "=$(listing "${corpus}" '*.flac' '*.trans.txt')" -- \
        "${python}" -m espnet_pinch.bin.prepare_librispeech --corpus "${corpus}" --out "${data}"
fi
