#!/usr/bin/env bash
# A training on TPU slices of a GKE cluster, as a plain JobSet.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib-gke.sh
. "$here/lib-gke.sh"

help="usage: gke-jobset.sh [--print] [CONFIG] [--flags]

Fills in gke-jobset.yaml and applies it with kubectl (--print: shows it instead). Every host runs
jaxbooth train CONFIG --flags --run-dir RUN_DIR. The cluster needs the JobSet controller and node pools of
the slice's kind.

Environment:
  NAME             of the JobSet
  RUN_DIR          gs:// address of the run folder
  CACHE_DIR        compiled programs; default gs://BUCKET OF RUN_DIR/jax-cache
$slice_help"

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

take_arguments "$@"
need_slices
need_bucket
export JOBSET=$NAME SLICES=$NUM_SLICES MANIFEST="" SHARD="" VOLUMES="[]" MOUNTS="[]"
jobset=$(filled)
apply "$jobset"
