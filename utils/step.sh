#!/usr/bin/env bash
# Sourced. Steps of a recipe that are skipped when they were done before with the same inputs.

log() {
    printf '%s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*"
}

die() {
    echo "error: $*" >&2
    exit 1
}

# seen_from DIR PATH: PATH, which may be relative to DIR or begin with "~", as seen from here
seen_from() {
    local path=$2 home=${2%%/*}
    if [[ ${home} =~ ^~[A-Za-z0-9._-]*$ ]]; then
        eval "home=${home}" # of what is no more than a name
        path=${home}${path#"${path%%/*}"}
    fi
    [[ ${path} == /* ]] || path=$1/${path}
    path=$(realpath -ms -- "${path}")
    printf '%s\n' "${path#"${PWD}/"}"
}

# within N: whether stage N is to be run
within() {
    [ "${stage:?}" -le "$1" ] && [ "${stop_stage:?}" -ge "$1" ]
}

# name_of ARGS: what options of asr_train add to the name of a run
name_of() {
    [ -z "$1" ] || printf ' %s\n' "$1" | sed 's/ *--*/_/g; s/[ =:/]//g'
}

# key INPUT...: one hash of all inputs. An input is a file, whose content counts, or "=text", which counts itself.
key() {
    local input
    for input in "$@"; do
        case "${input}" in
            =*) printf '%s\n' "${input}" ;;
            *)
                [ -f "${input}" ] || die "${input} is missing: run the stage before this one first"
                sha256sum <"${input}"
                ;;
        esac
    done | sha256sum | cut -d ' ' -f 1
}

# listing DIR NAME...: hash of the names, sizes and times of the files in DIR that match a NAME pattern.
listing() {
    local dir=$1 tests=() name
    shift
    for name in "$@"; do
        tests+=(-o -name "${name}")
    done
    # What cannot be looked at, such as a link to itself, is left to the program that needs it.
    { find -L "${dir}" -type f \( "${tests[@]:1}" \) -printf '%P %s %T@\n' 2>/dev/null || true; } |
        LC_ALL=C sort | sha256sum | cut -d ' ' -f 1
}

# states: hash of the names, sizes and times of the files that the lines of stdin name
states() {
    tr '\n' '\0' | { xargs -0 -r stat -L -c '%n %s %Y' 2>&1 || true; } | sha256sum | cut -d ' ' -f 1
}

# sounds FILE...: the same of the sound files that wav.scp files name; archives are named once, without a place in them
sounds() {
    { cut -d ' ' -f 2- -- "$@" 2>/dev/null || true; } | sed -E 's/(\.ark):[0-9]+$/\1/' | LC_ALL=C sort -u | states
}

# writable DIR: make DIR if it is not there; stop with one line unless there is room to write in it.
writable() {
    local reason
    reason=$({ mkdir -p "$1" && head -c 65536 /dev/zero >"$1/.room.$$"; } 2>&1) || {
        rm -f "$1/.room.$$"
        die "cannot write in $1: ${reason##*: }; what is done is kept, the same command goes on with it"
    }
    rm -f "$1/.room.$$"
}

# step DONE TITLE INPUT... -- COMMAND...
# Runs COMMAND unless DONE says that it was done with these inputs. What COMMAND prints goes to the screen and, with
# its stderr, to DONE's name with .log for .done. DONE is written last.
step() {
    local done_file=$1 title=$2 inputs=() status=0 start=${SECONDS} log_file first_line now
    shift 2
    while [ "$1" != -- ]; do
        inputs+=("$1")
        shift
    done
    shift
    now=$(key "${inputs[@]}")
    if [ -f "${done_file}" ] && [ "$(cat "${done_file}")" = "${now}" ]; then
        log "${title}: done before, nothing changed"
        return
    fi
    log_file=${done_file%.done}.log
    writable "$(dirname "${done_file}")"
    rm -f "${done_file}"
    log "${title} (log: ${log_file})"
    printf '# %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*" >>"${log_file}"
    first_line=$(wc -l <"${log_file}")
    # shellcheck disable=SC2094  # both only append
    { ESPNET_PINCH_TERMINAL=3 "$@" 2>>"${log_file}" | tee -a "${log_file}"; } 3>&1 || status=$?
    [ "${status}" -ne 141 ] || exit 141 # nobody reads the output any more ("| head"): as quiet as other programs
    if [ "${status}" -eq 130 ]; then # Ctrl-C
        echo "error: ${title} was interrupted; the same command goes on with it" >&2
        exit 130
    fi
    if [ "${status}" -ne 0 ]; then
        # The program's last error line, wherever tee has put the progress that was still under way.
        # Programs that read wrong options put their name before it.
        if ! tail -n "+${first_line}" "${log_file}" | sed -nE 's/^([A-Za-z0-9_. -]+: )?error: /error: /p' | tail -n 1 |
            grep . >&2; then
            echo "The last lines of ${log_file}:" >&2
            tail -n "+${first_line}" "${log_file}" | tail -n 15 >&2
            writable "$(dirname "${done_file}")" # a full disk takes no log either
            case "${status}" in
                137) echo "error: ${title} was killed (signal 9): by somebody, or because memory was full;" \
                    "the same command goes on with it; see ${log_file}" >&2 ;;
                *) echo "error: ${title} failed with status ${status}; see ${log_file}" >&2 ;;
            esac
        fi
        exit 1
    fi
    mkdir -p "$(dirname "${done_file}")"
    if ! { printf '%s\n' "${now}" >"${done_file}.$$" && mv "${done_file}.$$" "${done_file}"; } 2>/dev/null; then
        writable "$(dirname "${done_file}")"
        die "cannot write ${done_file}"
    fi
    log "${title}: done in $((SECONDS - start)) s"
}
