#!/bin/sh
# install.sh NAME REQUIREMENT...: makes bench/peers/.venvs/NAME with what a peer and the load generator need.
# Called by the peers' own scripts. PYTHON names the interpreter whose pip does it.
set -e
name=$1; shift
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || { echo "No $python. Run make setup, or name one: PYTHON=/path/to/python3 $0" >&2; exit 1; }
venv=$root/bench/peers/.venvs/$name
echo "Installing $* into $venv: a few minutes"
# A file at the end says that all of it is there.
rm -rf "$venv" && "$python" -m venv --without-pip "$venv"
"$python" -m pip --python "$venv/bin/python" install -q --disable-pip-version-check \
  -c "$root/constraints.txt" torch safetensors numpy psutil uvloop "$@"
touch "$venv/installed"
echo "$name is installed. Measure it: make bench-peers"
