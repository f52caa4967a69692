#!/usr/bin/env bash
# Sourced by local/data.sh, behind utils/step.sh: a corpus that is there already, by one of the ways in.
# Which ways there are, and which options they have, espnet_pinch/corpus knows.

# option_of NAME DEFAULT ARGUMENT...: the value of --NAME among arguments that are not parsed yet
option_of() {
    local name=$1 value=$2
    shift 2
    while [ $# -gt 0 ]; do
        case "$1" in
            --"${name}") value=${2:-} ;;
            --"${name}"=*) value=${1#*=} ;;
        esac
        shift
    done
    printf '%s\n' "${value}"
}

# read_ways ARGUMENT...: sets ${ways} and ${way_settings}, the names of their options, and adds these to ${options}, with
# empty variables. Where the arguments ask for help, ${ways_help} gets its lines.
read_ways() {
    local kind name files program list="-m espnet_pinch.bin.list_ways" help=false
    program=$(option_of python python3 "$@")
    case " $* " in
        *" --help "* | *" -h "*) help=true ;;
    esac
    ways=
    way_settings=
    ways_help=
    declare -gA way_files=() # names of the files that state the utterances
    if "${help}"; then
        # shellcheck disable=SC2034,SC2086
        ways_help=$("${program}" ${list} --help_lines 2>/dev/null) ||
            ways_help="  (${program} cannot list the ways in: run make venv in the repository, or give --python)"
        return 0
    fi
    command -v "${program}" >/dev/null || return 0 # run.sh says that it is missing
    if [ -z "${ways_listed:-}" ]; then
        # shellcheck disable=SC2086
        ways_listed=$("${program}" ${list}) || exit 1
        export ways_listed # to local/data.sh
    fi
    while read -r kind name files; do
        case "${kind}" in
            way)
                ways+=" ${name}"
                way_files[${name}]=${files}
                ;;
            setting) way_settings+=" ${name}" ;;
        esac
        printf -v "${name}" '%s' ""
    done <<<"${ways_listed}"
    ways=${ways# }
    options+=" ${ways}${way_settings}"
}

# given_ways: the ways in that were given, one a line
given_ways() {
    local name
    for name in ${ways}; do
        [ -z "${!name}" ] || printf '%s\n' "${name}"
    done
}

# prepare_way: stage 1 of the way in that was given
prepare_way() {
    local name source files sets setting given inputs
    name=$(given_ways | head -n 1)
    source=${!name}
    read -ra files <<<"${way_files[${name}]}"
    read -ra sets <<<"${test_sets:?}"
    given=("--${name}" "${source}" --train_set "${train_set:?}" --valid_set "${valid_set:?}" --test_sets "${sets[@]}")
    for setting in ${way_settings}; do
        [ -z "${!setting}" ] || given+=("--${setting}" "${!setting}")
    done
    if [ -d "${source}" ]; then
        inputs=("=$(listing "${source}" "${files[@]:-*}")")
    elif [ -f "${source}" ]; then
        inputs=("${source}")
    else
        inputs=("=${source}") # which the program refuses
    fi
    step "${data:?}/rows.done" "reading ${source}" "${inputs[@]}" "=${given[*]}" -- \
        "${python:?}" -m espnet_pinch.bin.read_corpus "${given[@]}" --out "${data}"
    step "${data}/prepare.done" "audio and data directories ${data}" "${data}/rows.done" \
        "=$(states <"${data}/sources")" -- \
        "${python}" -m espnet_pinch.bin.cut_corpus "${given[@]}" --out "${data}" --nj "${nj:?}"
}
