#!/usr/bin/env bash
# slurm.pl --gpu N --num_threads N --num_nodes N LOG srun COMMAND...
# In the place of Kaldi's program, by whose name ESPnet's launcher knows Slurm. The nodes are there already (sbatch,
# salloc), so srun starts at once, and its output goes where that of the caller goes.
set -euo pipefail
nodes=1
while [[ $1 == --* ]]; do
    [ "$1" != --num_nodes ] || nodes=$2
    shift 2
done
shift
if [ "${SLURM_JOB_NUM_NODES:-0}" -ne "${nodes}" ] || ! command -v "$1" >/dev/null; then
    echo "error: --num_nodes ${nodes} takes a Slurm allocation of ${nodes} nodes to run in (sbatch --nodes=${nodes}" \
        "--ntasks-per-node=1), and here are ${SLURM_JOB_NUM_NODES:-none}; or set train_cmd in cmd.sh" >&2
    exit 1
fi
exec "$@"
