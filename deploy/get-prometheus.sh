#!/bin/sh
# Puts Debian's Prometheus into the folder given, for the tests that let it scrape the server. The package is
# unpacked and not installed: no service starts, and no root is needed. Where it cannot be had, those tests skip.
set -eu
target=$1
if [ -x "$target/prometheus" ] || command -v prometheus >/dev/null; then exit 0; fi
if ! command -v apt-get >/dev/null; then
  echo "No Prometheus here and no apt-get to fetch it: tests that need it will be skipped." >&2
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$(id -u)" = 0 ]; then apt-get -qq update >"$work/log" 2>&1 || true; fi
if (cd "$work" && apt-get -qq download prometheus) >>"$work/log" 2>&1; then
  dpkg-deb -x "$work"/prometheus_*.deb "$work"
  cp "$work/usr/bin/prometheus" "$target/prometheus"
else
  echo "Prometheus could not be fetched, tests that need it will be skipped: $(tail -n 1 "$work/log")" >&2
fi
