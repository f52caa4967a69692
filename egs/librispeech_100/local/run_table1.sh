#!/usr/bin/env bash
# Table 1 and Figure 2 of the paper for one upstream: run, or go on with, all its methods and ratios, then the tables.
# From egs/librispeech_100: local/run_table1.sh hubert_large --ngpu 1 [options of run.sh]
set -euo pipefail
. utils/own_help.sh

upstream=${1:-}
case "${upstream}" in
    wav2vec2_base) methods="pinch ump mixed_sparsity nas_cp" ratios="0.5 0.6 0.65 0.7 0.75 0.8 0.85 0.9" ;;
    hubert_large) methods="pinch ump mixed_sparsity nas_cp" ratios="0.1 0.2 0.3 0.5 0.6 0.65 0.7 0.75 0.8 0.85 0.9" ;;
    *)
        echo "error: the first argument must be an upstream of Table 1: wav2vec2_base or hubert_large" >&2
        exit 2
        ;;
esac
shift
local/sweep.sh --upstream "${upstream}" --methods "${methods}" --ratios "${ratios}" --report true -- "$@"
