#!/usr/bin/env bash
# Sets up the environment and runs the main job; arguments go to `scalenet experiment quickstart`.
set -euo pipefail
root=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
env=$(realpath -ms "${SCALENET_ENV:-$root/.venv}")
bash "$root/tools/setup_env.sh"
unset PYTHONPATH PYTHONHOME
cd "$root"
exec "$env/bin/python" -m scalenet_mm experiment quickstart "$@"
