#!/usr/bin/env bash
# Sets up the environment and runs the tests: the fast ones, or with --slow or --gpu those of that
# tier. Everything else on the command line goes to pytest.
set -euo pipefail
root=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

tier='not slow and not gpu'
pytest_args=()
for arg in "$@"; do
  case "$arg" in
    --slow) tier='slow and not gpu' ;;
    --gpu) tier='gpu' ;;
    *) pytest_args+=("$arg") ;;
  esac
done

env=$(realpath -ms "${SCALENET_ENV:-$root/.venv}")
bash "$root/tools/setup_env.sh"
unset PYTHONPATH PYTHONHOME
# The networks are tiny: one thread in each of several processes beats several threads in one.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONNOUSERSITE=1
workers=$(env -u OMP_NUM_THREADS nproc)  # nproc heeds that variable
cd "$root"
exec "$env/bin/python" -m pytest -m "$tier" \
  -n "$((workers < 8 ? workers : 8))" ${pytest_args[@]+"${pytest_args[@]}"}
