#!/usr/bin/env bash
# All methods under one budget on a small corpus and two CPU cores: the comparison in RESULTS.md.
# From egs/librispeech_100: local/run_comparison.sh [--ratios "X ..."] [--seeds "N ..."] [-- options of run.sh]
# e.g. local/run_comparison.sh --seeds "0 1" -- --librispeech /data/digits      (without: the mini corpus)
set -euo pipefail

options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
done
[ $# -gt 0 ] || set -- -- --corpus mini
export OMP_NUM_THREADS=1 # one run to a core: two threads to a run are slower, and much slower on a busy machine
local/sweep.sh --upstream mini --methods "pinch ump mixed_sparsity nas_cp" --seeds 0 --jobs 2 --report true \
    --ratios "0.5 0.65 0.75 0.85 0.9 0.95 0.98 0.99" "${options[@]}" "$@"
