#!/usr/bin/env bash
# The paper's own rows of Table 2: run, or go on with, them, then the tables.
# From egs/librispeech_100: local/run_table2.sh --ngpu 1 [options of run.sh]
set -euo pipefail
. utils/own_help.sh

for row in "wav2vec2_base 0.75 0.85" "wavlm_base_plus 0.85" "hubert_large 0.9"; do
    local/sweep.sh --upstream "${row%% *}" --methods pinch --ratios "${row#* }" --report true -- "$@"
done
