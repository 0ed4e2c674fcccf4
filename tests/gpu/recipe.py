"""A whole training, as people start it: the recipe `competition` on three times the data, then its evaluation.

The run is as long as the time allows, and the table says how many of the recipe's epochs that were. Nothing is scaled
up: what is shown was waited for. A short run before it tells what an epoch takes.
"""

import time
from typing import Any

import yaml

from tests.gpu.common import ROOT, Record, Setting, job

RECIPE = ROOT / "training" / "recipes" / "competition.yaml"
PROBE = 2
EVALUATION = 15.0
"""Seconds that are kept for it."""


def run(setting: Setting, record: Record) -> None:
    """Probe, train, evaluate."""
    full = int(yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["schedule"]["epochs"])
    probe, seconds = trained(setting, setting.pick(PROBE, 1), "probe")
    epoch = max(0.01, probe["seconds"] / probe["epochs"])  # the first one is slower: a run is shorter than it says
    left = setting.deadline - time.time() - EVALUATION - max(0.0, seconds - probe["seconds"])
    epochs = setting.pick(max(PROBE, min(full, int(left / epoch))), 2)
    report, seconds = trained(setting, epochs, "run")
    what = f"competition, {epochs} of {full} epochs, {report['steps']} steps"
    record.row(what, seconds, "s", note="the whole command, imports and files included")
    record.row("from the first step to the last file", float(report["seconds"]), "s")
    record.row("images/s of that, evaluation after each epoch included", float(report["images_per_second"]), "images/s")
    words = ["--model", setting.work / "runs" / "run", "--data", setting.cache("jpeg96"), "--latency_rounds", 0]
    found = job("training.evaluate", *words, "--resamples", 1000, "--allow_empty_classes", "true")
    interval = f"95 %: {found['macro_f1_low']:.3f} to {found['macro_f1_high']:.3f}, {found['samples']} crops"
    record.row("macro F1 on the test split", float(found["macro_f1"]), "", note=interval)


def trained(setting: Setting, epochs: int, name: str) -> tuple[dict[str, Any], float]:
    """Train for so many epochs; the report, and seconds of the whole command."""
    began = time.time()
    more = ["--data.allow_empty_classes", "true"]
    if setting.rehearsal:
        more += ["--data.size", "48", "--data.batch_size", "16", "--threads", "2"]
    report = job(
        "training.train",
        *("--config", RECIPE, "--data.path", setting.cache("jpeg96"), "--out", setting.work / "runs" / name),
        *("--schedule.epochs", epochs, "--schedule.warmup_epochs", min(2, epochs / 2)),
        *("--precision", "bf16", "--trackers", "", "--overwrite", "true", *more),
    )
    return report, time.time() - began
