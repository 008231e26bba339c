#!/usr/bin/env bash
# Evaluates on several GPUs (processes on CPU where there is none): dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT (29500), on each machine. On one machine the port is a free one.
set -euo pipefail
if (($# < 3)); then
  sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/_torchrun.sh"
torchrun_tool test.py "$3" "$1" "$2" "${@:4}"
