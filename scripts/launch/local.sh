#!/usr/bin/env bash
# N processes of one command on this machine, as if they were N hosts.
set -euo pipefail
set -m # every process leads a group of its own: Ctrl-C reaches them through us, once

help="usage: local.sh N [--] COMMAND ...

Starts COMMAND N times, process I with
  --distributed.coordinator 127.0.0.1:PORT --distributed.num-processes N --distributed.process-id I
behind it. Every line they print begins with [I]. SIGTERM and SIGINT are passed on to all. When one
fails, the others get SIGTERM, GRACE_SECONDS later SIGKILL, and its exit code is returned.

  scripts/launch/local.sh 2 jaxbooth train demo --run-dir runs/two

Environment:
  DEVICES_PER_PROCESS   run on the CPU with that many devices each; otherwise the GPUs that
                        nvidia-smi shows (or CUDA_VISIBLE_DEVICES names) are shared out evenly
  PORT                  port of process 0; default: a free one
  GRACE_SECONDS         what the others are left with after a failure; default 10"

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || refuse "the first argument is the number of processes, as in: local.sh 2 jaxbooth"
count=$1
shift
[[ ${1:-} != -- ]] || shift
(($#)) || refuse "a command must follow the number of processes, as in: local.sh $count jaxbooth train"
GRACE_SECONDS=${GRACE_SECONDS:-10}
need_number GRACE_SECONDS
[[ -z ${DEVICES_PER_PROCESS:-} ]] || need_number DEVICES_PER_PROCESS
need_program python3 "it looks for a free port"

gpus=()
if [[ -n ${DEVICES_PER_PROCESS:-} ]]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES_PER_PROCESS"
elif [[ ${JAX_PLATFORMS:-} != cpu ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    while IFS= read -r index; do gpus+=("$index"); done < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
  ((${#gpus[@]} % count == 0)) || refuse "${#gpus[@]} GPUs cannot be shared out to $count processes evenly; \
name some with CUDA_VISIBLE_DEVICES, or use the CPU with DEVICES_PER_PROCESS=1."
fi
share=$((${#gpus[@]} / count))

port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}" # gRPC would ask a proxy for loopback, too
pipes=$(mktemp -d)
trap 'rm -rf "$pipes"' EXIT

running=()
readers=()
# Arguments: a signal's name. The commands alone get it; what they started is theirs to stop.
pass_on() {
  local i
  for i in "${!running[@]}"; do kill "-$1" "${running[i]}" 2>/dev/null || true; done
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT

prefixed() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}
for ((i = 0; i < count; i++)); do
  mkfifo "$pipes/$i"
  prefixed "$i" <"$pipes/$i" &
  readers+=($!)
  (
    ((share == 0)) || { IFS=, && export CUDA_VISIBLE_DEVICES="${gpus[*]:i*share:share}"; }
    exec "$@" --distributed.coordinator "127.0.0.1:$port" --distributed.num-processes "$count" --distributed.process-id "$i"
  ) </dev/null >"$pipes/$i" 2>&1 &
  running+=($!)
done

exec 3>&2 2>/dev/null # bash would print the commands that a signal ended
failure=0
deadline=0
while ((${#running[@]})); do
  for i in "${!running[@]}"; do
    ! kill -0 "${running[i]}" || continue
    code=0
    wait "${running[i]}" || code=$?
    kill -KILL -- "-${running[i]}" || true # what it left behind would keep its pipe open
    unset "running[i]"
    if ((code && failure == 0)); then
      failure=$code
      deadline=$((SECONDS + GRACE_SECONDS))
      echo "local.sh: process $i ended with exit code $code; the others are ended." >&3
      pass_on TERM
    fi
  done
  if ((deadline && SECONDS >= deadline)); then
    for i in "${!running[@]}"; do kill -KILL -- "-${running[i]}" || true; done
  fi
  sleep 0.1
done
wait "${readers[@]}" || true
exit "$failure"
