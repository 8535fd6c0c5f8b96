#!/usr/bin/env bash
# Serves the shipped models, streams real text and a real sensor through them and shows what came out; in a terminal it
# ends with a prompt for your own text. TEXT and VALUES name other files to stream, MODELS other bundles, OUT a folder
# for what it writes.
set -euo pipefail
cd "$(dirname "$0")/../.."
text=${TEXT:-deploy/demo/text.txt}
values=${VALUES:-deploy/demo/weather.csv}
out=${OUT:-runs/demo}
mkdir -p "$out"
for file in server.log watch.txt; do : >"$out/$file"; done # what an earlier run left would be taken for this one's

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }

stop() { # a process that was told to end
  wait "$1" || { echo "it exited with $?" >&2; cat "$out/server.log" >&2; exit 1; }
}

read -r port metrics < <(python - <<'EOF'
import socket
a, b = socket.create_server(("", 0)), socket.create_server(("", 0))
print(a.getsockname()[1], b.getsockname()[1])
EOF
)
export HIDDENSTATE_SERVER=localhost:$port

# What the demo keeps of its sessions goes with it.
export HIDDENSTATE_STATE_FOLDER="$out/state"
title "\$ hiddenstate-server --port $port --metrics-port $metrics${MODELS:+ --models $MODELS}"
hiddenstate-server --port "$port" --metrics-port "$metrics" ${MODELS:+--models "$MODELS"} >"$out/server.log" 2>&1 &
server=$!
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
until grep -m 1 ' ready on ' "$out/server.log"; do
  kill -0 "$server" 2>/dev/null || stop "$server"
  sleep 0.1
done
echo "metrics on http://localhost:$metrics/metrics, log in $out/server.log"

title "\$ hiddenstate models"
hiddenstate models

title "\$ hiddenstate type < $text"
hiddenstate type <"$text"

title "\$ hiddenstate watch --plot $out/watch.png < $values"
mkfifo "$out/sensor"
hiddenstate watch --plot "$out/watch.png" <"$out/sensor" >"$out/watch.txt" &
watch=$!
exec 3>"$out/sensor"
rm "$out/sensor"
cat "$values" >&3
rows=$(($(grep -c . "$values") - 1))
until [ "$(grep -c . "$out/watch.txt")" -ge "$rows" ]; do
  kill -0 "$watch" 2>/dev/null || stop "$watch"
  sleep 0.1
done

title "\$ hiddenstate sessions    (while the sensor is still connected)"
hiddenstate sessions
exec 3>&-
stop "$watch"

title "What watch printed: the beginning, and the end"
head -n 6 "$out/watch.txt"
echo "..."
tail -n 12 "$out/watch.txt"
echo "All of it in $out/watch.txt, the plot in $out/watch.png"

if [ -t 0 ] && [ -t 1 ]; then
  title "\$ hiddenstate type    (your own text: Tab takes a word, Ctrl-D ends)"
  hiddenstate type
fi

title "Stopping the server"
kill -TERM "$server"
stop "$server"
cat <<EOF
It drained and exited with 0.

Try next
  .venv/bin/hiddenstate-server                             serve on localhost:50051; then, in a second terminal:
  .venv/bin/hiddenstate type                               your own text
  your-sensor | .venv/bin/hiddenstate watch --plot my.png  your own values, one a line
  make demo TEXT=my.txt VALUES=my.csv                      this tour with your files
  make bench                                               what it costs
EOF
