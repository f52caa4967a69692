#!/usr/bin/env bash
# Sourced, behind utils/step.sh. Sets a variable for each "--name value" or "--name=value", "-" and "_" alike in names.
#
#   options="stage stop_stage"; stage=0; stop_stage=6
#   . utils/parse_options.sh        # reads "$@"
#
# Only the names in ${options} are taken. "--config FILE" sources a file of "name=value" lines at its place, seen from
# ${called_from} where that is set. "--help" prints ${help_message}.

while [ $# -gt 0 ]; do
    case "$1" in
        --help | -h)
            printf '%s\n' "${help_message:-}"
            exit 0
            ;;
        --*=*)
            _name=${1%%=*}
            _value=${1#*=}
            shift
            ;;
        --*)
            _name=$1
            if [ $# -lt 2 ]; then
                echo "error: option $1 needs a value" >&2
                exit 2
            fi
            _value=$2
            shift 2
            ;;
        *)
            echo "error: unexpected argument '$1'; options begin with --" >&2
            exit 2
            ;;
    esac
    _name=${_name#--}
    _name=${_name//-/_}
    if [ "${_name}" = config ]; then
        _name=$(realpath -ms -- "$(seen_from "${called_from:-.}" "${_value}")") # "." looks for a bare name in PATH
        if [ ! -f "${_name}" ] || [ ! -r "${_name}" ]; then
            echo "error: --config: cannot read ${_value}" >&2
            exit 2
        fi
        # shellcheck disable=SC1090
        . "${_name}"
        continue
    fi
    case " ${options:?} " in
        *" ${_name} "*) printf -v "${_name}" '%s' "${_value}" ;;
        *)
            echo "error: unknown option --${_name}; see --help" >&2
            exit 2
            ;;
    esac
done
unset _name _value
