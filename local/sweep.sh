#!/usr/bin/env bash
# Run, or go on with, a sweep over methods, target sparsities and seeds; from a recipe's folder.
set -euo pipefail
[[ -o privileged ]] || exec bash -p "$0" "$@" # without functions and shell options that the caller has exported

help_message=$(cat <<'HELP'
Usage: local/sweep.sh [options] [-- options of run.sh]

  --upstream NAME          as of run.sh                                                [the recipe's own]
  --methods "NAMES"        as of run.sh's --method; dense is always run                [pinch]
  --ratios "X ..."         target sparsities                                           [0.65]
  --seeds "N ..."          of all but the dense baseline, which is trained once        [the YAML's]
  --asr_args "ARGS"        as of run.sh; a --pruning METHOD.x=y of one of several methods
                           goes to that one's runs alone                                [none]
  --jobs N                 runs at a time                                              [1]
  --report true            tables and figures of what has finished, at the end         [false]
  --python PROGRAM         as of run.sh                                                [python3]

Called again it skips what is finished. A method that reads a finished run of another one (mixed_sparsity: of pinch) is
run after it. A ratio over the most that a method can prune (nas_cp: 0.925) is left out. A run that fails does not stop
the others; the status is then 1.
HELP
)
options="upstream methods ratios seeds asr_args jobs report python"
upstream=
methods=pinch
ratios=0.65
seeds=yaml
asr_args=
jobs=1
report=false
python=python3

own=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    own+=("$1")
    shift
done
[ $# -eq 0 ] || shift
rest=("$@")
set -- "${own[@]}"
. ./path.sh
. utils/step.sh
. utils/parse_options.sh
declare -A most after # of every method: its largest target sparsity, the method whose runs it reads
while read -r method largest other; do
    most[${method}]=${largest}
    after[${method}]=${other}
done < <("${python}" -m espnet_pinch.bin.list_methods)
[ ${#most[@]} -gt 0 ] || die "${python} cannot list the methods; run make venv in the repository, or give --python"
first= # methods that read no run
second=
for method in ${methods}; do
    [ -n "${most[${method}]:-}" ] || die "--methods: unknown method '${method}'; there is: ${!most[*]}"
    if [ "${after[${method}]}" = - ]; then first+=" ${method}"; else second+=" ${method}"; fi
done
[[ ${report} =~ ^(true|false)$ ]] || die "--report must be true or false, not '${report}'"
[[ ${jobs} =~ ^[1-9][0-9]*$ ]] || die "--jobs must be a whole number over 0, not '${jobs}'"
logs=exp/sweep_${upstream:-own}
mkdir -p "${logs}"
failed=$(mktemp)
trap 'rm -f "${failed}"' EXIT

# recipe SEED ARGS OPTION...: run.sh with that seed and these more options of asr_train
recipe() {
    local args=$2
    [ "$1" = yaml ] || args="--seed $1${args:+ ${args}}"
    shift 2
    [ -z "${args}" ] || set -- "$@" --asr_args "${args}"
    ./run.sh ${upstream:+--upstream "${upstream}"} --python "${python}" "$@" "${rest[@]}"
}

# args_of METHOD: what --asr_args has for it
args_of() {
    local words kept=() i other
    read -rd '' -a words <<<"${asr_args}" || true
    for ((i = 0; i < ${#words[@]}; i++)); do
        other=${words[i + 1]:-}
        other=${other%%.*}
        # The run that a method reads has the same --asr_args, of which its folder has its name.
        if [ "${words[i]}" = --pruning ] && [[ " $1 ${after[$1]} " != *" ${other} "* ]] &&
            [[ " ${methods} " == *" ${other} "* ]]; then
            i=$((i + 1)) # its setting
        else
            kept+=("${words[i]}")
        fi
    done
    echo "${kept[*]}"
}

# one METHOD RATIO SEED: a run of the recipe, its output in a file of its own
one() {
    local name args
    args=$(args_of "$1")
    name=$1_$2_seed_$3$(name_of "${args}")
    log "${name}"
    if recipe "$3" "${args}" --method "$1" --target_sparsity "$2" --skip_data_prep true \
        >>"${logs}/${name}.log" 2>&1; then
        log "${name}: finished"
    else
        log "${name}: failed: $(tail -n 1 "${logs}/${name}.log")"
        echo "${name}" >>"${failed}"
    fi
}

# all METHODS: every ratio and seed, ${jobs} at a time
all() {
    local ratio seed method
    for ratio in ${ratios}; do
        for seed in ${seeds}; do
            for method in $1; do
                if awk "BEGIN {exit !(${ratio} > ${most[${method}]})}"; then
                    log "${method} at ${ratio}: not run, it prunes ${most[${method}]} at most"
                    continue
                fi
                while [ "$(jobs -rp | wc -l)" -ge "${jobs}" ]; do
                    wait -n || true
                done
                one "${method}" "${ratio}" "${seed}" &
            done
        done
    done
    wait
}

log "data, the dense baseline and a dense run of the same length (${logs}/dense.log)"
for seed in ${seeds}; do
    recipe "${seed}" "" --method dense >>"${logs}/dense.log" 2>&1 || die "dense run: $(tail -n 1 "${logs}/dense.log")"
done
all "${first}"
all "${second}"
if "${report}"; then
    exp=$(recipe yaml "" --print_exp true) # where the runs are is for run.sh to know
    "${python}" -m espnet_pinch.bin.report --exp "${exp}"
fi
if [ -s "${failed}" ]; then
    die "$(wc -l <"${failed}") of the runs failed: $(tr '\n' ' ' <"${failed}")(see ${logs}/)"
fi
log "finished"
