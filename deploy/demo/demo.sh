#!/usr/bin/env bash
# Serves the shipped models, streams real text and a real sensor through them and shows what came out.
# In a terminal it ends with a prompt for text of your own. TEXT and VALUES name other files to stream, OUT a folder for
# what it writes.
set -euo pipefail
cd "$(dirname "$0")/../.."
text=${TEXT:-deploy/demo/moon.txt}
values=${VALUES:-deploy/demo/weather.csv}
out=${OUT:-runs/demo}
mkdir -p "$out"

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
say() { title "\$ $*"; "$@"; }

read -r port metrics < <(python - <<'EOF'
import socket
a, b = socket.create_server(("", 0)), socket.create_server(("", 0))
print(a.getsockname()[1], b.getsockname()[1])
EOF
)
address=localhost:$port

title "\$ hiddenstate-server --port $port --metrics-port $metrics &"
hiddenstate-server --port "$port" --metrics-port "$metrics" >"$out/server.log" 2>&1 &
server=$!
stop() { kill -TERM "$server" 2>/dev/null && wait "$server"; }
trap stop EXIT
until python -m hiddenstate_server.healthcheck "$address" >/dev/null; do
  kill -0 "$server" 2>/dev/null || { cat "$out/server.log" >&2; exit 1; }
  sleep 0.2
done
echo "serving on $address, metrics on http://localhost:$metrics/metrics, log in $out/server.log"

say hiddenstate models --address "$address"

title "\$ hiddenstate type --address $address < $text"
hiddenstate type --address "$address" <"$text"

title "\$ hiddenstate watch --address $address --plot $out/watch.png < $values"
hiddenstate watch --address "$address" --plot "$out/watch.png" <"$values" >"$out/watch.txt"
head -n 4 "$out/watch.txt"
echo "..."
tail -n 12 "$out/watch.txt"
echo "every line in $out/watch.txt, the plot in $out/watch.png"

say hiddenstate sessions --address "$address"

if [ -t 0 ] && [ -t 1 ]; then
  title "Your own text: Tab takes a word, Ctrl-D ends"
  hiddenstate type --address "$address"
fi

title "Stopping the server"
trap - EXIT
stop
cat <<EOF
it drained and exited with 0

Try next:
  .venv/bin/hiddenstate-server                                        serve on localhost:50051
  .venv/bin/hiddenstate type                                          your own text, in a second terminal
  your-sensor | .venv/bin/hiddenstate watch --plot my.png             your own values, one a line
  make demo TEXT=my.txt VALUES=my.csv                                 this tour with your files
  make bench                                                          what it costs
EOF
