#!/bin/sh
# Installs LitServe.
exec "$(dirname "$0")/../install.sh" litserve "litserve"
