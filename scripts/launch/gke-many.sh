#!/usr/bin/env bash
# Many subjects on independent TPU slices of a GKE cluster: each slice trains a share of a manifest.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib-gke.sh
. "$here/lib-gke.sh"

help="usage: gke-many.sh [--print] [CONFIG] [--flags]

Fills in gke-jobset.yaml for each of NUM_SLICES slices and applies all with kubectl (--print: shows them
instead). Every host of slice I runs
jaxbooth train-many MANIFEST CONFIG --flags --run-dir RUN_DIR --shard I/NUM_SLICES, and the hosts of a slice
share its subjects among themselves. Each slice is a JobSet of its own: one that fails restarts alone, and
those that are done give their nodes back. A share that is complete but for subjects that failed is not
started again. The cluster needs the JobSet controller and node pools of the slice's kind.

Environment:
  NAME             of the JobSets, which are NAME-1, NAME-2 and so on
  VOLUME_CLAIM     a PersistentVolumeClaim with ReadWriteMany access, such as one of Filestore
  MOUNT            where the hosts see that volume; default /shared
  RUN_DIR          the folder of all runs, on the volume: /shared/kitchen
  MANIFEST         the subjects, on the volume: /shared/subjects.yaml; or in PHOTOS: photos/subjects.yaml
  CACHE_DIR        compiled programs; default MOUNT/jax-cache
$slice_help"

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

take_arguments "$@"
need_slices
need VOLUME_CLAIM "the PersistentVolumeClaim that all slices share"
need RUN_DIR "the folder of all runs, such as /shared/kitchen"
need MANIFEST "the subjects, such as /shared/subjects.yaml"
MOUNT=${MOUNT:-/shared}
[[ $RUN_DIR == "$MOUNT"/* ]] || refuse "RUN_DIR is '$RUN_DIR'; all slices share MOUNT=$MOUNT, so it must be below that."
[[ $MANIFEST == "$MOUNT"/* || (-n $PHOTOS && $MANIFEST == photos/*) ]] ||
  refuse "MANIFEST is '$MANIFEST'; it must be below MOUNT=$MOUNT, or in photos/ with PHOTOS set."
CACHE_DIR=${CACHE_DIR:-$MOUNT/jax-cache}
VOLUMES="[{name: shared, persistentVolumeClaim: {claimName: $VOLUME_CLAIM}}]"
MOUNTS="[{name: shared, mountPath: $MOUNT}]"
export SLICES=1 MANIFEST VOLUMES MOUNTS

jobsets=$(
  for ((slice = 1; slice <= NUM_SLICES; slice++)); do
    echo ---
    JOBSET=$NAME-$slice SHARD=$slice/$NUM_SLICES filled
  done
)
apply "$jobsets"
