#!/usr/bin/env bash
# A training on TPU slices of a GKE cluster, as a plain JobSet.
set -euo pipefail

help="usage: gke-jobset.sh [--print] [CONFIG] [--flags]

Fills in gke-jobset.yaml and applies it with kubectl (--print: shows it instead). Every host runs
jaxbooth train CONFIG --flags --run-dir RUN_DIR. The cluster needs the JobSet controller and node pools of
the slice's kind.

Environment:
  NAME             of the JobSet
  IMAGE            built from scripts/launch/Dockerfile
  ACCELERATOR      tpu-v5-lite-podslice, tpu-v6e-slice, tpu-v4-podslice, tpu-v5p-slice or tpu7x
  TOPOLOGY         of one slice in chips, such as 4x4
  RUN_DIR          gs:// address of the run folder
  NUM_SLICES       default 1
  CHIPS_PER_HOST   default 4
  SPOT             1 (default): spot nodes; 0: others
  PHOTOS           gs:// folder that every host copies to ./photos first
  CACHE_DIR        compiled programs; default gs://BUCKET OF RUN_DIR/jax-cache
  SERVICE_ACCOUNT  of Kubernetes, with access to the bucket; default: default
  MAX_RESTARTS     default 20
  GRACE_SECONDS    from SIGTERM to SIGKILL; default 120 (spot nodes may grant less)"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

print=0
if [[ ${1:-} == --print ]]; then
  print=1
  shift
fi
need NAME "the JobSet"
need IMAGE "the image built from scripts/launch/Dockerfile"
need ACCELERATOR "the kind of TPU, such as tpu-v5-lite-podslice"
need TOPOLOGY "a slice's shape in chips, such as 4x4"
need_bucket
NUM_SLICES=${NUM_SLICES:-1} CHIPS_PER_HOST=${CHIPS_PER_HOST:-4} MAX_RESTARTS=${MAX_RESTARTS:-20}
GRACE_SECONDS=${GRACE_SECONDS:-120} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default} PHOTOS=${PHOTOS:-}
for number in NUM_SLICES CHIPS_PER_HOST MAX_RESTARTS GRACE_SECONDS; do need_number "$number"; done
[[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || refuse "TOPOLOGY is '$TOPOLOGY'; it looks like 4x4 or 2x2x2."
chips=$((${TOPOLOGY//x/*}))
((chips % CHIPS_PER_HOST == 0)) || refuse "$chips chips of $TOPOLOGY are not hosts of CHIPS_PER_HOST=$CHIPS_PER_HOST."
HOSTS=$((chips / CHIPS_PER_HOST))
need_program python3 "it quotes the flags"
need_program envsubst "the package gettext brings it"
ARGS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
export NAME IMAGE ACCELERATOR TOPOLOGY RUN_DIR NUM_SLICES CHIPS_PER_HOST MAX_RESTARTS GRACE_SECONDS
export SERVICE_ACCOUNT PHOTOS CACHE_DIR HOSTS ARGS

filled() {
  local unwanted='^$'
  [[ ${SPOT:-1} == 1 ]] || unwanted=gke-spot
  sed "/$unwanted/d" "$here/gke-jobset.yaml" | envsubst
}
if ((print)); then
  filled
  exit
fi
need_program kubectl "gcloud components install kubectl brings it"
filled | kubectl apply -f -
echo "$((chips * NUM_SLICES)) chips: as many chip-hours an hour; jaxbooth plan says how many hours a run takes."
echo "To watch: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$NAME"
echo "To stop (hosts save first) and to go on: kubectl delete jobset $NAME, then the same command."
