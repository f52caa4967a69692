#!/usr/bin/env bash
# The Free Spoken Digit Dataset: English digits, 8 kHz. Stage 0 fetches it (release 1.0.9, 12 MB); stage 1 makes a table of
# its files' names, and the rest is that of any table (docs/data.md).
set -euo pipefail

help_message="  --fsdd DIR               the folder with its recordings, where it is there already    [downloaded]"
options="stage stop_stage data nj python train_set valid_set test_sets fsdd"
stage=0
stop_stage=1
data=data
# shellcheck disable=SC2034  # prepare_way reads these
nj=4
python=python3
train_set=train
valid_set=dev
test_sets="test"
fsdd=

. ./path.sh
. utils/step.sh
. utils/ways.sh
. utils/parse_options.sh
corpus=${fsdd:-downloads/fsdd/recordings}
release=free-spoken-digit-dataset-1.0.9

if within 0 && [ -z "${fsdd}" ]; then
    # The checksum is the one that TensorFlow Datasets states (spoken_digit).
    step downloads/fsdd/corpus.done "corpus FSDD" -- \
        "${python}" -m espnet_pinch.bin.fetch_archive \
        --url https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.9.tar.gz \
        --sha256 8bc44cde129d505cbbb6b365c09f80c663f2aa77578afc634e6141a2f87100c0 \
        --archive "downloads/fsdd/${release}.tar.gz" --inside "${release}/recordings" --out downloads/fsdd/recordings \
        --by_hand "give the folder of its recordings with --fsdd"
fi

if within 1; then
    [ -d "${corpus}" ] || die "${corpus} is missing: run stage 0 first (./run.sh --stage 0)"
    step "${data}/table.done" "table of ${corpus}" "=$(listing "${corpus}" '*.wav')" -- \
        "${python}" local/make_table.py --recordings "${corpus}" --out "${data}/table.tsv"
    read_ways --python "${python}"
    # shellcheck disable=SC2034
    table=${data}/table.tsv
    prepare_way
fi
