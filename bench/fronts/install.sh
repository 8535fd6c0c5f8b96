#!/bin/sh
# Installs the servers that `python -m bench.fronts` measures beside gRPC, each into bench/fronts/.venvs/NAME.
# PYTHON names the interpreter that makes the environments.
set -e
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
[ -x "$python" ] || { echo "No $python. Run make setup, or name one: PYTHON=/path/to/python3 $0" >&2; exit 1; }
for name in ${*:-grpclib granian pyvoy}; do
  echo "Installing $name"
  rm -rf "$here/.venvs/$name" && "$python" -m venv --without-pip "$here/.venvs/$name"
  "$python" -m pip --python "$here/.venvs/$name/bin/python" install -q --disable-pip-version-check "$name" uvloop
done
