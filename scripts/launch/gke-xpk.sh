#!/usr/bin/env bash
# A training on TPU slices of a GKE cluster, through xpk.
set -euo pipefail

help="usage: gke-xpk.sh [CONFIG] [--flags]

Starts jaxbooth train CONFIG --flags --run-dir RUN_DIR on every host of NUM_SLICES slices. The cluster
is one that 'xpk cluster create' made; add --spot there for spot nodes.

Environment:
  CLUSTER PROJECT ZONE   the cluster
  NAME                   of the workload
  IMAGE                  built from scripts/launch/Dockerfile
  TPU_TYPE               a slice, such as v5litepod-16, v6e-16 or tpu7x-16
  RUN_DIR                gs:// address of the run folder
  NUM_SLICES             default 1
  PHOTOS                 gs:// folder that every host copies to ./photos first
  CACHE_DIR              compiled programs; default gs://BUCKET OF RUN_DIR/jax-cache
  MAX_RESTARTS           default 20
  GRACE_SECONDS          from SIGTERM to SIGKILL; default 120 (spot nodes may grant less)
  SPOT=1                 only for clusters with autoprovisioning: ask for spot nodes"

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need CLUSTER "the GKE cluster"
need PROJECT "its project"
need ZONE "its zone"
need NAME "the workload"
need IMAGE "the image built from scripts/launch/Dockerfile"
need TPU_TYPE "a slice, such as v5litepod-16"
need_bucket
NUM_SLICES=${NUM_SLICES:-1} MAX_RESTARTS=${MAX_RESTARTS:-20} GRACE_SECONDS=${GRACE_SECONDS:-120}
need_number NUM_SLICES
need_number MAX_RESTARTS
need_number GRACE_SECONDS
need_program xpk "pip install 'xpk>=1.16,<2' brings it"

# xpk signals the shell that it starts: exec lets the training take that shell's place.
command="exec /opt/jaxbooth/scripts/launch/pod.sh$( (($# == 0)) || printf ' %q' "$@")"
options=(--env "RUN_DIR=$RUN_DIR" --env "JAX_COMPILATION_CACHE_DIR=$CACHE_DIR")
[[ -z ${PHOTOS:-} ]] || options+=(--env "PHOTOS=$PHOTOS")
[[ ${SPOT:-0} != 1 ]] || options+=(--spot)

# Exit code 1 is work that failed, maybe for want of another host; 2 is input that no restart mends.
exec xpk workload create --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" --workload "$NAME" \
  --tpu-type "$TPU_TYPE" --num-slices "$NUM_SLICES" --docker-image "$IMAGE" \
  --max-restarts "$MAX_RESTARTS" --restart-on-exit-codes 1 \
  --termination-grace-period-seconds "$GRACE_SECONDS" "${options[@]}" --command "$command"
