#!/usr/bin/env bash
# `jaxbooth train` in a container or a VM: with its photos, and with an exit code that tells stopped from finished.
set -euo pipefail

help="usage: pod.sh [CONFIG] [--flags]

Runs jaxbooth train CONFIG --flags --run-dir RUN_DIR and exits with its code, or with 143 (as if ended
by SIGTERM) if it saved and left before the run was complete, so that whatever watches starts it again.

Environment:
  RUN_DIR   the run folder, the same for every host: a gs:// address or a shared disk
  PHOTOS    a gs:// folder that is copied to ./photos first; for --data.instance-dir photos"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

need RUN_DIR "the run folder that all hosts share"

if [[ -n ${PHOTOS:-} ]]; then
  python "$here/fetch.py" "$PHOTOS" photos
fi

child=
trap '[[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
jaxbooth train "$@" --run-dir "$RUN_DIR" &
child=$!
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do # a signal ended `wait`, not the training
  code=0
  wait "$child" || code=$?
done
((code == 0)) || exit "$code"
exec python "$here/complete.py" "$RUN_DIR"
