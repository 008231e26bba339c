#!/usr/bin/env bash
# Trains on several GPUs (processes on CPU where there is none): dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT (29500), on each machine. On one machine the port is a free one.
set -euo pipefail
if (($# < 2)); then
  sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/_torchrun.sh"
torchrun_tool train.py "$2" "$1" "${@:3}"
