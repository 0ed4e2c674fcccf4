"""What distillation costs once the teacher has spoken: runs that read its answers against plain training; writes JSON.

    python -m tests.benchmarks.distillation_epoch --cache out/bench/trashnet-112 \
        --teacher out/bench/trashnet-pretrained-0
    python -m tests.benchmarks.distillation_epoch --table

Each run trains the seed network at 80 px for two epochs from the same cache, with random crops and flips. `steps` are
the epochs without what surrounds them, `whole` is the run with reading the answers, evaluation and checkpoints. The
answers are there before the first round. The first of one round is the last of the next; ratios are taken within a
round. One process, float32, all cores.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from pipelines.console.files import write_json
from pipelines.console.output import say
from tests.benchmarks.rivals.facts import circumstances, spread
from training.distill import distill
from training.distillation.options import DistillConfig, MethodConfig, TeacherConfig
from training.engine.config import DataConfig, ModelConfig
from training.engine.optimization import ScheduleConfig

RESULTS = Path(__file__).parent / "results" / "distillation_epoch.json"
WAYS = {
    "plain": MethodConfig(name="kd", alpha=0.0),
    "kd": MethodConfig(name="kd"),
    "dist": MethodConfig(name="dist"),
    "relational": MethodConfig(name="relational"),
    "kd,feature": MethodConfig(name="kd,feature"),
    "kd,feature of blocks.6": MethodConfig(name="kd,feature", teacher_layer="blocks.6"),
}
GOAL = 1.1
PACKAGES = ("torch", "timm", "accelerate", "numpy", "pyarrow")


def once(options, way, folder):
    """Seconds of the steps and of the whole run, and CPU seconds per 1,000 images."""
    config = DistillConfig(
        data=DataConfig(path=options.cache, size=80, min_area=0.25, views=1, engine="cpu"),
        model=ModelConfig(name="shufflenet_g3_wd4"),
        schedule=ScheduleConfig(epochs=options.epochs, warmup_epochs=0),
        teacher=TeacherConfig(paths=str(options.teacher), cache=folder / "answers"),
        method=WAYS[way],
        out=folder / "run",
        overwrite=True,
        trackers="",
    )
    cpu = time.process_time()
    report = distill(config)
    cpu = time.process_time() - cpu
    images = report["steps"] * config.data.batch_size
    log = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    seconds = sum(line["seconds"] for line in log)
    return {"steps": seconds, "whole": report["seconds"], "images": images, "cpu_per_1000": 1000 * cpu / images}


def measure(options):
    """Run everything; the results file is written after every round."""
    entry = circumstances(PACKAGES) | {"epochs": options.epochs, "runs": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in WAYS:  # warm, and the answers
            once(argparse.Namespace(**{**vars(options), "epochs": 1}), way, folder)
        for number in range(options.rounds):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                load = round(os.getloadavg()[0], 2)
                found = once(options, way, folder)
                entry["runs"].append({"round": number, "way": way, "load": load, **found})
                say(f"round {number + 1}: {way} {found['steps']:.1f} s, whole {found['whole']:.1f} s, load {load}")
            write_json(options.out, entry)
    return entry


def ratios(entry, way, what):
    """Of a way to plain training, per round."""
    runs = {(run["round"], run["way"]): run[what] for run in entry["runs"]}
    return [runs[number, way] / runs[number, "plain"] for number in sorted({number for number, _ in runs})]


def render(entry):
    """The Markdown table."""
    machine, loads = entry["machine"], [run["load"] for run in entry["runs"]]
    lines = [
        f"shufflenet_g3_wd4 at 80 px, batch 64, {entry['epochs']} epochs, answers of EfficientNet-Lite0 at 96 px kept; "
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, torch {entry['versions']['torch']}, "
        f"load {min(loads)} to {max(loads)}; {entry['date']}, commit {entry['git']}. Medians of rounds (least-most).",
        "",
        "| method | time of the steps / plain | whole run / plain | CPU s per 1,000 images | goal, whole run |",
        "|---|---|---|---|---|",
    ]
    for way in WAYS:
        cpu = spread([run["cpu_per_1000"] for run in entry["runs"] if run["way"] == way], 2)
        if way == "plain":
            lines.append(f"| plain training | 1 | 1 | {cpu} | |")
            continue
        whole = ratios(entry, way, "whole")
        verdict = "met" if median(whole) <= GOAL else "missed"
        lines.append(
            f"| {way} | {spread(ratios(entry, way, 'steps'), 3)} | {spread(whole, 3)} | {cpu} | {GOAL}: {verdict} |"
        )
    return "\n".join(lines)


def main():
    """Measure and render, or only render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="a cache of at least 96 px with train and val splits")
    parser.add_argument("--teacher", type=Path, help="a run folder")
    parser.add_argument("--epochs", type=int, default=2, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results, JSON")
    parser.add_argument("--table", action="store_true", help="only render the table from --out")
    options = parser.parse_args()
    if not options.table and (options.cache is None or options.teacher is None):
        parser.error("--cache and --teacher are missing")
    entry = json.loads(options.out.read_text(encoding="utf-8")) if options.table else measure(options)
    sys.stdout.write(render(entry) + "\n")


if __name__ == "__main__":
    main()
