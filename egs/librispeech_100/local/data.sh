#!/usr/bin/env bash
# LibriSpeech-100h: stage 0 fetches it, stage 1 writes its data directories (the contract: egs/TEMPLATE/local/data.sh).
# Or another corpus that is there already, by one of the ways in that all recipes share.
set -euo pipefail

help_message="  --librispeech DIR        a corpus in LibriSpeech's layout that is there already       [downloaded]"
options="stage stop_stage data nj python train_set valid_set test_sets librispeech"
stage=0
stop_stage=1
data=data
nj=4
python=python3
train_set=
valid_set=
test_sets=
librispeech=

. ./path.sh
. utils/step.sh
. utils/ways.sh
read_ways "$@"
help_message+=$'\n'${ways_help}
. utils/parse_options.sh
if [ -n "$(given_ways)" ]; then
    if within 1; then
        prepare_way
    fi
    exit
fi
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
