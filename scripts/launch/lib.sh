# shellcheck shell=bash
# What the launchers share; they source it.

# Ends the script. Arguments: one sentence that says what to do.
refuse() {
  echo "${0##*/}: $1" >&2
  exit 2
}

# Demands an environment variable. Arguments: its name, what it is for.
need() {
  [[ -n ${!1:-} ]] || refuse "$1 is not set; it names $2."
}

# Demands a program. Arguments: its name, where it comes from.
need_program() {
  command -v "$1" >/dev/null || refuse "$1 is missing; $2."
}

# Demands a positive number. Arguments: a variable's name.
need_number() {
  [[ ${!1} =~ ^[1-9][0-9]*$ ]] || refuse "$1 is '${!1}'; it must be a positive number."
}

# Demands a run folder that every host can reach, and gives programs a cache beside it.
need_bucket() {
  need RUN_DIR "the run folder, such as gs://bucket/runs/dog"
  [[ $RUN_DIR == gs://* ]] || refuse "RUN_DIR is '$RUN_DIR'; the hosts share no disk, so it must be a gs:// address."
  local bucket=${RUN_DIR#gs://}
  CACHE_DIR=${CACHE_DIR:-gs://${bucket%%/*}/jax-cache}
}

case "${1:-}" in
-h | --help) echo "${help:?}" && exit ;;
esac
