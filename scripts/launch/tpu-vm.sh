#!/usr/bin/env bash
# A training on the hosts of one Cloud TPU slice, through queued resources and ssh.
set -euo pipefail

help="usage: tpu-vm.sh COMMAND ...

  create                    request the slice; again after a preemption
  wait                      until the slice is there
  install                   put this repository's last commit and its packages on every host
  copy PATH ...             put files or folders, such as photos, into every host's working folder
  train [CONFIG] [--flags]  start jaxbooth train on every host; it outlives the ssh connection
  status                    of the slice, and of the training on every host
  logs [WORKER]             follow one host's output; default: 0, which prints the progress
  stop                      save, and end on every host
  delete                    give the slice back; nothing is charged afterwards

Each may be repeated. Environment:
  NAME ACCELERATOR_TYPE     the slice, such as dog and v5litepod-16, v6e-16, v4-16 or v5p-16
  ZONE PROJECT              where; default: gcloud's configuration
  RUN_DIR                   gs:// address of the run folder (train)
  CACHE_DIR                 compiled programs; default gs://BUCKET OF RUN_DIR/jax-cache
  PHOTOS                    gs:// folder that every host copies to ./photos first (train)
  SPOT                      1 (default): may be preempted; 0: not
  RUNTIME_VERSION           of the host's image; default: what Google names for the kind of TPU
  GRACE_SECONDS             from SIGTERM to SIGKILL; default 120

Google gives the Cloud TPU API fixes only; TPU7x and newer need GKE (gke-xpk.sh, gke-jobset.sh) or a
managed instance group of Compute Engine."

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

place=()
[[ -z ${ZONE:-} ]] || place+=(--zone "$ZONE")
[[ -z ${PROJECT:-} ]] || place+=(--project "$PROJECT")
where=jaxbooth # below the home folder of every host

queued() {
  local verb=$1
  shift
  gcloud compute tpus queued-resources "$verb" "$NAME" ${place[@]+"${place[@]}"} "$@"
}

# Runs a command on hosts. Arguments: "all" or a number, the command.
on_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" ${place[@]+"${place[@]}"} --worker "$1" --command "$2"
}

to_hosts() {
  gcloud compute tpus tpu-vm scp "$@" ${place[@]+"${place[@]}"} --worker all
}

# Prints the request's state, such as ACTIVE, or NONE.
state() {
  local errors answer
  errors=$(mktemp)
  if answer=$(queued describe --format 'value(state.state)' 2>"$errors"); then
    echo "$answer"
  elif grep -q NOT_FOUND "$errors"; then
    echo NONE
  else
    cat "$errors" >&2
    rm "$errors"
    return 1
  fi
  rm "$errors"
}

# Prints how many chips the slice has, from its name: v4 and v5p count cores, two to a chip.
chips() {
  local size=${ACCELERATOR_TYPE##*-}
  [[ $size =~ ^[1-9][0-9]*$ ]] || refuse "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; it looks like v5litepod-16."
  case $ACCELERATOR_TYPE in
  v5litepod-* | v6e-*) echo "$size" ;;
  *) echo $((size / 2)) ;;
  esac
}

runtime() {
  case $ACCELERATOR_TYPE in
  v6e-*) echo v2-alpha-tpuv6e ;;
  v5p-*) echo v2-alpha-tpuv5 ;;
  v5litepod-*) echo v2-alpha-tpuv5-lite ;;
  v4-* | v3-* | v2-*) echo tpu-ubuntu2204-base ;;
  *) refuse "$ACCELERATOR_TYPE is no TPU of the Cloud TPU API; TPU7x and newer need GKE (gke-xpk.sh)." ;;
  esac
}

create() {
  need ACCELERATOR_TYPE "the slice, such as v5litepod-16"
  local version now count
  version=${RUNTIME_VERSION:-$(runtime)}
  count=$(chips)
  now=$(state)
  case $now in
  NONE) ;;
  FAILED | SUSPENDED) # what is left of a preempted slice keeps its name
    echo "$NAME is $now; requesting it anew."
    queued delete --force --quiet
    ;;
  *)
    echo "$NAME is there already: $now."
    return
    ;;
  esac
  local options=(--node-id "$NAME" --accelerator-type "$ACCELERATOR_TYPE" --runtime-version "$version")
  [[ ${SPOT:-1} != 1 ]] || options+=(--spot)
  queued create "${options[@]}"
  echo "$ACCELERATOR_TYPE has $count chips: $count chip-hours an hour, from when it is ACTIVE until 'delete'."
  echo "How many hours a run takes: jaxbooth plan CONFIG --topology KIND:SHAPE, such as v5e:4x4 for v5litepod-16."
}

await() {
  local now
  while now=$(state); do
    case $now in
    ACTIVE) echo "$NAME is ACTIVE." && return ;;
    NONE | FAILED | SUSPENDED | SUSPENDING | DELETING)
      echo "tpu-vm.sh: $NAME is $now; run: tpu-vm.sh create" >&2
      return 1
      ;;
    esac
    echo "$(date +%T) $NAME is $now"
    sleep "${POLL_SECONDS:-30}"
  done
  return 1
}

install() {
  need_program git "it packs the repository"
  local archive root
  root=$(git -C "$here" rev-parse --show-toplevel)
  archive=$(mktemp -d)/jaxbooth.tar.gz
  git -C "$root" archive --format tar.gz --output "$archive" HEAD
  on_hosts all "mkdir -p $where/source"
  to_hosts "$archive" "$NAME:$where/source.tar.gz"
  rm -r "$(dirname "$archive")"
  # The images come with an older Python; uv brings a newer one.
  on_hosts all "set -e; cd $where; tar -xzf source.tar.gz -C source; export PATH=\$HOME/.local/bin:\$PATH
    command -v uv >/dev/null || python3 -m pip install --user --quiet uv
    [ -d env ] || uv venv --quiet --python 3.12 env
    uv pip install --quiet --python env './source[tpu,gcs]'
    env/bin/python -c 'import jaxbooth; print(\"jaxbooth is installed\")'"
}

copy() {
  (($#)) || refuse "copy takes files or folders, as in: tpu-vm.sh copy photos"
  on_hosts all "mkdir -p $where"
  to_hosts --recurse "$@" "$NAME:$where/"
}

train() {
  need_bucket
  local flags settings
  settings=(RUN_DIR="$RUN_DIR" PHOTOS="${PHOTOS:-}" JAX_COMPILATION_CACHE_DIR="$CACHE_DIR" PYTHONUNBUFFERED=1)
  flags=$( (($# == 0)) || printf ' %q' "$@")
  # A unit of its own outlives ssh, and the host's shutdown sends it SIGTERM and waits.
  on_hosts all "set -e
    if systemctl is-active --quiet jaxbooth; then echo 'jaxbooth is running already'; exit; fi
    sudo systemctl reset-failed jaxbooth 2>/dev/null || true
    sudo systemd-run --unit=jaxbooth --uid=\$(id -u) --gid=\$(id -g) --working-directory=\$HOME/$where \
      --property=KillMode=mixed --property=TimeoutStopSec=${GRACE_SECONDS:-120} \
      --property=SuccessExitStatus=143 --property=LimitMEMLOCK=infinity --setenv=HOME=\$HOME \
      --setenv=PATH=\$HOME/$where/env/bin:/usr/local/bin:/usr/bin:/bin$(printf ' --setenv=%q' "${settings[@]}") \
      \$HOME/$where/source/scripts/launch/pod.sh$flags"
}

status() {
  local now
  now=$(state)
  echo "$NAME: $now"
  if [[ $now == ACTIVE ]]; then
    # shellcheck disable=SC2016 # for the hosts to expand
    on_hosts all 'echo "$(hostname): $(systemctl is-active jaxbooth); $(journalctl -u jaxbooth -n 1 -o cat)"'
  fi
}

need_program gcloud "Google Cloud's SDK brings it"
command=${1:-}
(($# == 0)) || shift
[[ -n $command ]] || refuse "a command is missing; --help lists them."
need NAME "the slice"
case $command in
create) create ;;
wait) await ;;
install) install ;;
copy) copy "$@" ;;
train) train "$@" ;;
status) status ;;
logs) on_hosts "${1:-0}" 'journalctl --unit jaxbooth --output cat --lines 100 --follow' ;;
stop) on_hosts all 'sudo systemctl stop jaxbooth' ;;
delete) if [[ $(state) != NONE ]]; then queued delete --force --quiet; else echo "$NAME does not exist."; fi ;;
*) refuse "'$command' is no command; --help lists them." ;;
esac
