#!/bin/sh
# Installs BentoML.
exec "$(dirname "$0")/../install.sh" bentoml "bentoml"
