"""What Accelerate must not change: accumulated gradients, and two processes that share the card. Correctness only."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.gpu.common import Record, Setting
from tests.training.runs import log_of, srun
from training.measure.predictions import read_predictions

NETWORK = "test_efficientnet_gn"
"""Group normalisation: nothing depends on how a batch is cut."""
TOLERANCE = {"no": 2e-3, "bf16": 2e-2}
"""Largest relative difference of an epoch's loss. float32 convolutions on a GPU multiply in TF32, and other sizes of
batches take other kernels."""
EPOCHS = 3


def run(setting: Setting, record: Record) -> None:
    """Each precision whole and in parts, one run in two processes; then both ways of evaluating."""
    precisions = setting.pick(list(TOLERANCE), ["no"])
    cases = {
        **{f"{precision}, {parts} parts": (1, precision, parts) for precision in precisions for parts in (1, 4)},
        "two processes": (2, "no", 1),
    }
    with ThreadPoolExecutor(setting.pick(len(cases), 1)) as pool:
        waiting = {name: pool.submit(trained, setting, name, *case) for name, case in cases.items()}
    losses = {}
    for name, future in waiting.items():
        with record.attempt(name):
            losses[name] = future.result()
    rows = [[name, *(line["train_loss"] for line in found)] for name, found in losses.items()]
    record.table("Loss of each epoch", ["run", *(f"epoch {number + 1}" for number in range(EPOCHS))], rows)
    pairs = {precision: (f"{precision}, 1 parts", f"{precision}, 4 parts") for precision in precisions}
    for precision, (whole, parts) in pairs.items():
        compare(record, f"four parts against one batch, {precision}", losses, whole, parts, TOLERANCE[precision])
    compare(record, "two processes against one", losses, "no, 1 parts", "two processes", TOLERANCE["no"])
    if "no, 1 parts" in losses:
        with record.attempt("evaluation in two processes"):
            evaluate(setting, record)
    how = "share the card through gloo; NCCL allows one process a card" if setting.gpu else "are on the CPU"
    record.note(f"{NETWORK}, SGD, batch 32; the two processes {how}")


def compare(
    record: Record, what: str, losses: dict[str, list[dict[str, Any]]], one: str, other: str, tolerance: float
) -> None:
    """Loss by loss."""
    if one not in losses or other not in losses:
        return
    pairs = zip(losses[one], losses[other], strict=True)
    apart = max(abs(b["train_loss"] / a["train_loss"] - 1) for a, b in pairs)
    record.row(f"{what}: largest relative difference of the loss", apart, "", goal=tolerance, at_most=True)


def place(setting: Setting, processes: int) -> dict[str, str]:
    """Environment of each process: on the card, which `srun` of the tests would hide; both are the first on it."""
    if not setting.gpu:
        return {}
    card = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"), "ACCELERATE_USE_CPU": "false"}
    return {**card, "LOCAL_RANK": "0"} if processes > 1 else card


def trained(setting: Setting, name: str, processes: int, precision: str, parts: int) -> list[dict[str, Any]]:
    """A short run; what it says of its epochs."""
    out = folder(setting, name)
    jobs = ("tests.gpu.gloo_job", "training.train") if processes > 1 else ("training.train",)
    _, errors = srun(
        processes,
        *jobs,
        *("--data.path", setting.cache("jpeg64"), "--data.batch_size", 32, "--data.min_area", 0.6),
        *("--data.allow_empty_classes", "true", "--model.name", NETWORK, "--model.channels_last", "false"),
        *("--optimizer.name", "sgd", "--optimizer.lr", 0.01, "--schedule.epochs", EPOCHS),
        *("--schedule.warmup_epochs", 0.5, "--trackers", "", "--save.minutes", 100, "--overwrite", "true"),
        *("--precision", precision, "--accumulate", parts, "--out", out),
        **place(setting, processes),
    )
    assert f"{processes} process" in errors[0], errors[0]
    return log_of(out)


def folder(setting: Setting, name: str) -> Path:
    """Of a run."""
    return setting.work / "processes" / name.replace(", ", "-").replace(" ", "_")


def evaluate(setting: Setting, record: Record) -> None:
    """The same model in one process and in two: the same predictions in the same order, the same macro F1."""
    reports, predictions = [], []
    for processes in (1, 2):
        out = setting.work / "processes" / f"evaluated{processes}"
        # Batches of 5: each process has another number of samples.
        printed, _ = srun(
            processes,
            *("tests.gpu.gloo_job", "training.evaluate", "--model", folder(setting, "no, 1 parts")),
            *("--data", setting.cache("jpeg64"), "--batch_size", 5, "--latency_rounds", 0, "--resamples", 100),
            *("--allow_empty_classes", "true", "--out", out, "--json"),
            **place(setting, processes),
        )
        reports.append(json.loads(printed))
        predictions.append(read_predictions(out / "predictions_test.csv"))
    one, two = reports
    same = predictions[0].ids.tolist() == predictions[1].ids.tolist()
    record.row("two processes evaluate all samples in the same order", int(same), "", goal=1, note="1 is yes")
    apart = int((predictions[0].predicted != predictions[1].predicted).sum())
    # Other sizes of batches take other kernels on a GPU: what is nearly a tie may fall to the other side.
    allowed = one["samples"] // 200 if setting.gpu else 0
    note = f"of {one['samples']}; macro F1 {one['macro_f1']:.4f} and {two['macro_f1']:.4f}"
    record.row("samples to which two processes give another class", apart, "", goal=allowed, at_most=True, note=note)
