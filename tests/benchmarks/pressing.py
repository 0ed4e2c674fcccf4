"""Macro F1 over MACs of pressed networks, against the same small networks trained from scratch; resumable.

    python -m tests.benchmarks.pressing --data path/to/trashnet --teacher_weights tf_efficientnet_lite0.pth
    python -m tests.benchmarks.pressing --table

The seed network at 80 px learns from the teacher of `tests.benchmarks.distillation` (kd, the recipe `distill`) on the
train split of TrashNet. Then it is pressed by layers, by channels, and by both, to several shares of its MACs, each in
one shot, and recovers with the same teacher. The baseline of each point is the very same small network with random
weights, taught for as many steps as the large one and the recovery took together. `whole` is the large network with the
steps of a recovery on top. Nothing is chosen by the test: the weights after the last epoch count. What is done is kept
run by run below --out; results are gathered in `tests/benchmarks/results/pressing.json` and `pressing.png`.
"""

import argparse
import io
import json
import os
import sys
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from compress.press.contract import open_subject
from pipelines.console.files import write_bytes, write_json
from tests.benchmarks.distillation import (
    PACKAGES,
    VIEWS,
    in_parallel,
    numbers,
    paired,
    steps_of,
    teach,
    tested,
)
from tests.benchmarks.real_data import RECIPES, job, prepare
from tests.benchmarks.rivals.facts import circumstances
from training.measure.macs import count_macs

HERE = Path(__file__).parent
RESULTS, PICTURE = HERE / "results" / "pressing.json", HERE / "results" / "pressing.png"
DATA, STUDENT, CACHE_SIZE = "trashnet", "shufflenet_g3_wd4", 112
SHARES = (0.64, 0.5, 0.3)
WAYS = ("layers", "channels", "both")
SEEDS = (0, 1, 2)
EPOCHS, RECOVERY = 40, 20


def folder(options, *parts):
    """Where a run lies."""
    return options.out / "pressing" / "-".join(map(str, parts))


def make_teacher(options):
    """It learns from the train split only: the validation split ranks layers."""
    teach(folder(options, "teacher"), cache(options), options.teacher_weights)


def cache(options):
    """The augmentation cache."""
    return options.out / f"{DATA}-{CACHE_SIZE}"


def learn(options, seed, run, epochs, *words):
    """Teach a network, unless that has been done."""
    common = ["--config", RECIPES / "distill.yaml", "--data.path", cache(options), "--data.views", VIEWS]
    common += ["--teacher.paths", f"{folder(options, 'teacher')}.onnx", "--seed", seed, "--schedule.epochs", epochs]
    common += ["--threads", 1, "--data.threads", 1, "--trackers", "", "--save.minutes", 5]
    job("training.distill", *common, *words, "--out", run)


RECOVER = ("--optimizer.lr", 1e-3, "--schedule.warmup_epochs", 0.5)


def press(options, seed, way, share):
    """The pressed model file."""
    out = folder(options, way, share, seed, "pressed.safetensors")
    start = folder(options, "base", seed) / "last.safetensors"
    if out.is_file():
        return out
    if way == "both":
        half = share**0.5
        first = press(options, seed, "layers", round(half, 4))
        channels = ["--model", first, "--target_share", share / measured_share(first, start)]
        job("compress.channels", *channels, "--out", out)
    elif way == "layers":
        data = ["--data", cache(options), "--rank_by", "ablation"]
        job("compress.layers", "--model", start, "--target_share", share, *data, "--out", out)
    else:
        job("compress.channels", "--model", start, "--target_share", share, "--out", out)
    return out


def measured_share(pressed, start):
    """MACs of one file over those of another."""
    one, other = (open_subject(path) for path in (pressed, start))
    return count_macs(one.model, one.card.size).macs / count_macs(other.model, other.card.size).macs


def base(seed, options):
    """The network that is pressed, and what it becomes with the steps of a recovery on top."""
    run = folder(options, "base", seed)
    if not (run / "last.safetensors").is_file():
        learn(options, seed, run, EPOCHS, "--model.name", STUDENT)
    point("whole", 1.0, seed, options)


def point(way, share, seed, options):
    """One point of the curve: recovered, and for a pressed network also from scratch."""
    start = folder(options, "base", seed) / "last.safetensors"
    file = start if way == "whole" else press(options, seed, way, share)
    kinds = {"recovered": (RECOVERY, RECOVER)}
    if way != "whole":
        kinds["scratch"] = (EPOCHS + RECOVERY, ("--model.weights", "random"))
    for kind, (epochs, words) in kinds.items():
        run = folder(options, way, share, seed, kind)
        done = run / "result.json"
        if done.is_file():
            continue
        learn(options, seed, run, epochs, "--model.name", file, *words)
        found, answers = tested(run, cache(options))
        kept = {
            key: found[key] for key in ("macro_f1", "accuracy", "samples", "macs", "competition_macs", "parameters")
        }
        steps = steps_of(run) + (steps_of(start.parent) if kind == "recovered" else 0)
        write_json(
            done,
            {"way": way, "share": share, "seed": seed, "kind": kind, "steps": steps, **kept}
            | {key: answers[key] for key in ("labels", "predicted")},
        )
        sys.stderr.write(f"{way} {share} seed {seed} {kind}: macro F1 {kept['macro_f1']:.4f}, {kept['macs']:,} MACs\n")


def measure(options):
    """Do what is left to do."""
    prepare(options.data, DATA, options.out, CACHE_SIZE)
    make_teacher(options)
    in_parallel(options, base, [(seed,) for seed in SEEDS])
    in_parallel(options, point, [(way, share, seed) for share in SHARES for way in WAYS for seed in SEEDS])


def collect(options):
    """All results so far into one file."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(options.out.glob("pressing/*/result.json"))]
    if not found:
        return
    labels = found[0]["labels"]
    if any(run.pop("labels") != labels for run in found):
        raise SystemExit(f"the runs in {options.out} are of several test sets; measure again")
    about = circumstances(PACKAGES) | {"load": round(os.getloadavg()[0], 1), "epochs": EPOCHS, "recovery": RECOVERY}
    write_json(RESULTS, about | {"labels": labels, "runs": found})


def points(results):
    """(way, share) → kind → its runs by seed."""
    found = {}
    for run in results["runs"]:
        found.setdefault((run["way"], run["share"]), {}).setdefault(run["kind"], {})[run["seed"]] = run
    return {key: found[key] for key in sorted(found, key=lambda key: (-key[1], key[0]))}


def render(results):
    """A table in Markdown."""
    labels, found = numbers(results["labels"]), points(results)
    whole = found.get(("whole", 1.0), {}).get("recovered", {})
    lines = [
        "| press | MACs | macro F1, recovered | from scratch, same steps | recovered - scratch | recovered - whole |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for (way, _), kinds in found.items():
        recovered, scratch = kinds.get("recovered", {}), kinds.get("scratch", {})
        macs = mean(run["macs"] for run in (recovered or scratch).values())
        cells = [way, f"{macs:,.0f}", _score(recovered), _score(scratch)]
        cells += [_gain(labels, scratch, recovered), "" if way == "whole" else _gain(labels, whole, recovered)]
        lines.append(f"| {' | '.join(cells)} |")
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
    return f"{gain:+.3f} ({low:+.3f} to {high:+.3f}), p {p:.3f}"


def draw(results):
    """The curve: PNG."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    found = points(results)
    for number, way in enumerate(WAYS):
        for kind, style in (("recovered", "-"), ("scratch", ":")):
            curve = [
                (
                    mean(run["macs"] for run in kinds[kind].values()) / 1e6,
                    [run["macro_f1"] for run in kinds[kind].values()],
                )
                for (name, _), kinds in found.items()
                if name in (way, "whole") and kind in kinds
            ]
            if curve:
                axes.errorbar(
                    [macs for macs, _ in curve],
                    [mean(scores) for _, scores in curve],
                    yerr=[stdev(scores) if len(scores) > 1 else 0 for _, scores in curve],
                    fmt=f"o{style}",
                    color=f"C{number}",
                    markerfacecolor=f"C{number}" if kind == "recovered" else "w",
                    capsize=3,
                    label=f"{way}, {'pressed and recovered' if kind == 'recovered' else 'same network from scratch'}",
                )
    axes.set_xlabel("million MACs")
    axes.set_ylabel("macro F1 on the test split, mean and standard deviation over seeds")
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(f"{STUDENT} at 80 px, TrashNet")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def main():
    """Measure or render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only render the table and the picture")
    parser.add_argument("--data", type=Path, help="TrashNet: a folder of photos per class")
    parser.add_argument("--teacher_weights", type=Path, help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for the cache and the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    if not options.table:
        measure(options)
        collect(options)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_bytes(PICTURE, draw(results))
    sys.stdout.write(render(results) + "\n")


if __name__ == "__main__":
    main()
