# shellcheck shell=bash
# What gke-jobset.sh and gke-many.sh share: both fill in gke-jobset.yaml. They source it before they set their help.

# shellcheck disable=SC2034 # it is part of their help
slice_help="  IMAGE            built from scripts/launch/Dockerfile
  ACCELERATOR      tpu-v5-lite-podslice, tpu-v6e-slice, tpu-v4-podslice, tpu-v5p-slice or tpu7x
  TOPOLOGY         of one slice in chips, such as 4x4
  NUM_SLICES       default 1
  CHIPS_PER_HOST   default 4
  SPOT             1 (default): spot nodes; 0: others
  PHOTOS           gs:// folder that every host copies to ./photos first
  SERVICE_ACCOUNT  of Kubernetes, with access to the buckets; default: default
  MAX_RESTARTS     default 20
  GRACE_SECONDS    from SIGTERM to SIGKILL; default 120 (spot nodes may grant less)"

# Takes a launcher's arguments: `print` is 1 after --print, and ARGS are the others as JSON.
take_arguments() {
  print=0
  if [[ ${1:-} == --print ]]; then
    print=1
    shift
  fi
  need_program python3 "it quotes the flags"
  need_program envsubst "the package gettext brings it"
  ARGS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
  export ARGS
}

# Demands what describes the slices, and sets what follows from it: HOSTS of a slice, and the defaults.
need_slices() {
  need NAME "what is started"
  need IMAGE "the image built from scripts/launch/Dockerfile"
  need ACCELERATOR "the kind of TPU, such as tpu-v5-lite-podslice"
  need TOPOLOGY "a slice's shape in chips, such as 4x4"
  NUM_SLICES=${NUM_SLICES:-1} CHIPS_PER_HOST=${CHIPS_PER_HOST:-4} MAX_RESTARTS=${MAX_RESTARTS:-20}
  GRACE_SECONDS=${GRACE_SECONDS:-120} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default} PHOTOS=${PHOTOS:-}
  local number
  for number in NUM_SLICES CHIPS_PER_HOST MAX_RESTARTS GRACE_SECONDS; do need_number "$number"; done
  [[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || refuse "TOPOLOGY is '$TOPOLOGY'; it looks like 4x4 or 2x2x2."
  chips=$((${TOPOLOGY//x/*}))
  ((chips % CHIPS_PER_HOST == 0)) || refuse "$chips chips of $TOPOLOGY are not hosts of CHIPS_PER_HOST=$CHIPS_PER_HOST."
  HOSTS=$((chips / CHIPS_PER_HOST))
  export NAME IMAGE ACCELERATOR TOPOLOGY RUN_DIR CACHE_DIR CHIPS_PER_HOST MAX_RESTARTS GRACE_SECONDS
  export SERVICE_ACCOUNT PHOTOS HOSTS
}

# Prints gke-jobset.yaml with the values of its variables, which are exported.
filled() {
  local unwanted=()
  [[ ${SPOT:-1} == 1 ]] || unwanted+=(-e /gke-spot/d)
  ((HOSTS > 1)) || unwanted+=(-e /exclusive-topology/d) # each node of the pool is a slice
  # shellcheck disable=SC2154 # the scripts set it
  sed -e '' "${unwanted[@]}" "$here/gke-jobset.yaml" | envsubst
}

# Applies JobSets and says how to follow them; after --print it shows them instead. Arguments: their YAML.
apply() {
  if ((print)); then
    printf '%s\n' "$1"
    return
  fi
  need_program kubectl "gcloud components install kubectl brings it"
  kubectl apply -f - <<<"$1"
  local all="app.kubernetes.io/part-of=$NAME"
  echo "$((chips * NUM_SLICES)) chips: as many chip-hours an hour; jaxbooth plan says how many hours a run takes."
  echo "To watch: kubectl logs -f --prefix --max-log-requests=$((HOSTS * NUM_SLICES)) -l $all"
  echo "To stop (hosts save first) and to go on: kubectl delete jobset -l $all, then the same command."
}
