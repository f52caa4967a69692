#!/usr/bin/env bash
# Sourced. The environment of the recipe: the repository's own virtual environment where there is one.
# With these, shells, tools and Python do other than what is written here.
unset CDPATH BASH_ENV ENV GREP_OPTIONS POSIXLY_CORRECT PYTHONWARNINGS PYTHONINSPECT PYTHONIOENCODING
_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -d "${_root}/.venv/bin" ]; then
    export PATH="${_root}/.venv/bin:${PATH}"
fi
unset _root
export LC_ALL=C.UTF-8
export PYTHONUTF8=1
export PYTHONUNBUFFERED=1
export MPLBACKEND=Agg
# A thread that waits for the others spins this many times before it sleeps. GNU OpenMP's 300,000 block a core that
# another program needs: the training took ten times as long. On a machine of one's own 3,000 cost about 5 %.
if [ -z "${GOMP_SPINCOUNT:-}${OMP_WAIT_POLICY:-}" ]; then
    export GOMP_SPINCOUNT=3000
fi
