#!/usr/bin/env bash
# `jaxbooth train` or `train-many` in a container or a VM: with its photos, and with an exit code that tells stopped from
# finished.
set -euo pipefail

help="usage: pod.sh [CONFIG] [--flags]

Runs jaxbooth train CONFIG --flags --run-dir RUN_DIR, or with MANIFEST
jaxbooth train-many MANIFEST CONFIG --flags --run-dir RUN_DIR --shard SHARD. Exits with its code, or with 143
(as if ended by SIGTERM) if it saved and left before all was complete, so that whatever watches starts it
again, or with 3 if a share is complete but for subjects that failed.

Environment:
  RUN_DIR   the run folder, the same for every host: a gs:// address or a shared disk
  PHOTOS    a gs:// folder that is copied to ./photos first; for --data.instance-dir photos
  MANIFEST  the subjects of train-many; RUN_DIR is on a shared disk then
  SHARD     the share of them, such as 2/8; default 1/1"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

need RUN_DIR "the run folder that all hosts share"
training=(train "$@" --run-dir "$RUN_DIR")
share=()
if [[ -n ${MANIFEST:-} ]]; then
  share=("${SHARD:-1/1}")
  training=(train-many "$MANIFEST" "$@" --run-dir "$RUN_DIR" --shard "${share[0]}")
fi

if [[ -n ${PHOTOS:-} ]]; then
  python "$here/fetch.py" "$PHOTOS" photos
fi

child=
trap '[[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
jaxbooth "${training[@]}" &
child=$!
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do # a signal ended `wait`, not the training
  code=0
  wait "$child" || code=$?
done
# Subjects that failed end train-many with 1, as a lost process does; only the latter is to be tried again.
((code == 0 || (code == 1 && ${#share[@]}))) || exit "$code"
answer=0
python "$here/complete.py" "$RUN_DIR" "${share[@]}" || answer=$?
((code == 0 || answer != 143)) || exit "$code"
exit "$answer"
