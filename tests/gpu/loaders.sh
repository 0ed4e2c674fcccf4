#!/usr/bin/env bash
# Everything about loading that needs a GPU: same pixels on the device as on the CPU, then speed.
#
#   bash tests/gpu/loaders.sh DATA [OUT]
#
# DATA is a folder of class folders of photos, OUT (out/gpu by default) gets loaders.json and pytest's words.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${1:?give a folder of class folders of photos, for example path/to/trashnet}
out=${2:-out/gpu}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
mkdir -p "$out"
"$python" -c "import torch, sys; sys.exit(not torch.cuda.is_available())" ||
    { echo "torch sees no CUDA device; this script is for machines that have one" >&2; exit 2; }
"$python" -m pytest -q tests/gpu -p no:cacheprovider | tee "$out/pytest.txt"
"$python" -m tests.gpu.loaders --data "$data" --out "$out/loaders.json" --work "$out/caches"
