#!/usr/bin/env bash
# Sets up the Python environment of this checkout (.venv); a second run does nothing.
# `bash tools/setup_env.sh --help` lists the options. This file finds a Python; _setup/ does the work.
set -euo pipefail
root=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
env=${SCALENET_ENV:-$root/.venv}
python=${SCALENET_PYTHON:-}

args=("$@")
for ((i = 0; i < $#; i++)); do
  case "${args[i]}" in
    --env) env=${args[i + 1]:-} ;;
    --env=*) env=${args[i]#*=} ;;
    --python) python=${args[i + 1]:-} ;;
    --python=*) python=${args[i]#*=} ;;
  esac
done

env=${env/#\~\//$HOME/}  # a shell leaves ~ in --env=~/x

usable() {
  "$1" -I -c 'import sys; sys.exit(sys.version_info[:2] < (3, 10))' 2>/dev/null
}

if [[ -n $python ]] && ! usable "$python"; then
  echo "setup_env: $python is no Python 3.10 or newer; name another one with --python." >&2
  exit 1
fi
for candidate in "$python" "$env/bin/python" python3.11 python3.12 python3.13 python3.10 python3 python; do
  if [[ -n $candidate ]] && usable "$candidate"; then
    exec "$candidate" -I "$root/tools/_setup" "$@"
  fi
done
echo "setup_env: no Python 3.10 or newer was found; install one or name it with --python." >&2
exit 1
