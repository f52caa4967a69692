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
# As it is, this script takes a corpus that is there already, by one of the ways in that all recipes share: --help lists
# them. They resample, mix and cut what is not so already. Replace the parts below with what your corpus needs; a corpus
# that can be put into a table (see docs/data.md) needs no more than that.
set -euo pipefail

help_message=
options="stage stop_stage data nj python train_set valid_set test_sets"
stage=0
stop_stage=1
data=data
nj=4
python=python3
train_set=train
valid_set=dev
test_sets="dev test"

. ./path.sh
. utils/step.sh
. utils/ways.sh
read_ways "$@"
help_message+=${ways_help}
. utils/parse_options.sh
[ -n "$(given_ways)" ] || die "give a corpus: --${ways// /, --} (see --help), or write local/data.sh for your corpus"

if within 0; then
    : # Download into downloads/ here. "step" skips what was done before: see egs/librispeech_100/local/data.sh.
fi

if within 1; then
    prepare_way
fi
