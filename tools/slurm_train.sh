#!/usr/bin/env bash
# Trains under Slurm: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]
# By variables: GPUS (8, in all), GPUS_PER_NODE (8; 0: GPUS processes on CPU), CPUS_PER_TASK (5), SRUN_ARGS.
set -euo pipefail
if (($# < 4)); then
  sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
root=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(realpath -ms "${SCALENET_ENV:-$root/.venv}")/bin/python
if [[ ! -x $python && -x ${python}3 ]]; then python=${python}3; fi
if [[ ! -x $python && -z ${SCALENET_ENV:-} ]]; then python=python; fi

for name in GPUS GPUS_PER_NODE CPUS_PER_TASK; do
  if [[ ! ${!name:-1} =~ ^(0|[1-9][0-9]*)$ || ($name != GPUS_PER_NODE && ${!name:-1} == 0) ]]; then
    echo "$name must be a whole number >= 1 (GPUS_PER_NODE: or 0), got '${!name}'." >&2
    exit 2
  fi
done
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
where=(--ntasks="$gpus" --cpus-per-task="${CPUS_PER_TASK:-5}")
if ((per_node > 0)); then where+=(--ntasks-per-node="$per_node" --gres="gpu:$per_node"); fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# SRUN_ARGS holds several arguments, so it is not quoted
exec srun --partition="$1" --job-name="$2" "${where[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "$python" -u "$root/tools/train.py" "$3" --work-dir="$4" --launcher=slurm "${@:5}"
