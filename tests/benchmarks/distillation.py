"""Every method of distillation on real photos: two students, two data sets, paired seeds; resumable.

    python -m tests.benchmarks.distillation --data taco=path/to/taco trashnet=path/to/trashnet \
        --teacher_weights tf_efficientnet_lite0.pth
    python -m tests.benchmarks.distillation --table

The teacher is EfficientNet-Lite0 with ImageNet weights, fine-tuned on the same split at 96 px by the recipe
`pretrained`, without label smoothing, which makes worse teachers (Müller et al. 2019, arXiv 1906.02629).
Students are trained from scratch: the seed network at 80 px by the options of the recipe `competition`, and
mobilenetv3_small_050 at 64 px by those of `quick`, for 20 epochs over the crops and two copies of each. All rows of a
student have the same steps (of the autoencoder's, 30 % before; what the links of a chain cost comes on top), seeds,
order, crops and flips; nothing is chosen by the test, the weights after the last epoch count. What is done is kept run
by run below --out and gathered in `tests/benchmarks/results/distillation.json` and `distillation.png`; the same command
goes on, here or in another clone that has these. The sentences of `python -m training.distill --methods` are put into
`training/distillation/measured.json`.
"""

import argparse
import json
import sys
from pathlib import Path

from pipelines.console.files import write_bytes, write_json
from tests.benchmarks.distillation_report import draw, render, sentences
from tests.benchmarks.distillation_running import DATA, RESULTS, ROWS, STUDENTS, collect, measure

PICTURE = RESULTS.with_suffix(".png")
MEASURED = Path(__file__).parents[2] / "training" / "distillation" / "measured.json"


def main():
    """Measure or render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only gather what is done, and render table and picture")
    parser.add_argument("--data", nargs="+", default=[], help="taco=PATH and trashnet=PATH")
    parser.add_argument("--teacher_weights", type=Path, help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for caches and runs")
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=list(STUDENTS))
    parser.add_argument("--names", nargs="+", default=list(DATA), choices=list(DATA), help="which data sets")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW", help="in order")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--epochs", nargs=2, type=int, default=[20, 20], metavar=("TRASHNET", "TACO"))
    options = parser.parse_args()
    options.epochs = dict(zip(DATA, options.epochs, strict=True))
    options.data = {name: Path(path) for name, _, path in (word.partition("=") for word in options.data)}
    if not options.table:
        measure(options)
    collect(options)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_json(MEASURED, sentences(results))
    if picture := draw(results):
        write_bytes(PICTURE, picture)
    sys.stdout.write(render(results) + "\n")


if __name__ == "__main__":
    main()
