#!/bin/bash
# (directives)

# One model server on one node, or on each node of an array. While it answers, the file $ready has
# its address.
#
# With a key (WORKBENCH_API_KEY), it listens on the cluster's network and requires the key. Without
# one, it listens on its node only, where other users may still reach it, and the tunnel goes
# through ssh to the node. The job's log has the command for the tunnel.
#
# The key is not in this file. It comes from a file that only its owner can read (key_file), or from
# the environment that sbatch passes on (--export=ALL, its default).
set -euo pipefail

# (settings)

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

running() { kill -0 "$server" 2>/dev/null; }

# Without ~/.curlrc and without a proxy.
answers() { curl -q -sf --noproxy '*' -m 5 -o /dev/null "http://127.0.0.1:$port/health"; }

stop() { # the server may finish running requests
  trap '' TERM INT
  rm -f -- "$ready"
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" || exit $?
  exit 0
}

clean() {
  rm -f -- "$ready" "$ready.part"
  kill -TERM "$server" 2>/dev/null || true
}

: "${SLURM_JOB_ID:?is not set: submit this script with sbatch}"
id=$SLURM_JOB_ID
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
ready=$ready-$id.json
rm -f -- "$ready" # of this job before it was started again
node=${SLURMD_NODENAME:-$(hostname)}
login=${USER:-$(id -un)}@${SLURM_SUBMIT_HOST:-LOGIN}
command -v curl >/dev/null || die 'curl is not on this node: it is needed to check the server'

if [[ -n $key_file ]]; then
  [[ -r $key_file ]] || die "key file $key_file cannot be read"
  case $(stat -L -c %a -- "$key_file") in
    600 | 400) ;;
    *) die "key file $key_file can be read by others: chmod 600 it" ;;
  esac
  WORKBENCH_API_KEY=$(<"$key_file")
  [[ -n $WORKBENCH_API_KEY ]] || die "key file $key_file is empty"
  export WORKBENCH_API_KEY
fi

if [[ -z $port ]]; then
  port=$((20000 + RANDOM % 12000))
  while taken "$port"; do port=$((20000 + RANDOM % 12000)); done
elif taken "$port"; then
  die "port $port of $node is taken: choose another, or none for a free one"
fi

if [[ -n ${WORKBENCH_API_KEY:-} ]]; then
  host=0.0.0.0 url=http://$node:$port/v1
  tunnel="ssh -N -L $port:$node:$port $login"
else
  host=127.0.0.1 url=http://127.0.0.1:$port/v1
  tunnel="ssh -N -J $login -L $port:127.0.0.1:$port $node"
fi

"${serve[@]}" --host "$host" --port "$port" &
server=$!
trap clean EXIT
trap stop TERM INT

until answers; do
  running || break
  sleep 1
done
if running; then
  printf '{"host": "%s", "port": %d, "url": "%s", "job_id": "%s", "model": %s}\n' \
    "$node" "$port" "$url" "$id" "$model" >"$ready.part"
  mv -- "$ready.part" "$ready"
  echo "ready: $ready"
  echo "reach it from your machine: $tunnel"
  echo "and there: export WORKBENCH_BASE_URL=http://127.0.0.1:$port/v1"
fi
wait "$server"
