# Sourced by dist_train.sh and dist_test.sh. Usage: torchrun_tool TOOL PROCESSES [arguments of TOOL]
# Starts PROCESSES of tools/TOOL on this machine: one a GPU, or on CPU where there is no GPU.
torchrun_tool() {
  local root tool=$1 processes=$2 python found gpus cores where
  root=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  shift 2
  python=$(realpath -ms "${SCALENET_ENV:-$root/.venv}")/bin/python
  if [[ ! -x $python && -x ${python}3 ]]; then python=${python}3; fi
  if [[ ! -x $python && -z ${SCALENET_ENV:-} ]]; then python=python; fi

  if [[ ! $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "GPUS must be a whole number >= 1, got '$processes'." >&2
    return 2
  fi
  export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
  found=$("$python" -c \
    'import torch; from scalenet_mm.cores import cores; print(torch.cuda.device_count(), cores())') || return
  read -r gpus cores <<<"$found"
  if ((gpus > 0 && processes > gpus)); then
    echo "$processes GPUs were asked for, but this machine has $gpus: ask for at most $gpus." >&2
    return 2
  fi
  if ((gpus == 0)); then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
    echo "No GPU: $processes processes on CPU (gloo), $OMP_NUM_THREADS threads each." >&2
  else
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  fi

  if [[ ! ${NNODES:-1} =~ ^[1-9][0-9]*$ ]]; then
    echo "NNODES must be a whole number >= 1, got '$NNODES'." >&2
    return 2
  fi
  if ((${NNODES:-1} > 1)); then
    if [[ -z ${MASTER_ADDR:-} || -z ${NODE_RANK:-} ]]; then
      echo "NNODES=$NNODES needs MASTER_ADDR (of the first machine) and NODE_RANK (0 ... $((NNODES - 1)))." >&2
      return 2
    fi
    where=(--nnodes="$NNODES" --node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port="${PORT:-29500}")
  elif [[ -n ${PORT:-} ]]; then
    where=(--master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="$PORT")
  else
    where=(--rdzv-backend=c10d --rdzv-endpoint=localhost:0)  # a free port
  fi
  exec "$python" -m torch.distributed.run "${where[@]}" --nproc-per-node="$processes" \
    "$root/tools/$tool" "$@" --launcher pytorch
}
