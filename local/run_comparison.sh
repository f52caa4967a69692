#!/usr/bin/env bash
# All methods under one budget on a small corpus and two CPU cores: the comparison in RESULTS.md.
# From a recipe's folder: local/run_comparison.sh [options of sweep.sh] [-- options of run.sh]
# The defaults: --upstream micro --ratios "0.5 0.65 0.75 0.85 0.9 0.95 0.98" --seeds 0 --jobs 2, the paper's four methods.
# e.g. in egs/librispeech_100: local/run_comparison.sh --seeds "0 1" -- --librispeech /data/digits
set -euo pipefail
. utils/own_help.sh

options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
done
export OMP_NUM_THREADS=1 # one run to a core: two threads to a run are slower, and much slower on a busy machine

# compare METHODS [OPTION...]: a sweep over methods
compare() {
    local methods=$1
    shift
    local/sweep.sh --upstream micro --methods "${methods}" --seeds 0 --jobs 2 \
        --ratios "0.5 0.65 0.75 0.85 0.9 0.95 0.98" "$@"
}

compare "pinch ump mixed_sparsity nas_cp" "${options[@]}" "$@"
# The paper's own setting beside ours: thresholds at the weights' learning rate, which go on moving once eta is 0.
compare pinch --report true "${options[@]}" \
    --asr_args "--pruning pinch.threshold_lr=null --pruning pinch.landing=paper" "$@"
