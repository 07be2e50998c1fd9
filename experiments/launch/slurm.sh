#!/usr/bin/env bash
#SBATCH --job-name=vitx
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# One process for each GPU: as many tasks as GPUs on a node. In SLURM, JAX gives a process the device with its number
# on the node, and finds the other processes from SLURM's variables. --gpus-per-task would hide the other devices.
#
#   sbatch experiments/launch/slurm.sh EXPERIMENT.py --workdir DIR ...        DIR is visible on all nodes
#   experiments/launch/slurm.sh --dry-run EXPERIMENT.py --workdir DIR ...     prints the commands of the job
#
# Five minutes before the time limit SLURM sends SIGTERM. The run saves and exits with status 75, and the job is requeued:
# the same command resumes the run and appends to the same log. Not tried on a real SLURM cluster.
set -euo pipefail

# shellcheck disable=SC2329  # called through the array
show() { printf '%q ' "$@"; echo; } # quoted for a shell
do=() words=()
for word in "$@"; do
    if [[ $word == --dry-run ]]; then do=(show); else words+=("$word"); fi
done
set -- "${words[@]}"
if [[ $# -lt 1 ]]; then
    echo "usage: sbatch $0 EXPERIMENT.py --workdir DIR [--SETTING VALUE ...]" >&2
    exit 2
fi

status=0
# srun does not inherit --cpus-per-task from the job (since SLURM 22.05)
"${do[@]}" srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 vitx train "$@" --distributed || status=$?
if [[ $status -eq 75 ]]; then
    "${do[@]}" scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
