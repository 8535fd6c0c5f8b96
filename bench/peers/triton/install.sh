#!/bin/sh
# Installs Triton Inference Server, by the wheel that ships its binaries.
exec "$(dirname "$0")/../install.sh" triton "nvidia-pytriton==0.7.0"
