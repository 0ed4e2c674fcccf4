"""Macro F1 over MACs of pressed networks, against the same small networks trained from scratch; resumable.

    python -m tests.benchmarks.pressing --data trashnet=path/to/trashnet taco=path/to/taco \
        --teacher_weights tf_efficientnet_lite0.pth
    python -m tests.benchmarks.pressing --table

The seed network at 80 px learns from the teacher of `tests.benchmarks.distillation` (kd, the recipe `distill`) on the
train split. Then it is pressed by layers, by channels, and by both, to several shares of its MACs, each in one shot,
and recovers with the same teacher. The baseline of each point is the very same small network with random weights,
taught for as many steps as the large one and the recovery took together. `whole` is the large network with the steps
of a recovery on top. Nothing is chosen by the test: the weights after the last epoch count. What is done is kept run
by run below --out and gathered in `tests/benchmarks/results/pressing.json` and `pressing.png`; the same command goes
on, here or in another clone that has these.
"""

import argparse
import io
import json
import sys
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from compress.press.contract import open_subject
from pipelines.console.files import write_bytes, write_json
from tests.benchmarks.distillation_report import chance, numbers, paired
from tests.benchmarks.distillation_running import (
    VIEWS,
    gather,
    in_parallel,
    provenance,
    steps_of,
    teach,
    tested,
    write_results,
)
from tests.benchmarks.real_data import RECIPES, job, prepare
from training.measure.macs import count_macs

HERE = Path(__file__).parent
RESULTS, PICTURE = HERE / "results" / "pressing.json", HERE / "results" / "pressing.png"
STUDENT, CACHE_SIZE = "shufflenet_g3_wd4", 112
SHARES = {"layers": (0.64, 0.5, 0.35), "channels": (0.64, 0.5, 0.3), "both": (0.64, 0.5, 0.3)}
"""Way → shares of the MACs. Without any of the blocks that can go, 0.345 are left: layers alone go no further."""
SEEDS = (0, 1, 2)
EPOCHS, RECOVERY = 20, 10
PLACE = ("data", "way", "share", "seed", "kind")
"""Where a run stands in the table."""


def folder(options, *parts):
    """Where a run lies."""
    return options.out / "pressing" / "-".join(map(str, parts))


def cache(options, data):
    """The augmentation cache."""
    return options.out / f"{data}-{CACHE_SIZE}"


def make_teacher(data, options):
    """It learns from the train split only: the validation split ranks layers."""
    teach(folder(options, data, "teacher"), cache(options, data), options.teacher_weights)


def learn(options, data, seed, run, epochs, *words):
    """Teach a network."""
    common = ["--config", RECIPES / "distill.yaml", "--data.path", cache(options, data), "--data.views", VIEWS]
    common += ["--teacher.paths", f"{folder(options, data, 'teacher')}.onnx", "--seed", seed]
    common += ["--schedule.epochs", epochs]
    common += ["--threads", 1, "--data.threads", 1, "--trackers", "", "--save.minutes", 5]
    job("training.distill", *common, *words, "--out", run)


RECOVER = ("--optimizer.lr", 4e-3, "--schedule.warmup_epochs", 1)
CHANNELS = ("--importance", "taylor", "--scope", "global")
"""Chosen by the validation split of TrashNet, seed 0, 64 % of the MACs: with 1e-3 recoveries ended 0.05 (layers) to
0.11 (channels) lower, channels by magnitude and layer 0.02 lower."""


def press(options, data, seed, way, share):
    """The pressed model file."""
    out = folder(options, data, way, share, seed, "pressed.safetensors")
    start = folder(options, data, "base", seed) / "last.safetensors"
    if out.is_file():
        return out
    if way == "both":
        half = share**0.5
        first = press(options, data, seed, "layers", round(half, 4))
        _channels(options, data, first, share / measured_share(first, start), out)
    elif way == "layers":
        by = ["--data", cache(options, data), "--rank_by", "ablation"]
        job("compress.layers", "--model", start, "--target_share", share, *by, "--out", out)
    else:
        _channels(options, data, start, share, out)
    return out


def _channels(options, data, model, share, out):
    words = ["--data", cache(options, data), *CHANNELS]
    job("compress.channels", "--model", model, "--target_share", share, *words, "--out", out)


def measured_share(pressed, start):
    """MACs of one file over those of another."""
    one, other = (open_subject(path) for path in (pressed, start))
    return count_macs(one.model, one.card.size).macs / count_macs(other.model, other.card.size).macs


def base(data, seed, options):
    """The network that is pressed."""
    run = folder(options, data, "base", seed)
    if not (run / "last.safetensors").is_file():
        learn(options, data, seed, run, EPOCHS, "--model.name", STUDENT)


def point(data, way, share, seed, kind, options):
    """One run of the curve: a network that recovers, or the same one from scratch."""
    start = folder(options, data, "base", seed) / "last.safetensors"
    file = start if way == "whole" else press(options, data, seed, way, share)
    epochs, words = (RECOVERY, RECOVER) if kind == "recovered" else (EPOCHS + RECOVERY, ("--model.weights", "random"))
    run = folder(options, data, way, share, seed, kind)
    learn(options, data, seed, run, epochs, "--model.name", file, *words)
    found, answers = tested(run, cache(options, data))
    kept = ("macro_f1", "accuracy", "samples", "macs", "competition_macs", "parameters")
    steps = steps_of(run) + (steps_of(start.parent) if kind == "recovered" else 0)
    write_json(
        run / "result.json",
        {"data": data, "way": way, "share": share, "seed": seed, "kind": kind, "steps": steps}
        | {key: found[key] for key in kept}
        | {"classes": found["classes"], **answers, "about": provenance()},
    )
    sys.stderr.write(f"{run.name}: macro F1 {found['macro_f1']:.4f}, {found['macs']:,} MACs\n")


def measure(options):
    """Do what is left to do."""
    done = gathered(options)[1]
    whole = [(data, "whole", 1.0, seed, "recovered") for data in options.data for seed in SEEDS]
    goals = [(way, share) for way, shares in SHARES.items() for share in shares]
    pressed = [
        (data, *goal, seed, kind)
        for data, goal, seed, kind in product(options.data, goals, SEEDS, ("recovered", "scratch"))
    ]
    left = [place for place in [*whole, *pressed] if place not in done]
    left.sort(key=lambda place: (list(options.data).index(place[0]), -place[2], place[4], place[3]))
    names = sorted({place[0] for place in left})
    for name in names:
        prepare(options.data[name], name, options.out, CACHE_SIZE)
    in_parallel(options, make_teacher, [(name,) for name in names])
    in_parallel(options, base, sorted({(place[0], place[3]) for place in left}))
    in_parallel(options, point, left)


def gathered(options):
    """(data → its test set, place → run): what the results file has, and what is newer below --out."""
    return gather(RESULTS, options.out.glob("pressing/*/result.json"), PLACE)


def collect(options):
    """All results so far into one file."""
    write_results(RESULTS, *gathered(options), epochs=EPOCHS, recovery=RECOVERY, views=VIEWS, cache=CACHE_SIZE)


def points(results, data):
    """(way, share) → kind → its runs by seed."""
    found = {}
    for run in results["runs"]:
        if run["data"] == data:
            found.setdefault((run["way"], run["share"]), {}).setdefault(run["kind"], {})[run["seed"]] = run
    return {key: found[key] for key in sorted(found, key=lambda key: (-key[1], key[0]))}


def render(results):
    """Markdown: a table for each data set."""
    lines = []
    for data in results["tests"]:
        labels, found = numbers(results["tests"][data]["labels"]), points(results, data)
        whole = found.get(("whole", 1.0), {}).get("recovered", {})
        lines += [f"| {data}: press | MACs | macro F1, recovered | from scratch, same steps | recovered - scratch "]
        lines[-1] += "| recovered - whole |"
        lines += ["|---|---|---|---|---|---|"]
        for (way, _), kinds in found.items():
            recovered, scratch = kinds.get("recovered", {}), kinds.get("scratch", {})
            macs = mean(run["macs"] for run in (recovered or scratch).values())
            cells = [way, f"{macs:,.0f}", _score(recovered), _score(scratch)]
            cells += [_gain(labels, scratch, recovered), "" if way == "whole" else _gain(labels, whole, recovered)]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _score(runs):
    scores = [run["macro_f1"] for run in runs.values()]
    if not scores:
        return ""
    return f"{mean(scores):.3f}" + (f" ± {stdev(scores):.3f}" if len(scores) > 1 else "") + f" ({len(scores)})"


def _gain(labels, first, second):
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return ""
    one, other = (np.stack([numbers(runs[seed]["predicted"]) for seed in seeds]) for runs in (first, second))
    gain, low, high, p = paired(labels, one, other)
    return f"{gain:+.3f} ({low:+.3f} to {high:+.3f}), {chance(p)}"


def draw(results):
    """The curves: PNG."""
    names = list(results["tests"])
    figure = Figure(figsize=(7 * len(names), 6), layout="constrained")
    FigureCanvasAgg(figure)
    for number, data in enumerate(names):
        axes = figure.add_subplot(1, len(names), number + 1)
        _draw(axes, points(results, data))
        axes.set_title(f"{STUDENT} at 80 px, {data}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SHARES))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _draw(axes, found):
    for (number, way), kind in product(enumerate(SHARES), ("recovered", "scratch")):
        curve = [
            (mean(run["macs"] for run in runs.values()) / 1e6, [run["macro_f1"] for run in runs.values()])
            for (name, _), kinds in found.items()
            if name in (way, "whole") and (runs := kinds.get(kind))
        ]
        if curve:
            pressed = kind == "recovered"
            axes.errorbar(
                [macs for macs, _ in curve],
                [mean(scores) for _, scores in curve],
                yerr=[stdev(scores) if len(scores) > 1 else 0 for _, scores in curve],
                fmt="o-" if pressed else "o:",
                color=f"C{number}",
                markerfacecolor=f"C{number}" if pressed else "w",
                capsize=3,
                label=f"{way}, {'pressed and recovered' if pressed else 'same network from scratch'}",
            )
    axes.set_xlabel("million MACs")
    axes.set_ylabel("macro F1, test split (mean ± std over seeds)")
    axes.grid(alpha=0.3)


def main():
    """Measure or render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only gather what is done, and render table and picture")
    parser.add_argument("--data", nargs="+", default=[], help="trashnet=PATH and taco=PATH")
    parser.add_argument("--teacher_weights", type=Path, help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for caches and runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    options.data = {name: Path(path) for name, _, path in (word.partition("=") for word in options.data)}
    if not options.table:
        measure(options)
    collect(options)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_bytes(PICTURE, draw(results))
    sys.stdout.write(render(results) + "\n")


if __name__ == "__main__":
    main()
