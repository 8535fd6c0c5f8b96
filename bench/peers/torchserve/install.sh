#!/bin/sh
# Installs TorchServe, which needs java (17 works).
java -version 2>/dev/null || { echo "TorchServe needs java. Debian: apt-get install openjdk-17-jre-headless" >&2; exit 1; }
exec "$(dirname "$0")/../install.sh" torchserve torchserve torch-model-archiver grpcio grpcio-tools googleapis-common-protos pyyaml
