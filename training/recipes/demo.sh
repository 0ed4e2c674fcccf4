#!/usr/bin/env bash
# The whole road, one job after the other: what `make demo` runs. Environment: BIN (folder of python and accelerate),
# OUT (folder for everything), RECIPE (name of a recipe), DATA (real photos; empty for the rendered sample).
set -euo pipefail

recipes=$(cd "$(dirname "$0")" && pwd)
if [ ! -f "$recipes/$RECIPE.yaml" ]; then
  echo "RECIPE=$RECIPE is none of: $(cd "$recipes" && echo ./*.yaml)" >&2
  exit 2
fi
say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

if [ -z "${DATA:-}" ]; then
  say "$BIN/python" -m augment_cache.sample --out "$OUT/photos" --overwrite true
  DATA=$OUT/photos
fi
crops=$DATA
if [ -f "$DATA/annotations.json" ]; then
  crops=$OUT/crops
  say "$BIN/python" -m augment_cache.crop --data "$DATA" --out "$crops" --overwrite true
fi
# A little larger than what the recipes train at, so that random crops are not enlarged.
say "$BIN/python" -m augment_cache.build --data "$crops" --out "$OUT/cache" --size 80 --force
say "$BIN/python" -m augment_cache.preview --cache "$OUT/cache" --out "$OUT/copies.png"
say "$BIN/accelerate" launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
  -m training.train --config "$recipes/$RECIPE.yaml" --data.path "$OUT/cache" --out "$OUT/run" --overwrite true
say "$BIN/python" -m training.evaluate --model "$OUT/run" --data "$OUT/cache"
rm -rf "$OUT/ladder" # it belongs to the model of the run before
say "$BIN/python" -m compress.ladder --recipe demo --model "$OUT/run" --data "$OUT/cache" --work "$OUT/ladder" --test true
say "$BIN/python" -m compress.export --model "$OUT/ladder/model.safetensors"
say "$BIN/python" -m training.predict --model "$OUT/ladder/model.onnx" --data "$OUT/cache" --out "$OUT/predictions.csv"
printf '\nLook at %s, %s and %s\n' "$OUT/copies.png" "$OUT/run/confusion_test.png" "$OUT/ladder/ladder.png"
