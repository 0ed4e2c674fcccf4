#!/usr/bin/env bash
# Everything that needs a GPU, in less than 10 minutes: pixels, speed, training, cache build, memory, unit tests.
#
#   bash tests/gpu/run.sh OUTPUT_DIR [--minutes 9] [--only pixels throughput ...] [--without_dali]
#   REHEARSE=1 bash tests/gpu/run.sh OUTPUT_DIR     the same on a CPU, tiny, to see whether everything runs
#
# OUTPUT_DIR gets results.json, results.md and log.txt. TACOPRESS_DATA names a folder that holds taco/ or trashnet/;
# without it a sample is rendered. PYTHON names the interpreter, TACOPRESS_COMMIT the commit where there is no git.
set -euo pipefail
out=${1:?give a folder for the results, for example out/gpu}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=$(command -v python3 || command -v python); fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
rehearse=()
if [ -n "${REHEARSE:-}" ]; then rehearse=(--rehearse); fi
exec "$PYTHON" -m tests.gpu.suite "$out" "${rehearse[@]+"${rehearse[@]}"}" "$@"
