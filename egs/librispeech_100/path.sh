#!/usr/bin/env bash
# Sourced. The environment of the recipe: the repository's own virtual environment where there is one.
_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -d "${_root}/.venv/bin" ]; then
    export PATH="${_root}/.venv/bin:${PATH}"
fi
unset _root
export LC_ALL=C.UTF-8
export PYTHONUNBUFFERED=1
