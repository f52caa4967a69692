#!/usr/bin/env bash
# The data of this recipe. run.sh calls it in the recipe's folder: with --stage 0 to fetch, with --stage 1 to prepare.
# Stage 0 may use the network. After stage 1, ${data} has a Kaldi data directory for each set that run.sh names:
#
#   ${data}/SET/wav.scp    UTTERANCE PATH          a sound file with one channel and 16,000 samples a second
#   ${data}/SET/text       UTTERANCE TRANSCRIPT    words with one space between them
#   ${data}/SET/utt2spk    UTTERANCE SPEAKER
#
# All three have the same utterances, in the order of LC_ALL=C sort. PATH is absolute or seen from the recipe's folder;
# it is no command. Afterwards run.sh checks all this, decodes every sound file, and writes spk2utt, utt2dur and
# utt2num_samples.
#
# This script takes directories of that kind from elsewhere. Replace the two parts below with what your corpus needs.
set -euo pipefail

help_message="  --kaldi DIR              Kaldi data directories that are there already: DIR/train, DIR/dev, DIR/test"
options="stage stop_stage data nj python kaldi"
stage=0
stop_stage=1
data=data
# shellcheck disable=SC2034  # jobs, for the programs that your corpus needs
nj=4
python=python3
kaldi=

. ./path.sh
. utils/step.sh
. utils/parse_options.sh
[ -n "${kaldi}" ] || die "give --kaldi DIR, or write local/data.sh for your corpus"

if within 0; then
    : # Download into downloads/ here. "step" skips what was done before: see egs/librispeech_100/local/data.sh.
fi

if within 1; then
    step "${data}/prepare.done" "data directories ${data}" \
        "=$(listing "${kaldi}" wav.scp text utt2spk segments) $(sounds "${kaldi}"/*/wav.scp)" -- \
        "${python}" -m espnet_pinch.bin.prepare_kaldi --kaldi "${kaldi}" --out "${data}"
fi
