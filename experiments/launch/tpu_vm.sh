#!/usr/bin/env bash
# A TPU VM or a slice of a pod: create it, install vitx on every worker, run, follow the log, delete.
#
#   experiments/launch/tpu_vm.sh create|install|run|follow|delete [--dry-run] [EXPERIMENT.py --workdir DIR ...]
#
# DIR is visible to every worker: a bucket such as gs://BUCKET/RUN, or a mounted one. A preempted run (status 75) is resumed.
# Not run on a TPU VM yet.
#
# Set NAME, ZONE, TYPE (v5litepod-16, v5p-128, ...), VERSION (the TPU software version) and REPOSITORY.
set -euo pipefail

NAME=${NAME:-vitx}
ZONE=${ZONE:-us-central1-a}
TYPE=${TYPE:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
REPOSITORY=${REPOSITORY:-}

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

show() { printf '%q ' "$@"; echo; } # quoted for a shell
do=() words=()
for word in "$@"; do
    if [[ $word == --dry-run ]]; then do=(show); else words+=("$word"); fi
done
set -- "${words[@]}"
[[ $# -ge 1 ]] || usage
action=$1
shift

tpu() { "${do[@]}" gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
everywhere() { tpu ssh --worker=all --command="$1"; }

case $action in
    create) tpu create --accelerator-type="$TYPE" --version="$VERSION" ;;
    install)
        [[ -n $REPOSITORY ]] || { echo "REPOSITORY is not set: the git address that every worker clones" >&2; exit 2; }
        everywhere "git clone $(printf %q "$REPOSITORY") vitx && python3 -m venv venv && venv/bin/pip install -e 'vitx[tpu]'"
        ;;
    run)
        [[ $# -ge 1 ]] || usage
        # The same command on every worker; after status 75 it resumes from the step that was saved.
        again="while ../venv/bin/vitx train $(printf '%q ' "$@")--distributed; [ \$? -eq 75 ]; do :; done"
        everywhere "cd vitx && nohup bash -c $(printf %q "$again") >> ../train.log 2>&1 &"
        ;;
    follow) tpu ssh --worker=0 --command="tail -n 100 -f train.log" ;;
    delete) tpu delete --quiet ;;
    *) usage ;;
esac
