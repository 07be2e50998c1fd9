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
# One process for each GPU, as many tasks as GPUs on a node: in SLURM JAX gives a process the one device that has its
# number on the node (so no --gpus-per-task, which hides the others), and finds all from SLURM's variables.
#
#   sbatch experiments/launch/slurm.sh EXPERIMENT.py --workdir DIR ...        DIR is seen by all nodes
#   experiments/launch/slurm.sh --dry-run EXPERIMENT.py --workdir DIR ...     prints what the job would do
#
# Five minutes before the limit SLURM sends SIGTERM: the run saves and ends with status 75, and the job is put into the
# queue again, where the same command goes on, and so does the log. Not tried on a real SLURM.
set -euo pipefail

# shellcheck disable=SC2329  # it is, through the array
show() { printf '%q ' "$@"; echo; } # as a shell takes it
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
# srun does not take the CPUs of a task from the job
"${do[@]}" srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 vitx train "$@" --distributed || status=$?
if [[ $status -eq 75 ]]; then
    "${do[@]}" scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
