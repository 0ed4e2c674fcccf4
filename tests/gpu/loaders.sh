#!/usr/bin/env bash
# What run.sh has about loading: same pixels and order on the device as on the CPU, then speed, then leaks.
#
#   bash tests/gpu/loaders.sh OUTPUT_DIR [--minutes 5]
set -euo pipefail
out=${1:?give a folder for the results, for example out/gpu}
shift
exec bash "$(dirname "$0")/run.sh" "$out" --minutes 5 "$@" --only pixels unit throughput memory
