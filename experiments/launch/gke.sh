#!/usr/bin/env bash
# Google Kubernetes Engine: one JobSet, a pod for each host of a TPU slice (jobset.yaml). Not run on GKE yet.
#
#   experiments/launch/gke.sh run|follow|delete [--dry-run]
set -euo pipefail

manifest=$(dirname "$0")/jobset.yaml
show() { printf '%q ' "$@"; echo; } # quoted for a shell
do=() action=
for word in "$@"; do
    if [[ $word == --dry-run ]]; then do=(show); else action=$word; fi
done

case $action in
    run) "${do[@]}" kubectl apply -f "$manifest" ;;
    follow) "${do[@]}" kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=vitx --prefix ;;
    delete) "${do[@]}" kubectl delete -f "$manifest" ;;
    *)
        sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
