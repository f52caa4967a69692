#!/usr/bin/env bash
# Make a recipe: egs/TEMPLATE/setup.sh NAME makes egs/NAME. What is there stays as it is; links that lack are added.
set -euo pipefail
[ $# -eq 1 ] && [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || {
    echo "usage: egs/TEMPLATE/setup.sh NAME (letters, digits, . _ -), which makes the recipe egs/NAME" >&2
    exit 2
}
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$1/local"

# Shared by all recipes. A recipe with settings of its own has a folder conf/ in the place of the link.
for name in path.sh:../TEMPLATE/path.sh conf:../../conf utils:../../utils local/pinch.sh:../../../local/pinch.sh \
    local/sweep.sh:../../../local/sweep.sh local/run_comparison.sh:../../../local/run_comparison.sh; do
    [ -e "$1/${name%%:*}" ] || ln -s "${name#*:}" "$1/${name%%:*}"
done
# The recipe's own.
for name in run.sh cmd.sh local/data.sh; do
    [ -e "$1/${name}" ] || sed "s/ on NAME;/ on $1;/" "TEMPLATE/${name}" >"$1/${name}"
    chmod +x "$1/${name}"
done
echo "egs/$1: name its sets in run.sh, and write local/data.sh, which says what it must leave"
