#!/bin/sh
# Puts Debian's Redis into the folder given, for the tests that keep sessions in one. The packages are unpacked and not
# installed: no service starts, and no root is needed. Where it cannot be had, those tests skip.
set -eu
target=$1
for program in valkey-server redis-server; do
  if [ -x "$target/$program" ] || command -v "$program" >/dev/null; then exit 0; fi
done
if ! command -v apt-get >/dev/null; then
  echo "No Redis or Valkey here and no apt-get to fetch it: tests that need it will be skipped." >&2
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$(id -u)" = 0 ]; then apt-get -qq update >"$work/log" 2>&1 || true; fi
libraries=$(apt-cache depends redis-tools | sed -n 's/^ *Depends: \(lib.*\)/\1/p')
if ! (cd "$work" && apt-get -qq download redis-tools $libraries) >>"$work/log" 2>&1; then
  echo "Redis could not be fetched, tests that need it will be skipped: $(tail -n 1 "$work/log")" >&2
  exit 0
fi
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
# Beside the server lie the libraries that this machine lacks; a launcher names their folder.
here=$(cd "$target" && pwd -P)/redis-server.d
mkdir -p "$here"
cp -L "$work/root/usr/bin/redis-check-rdb" "$here/redis-server" # one program; what it does goes by its name
ldd "$here/redis-server" | awk '/not found/ { print $1 }' | while read -r library; do
  find "$work/root" -name "$library" -exec cp -L {} "$here" \;
done
printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s/redis-server" "$@"\n' "$here" "$here" >"$target/redis-server"
chmod +x "$target/redis-server"
