"""The same plan on the device and on the CPU: pixels, order, labels, ids, and going on in the middle of an epoch."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from augment_cache.format.source import CacheSource
from pipelines.augmentations import OPS
from pipelines.engines.base import Engine, RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.engines.cpu import CpuEngine
from pipelines.loader import Loader, LoaderOptions
from pipelines.plan import View, nothing
from pipelines.resident import ResidentSource
from pipelines.sources import Source
from tests.gpu.common import Record, Setting, has_dali
from tests.gpu.engines import device_engine, policy_of, render
from tests.pipelines.pictures import textured
from tests.pipelines.test_engines import one_op, strengths

LEVELS = 2
"""Largest difference of an op from raw pixels, in levels of 255; on the CPU DALI stays within 1."""

MEAN_LEVELS = 2.0
"""Mean difference of a decoded and fitted JPEG: two scaled decoders are two antialiasing filters."""


def run(setting: Setting, record: Record) -> None:
    """Ops, decoders, order, resuming."""
    if not has_dali():
        record.note("no DALI: ops and decoding on the device are not there; resident flips are, and are compared")
    with record.attempt("ops"):
        ops(setting, record)
    with record.attempt("order, labels, ids"):
        order(setting, record)
    with record.attempt("resuming"):
        resume(setting, record)
    for size in (64, 224):
        with record.attempt(f"JPEG at {size} px"):
            jpeg(setting, record, size)


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, float, float]:
    """(largest, mean, share of pixels that differ at all) of two stacks of images, in levels."""
    apart = np.abs(ours - theirs)
    return int(apart.max()), float(apart.mean()), float((apart.max(axis=3) > 0).mean())


def ops(setting: Setting, record: Record) -> None:
    """Each op over its range, from raw pixels: the device against the cpu engine, and DALI's own CPU graph."""
    if not has_dali():
        return
    size = setting.px(64)
    made = [make_engine("dali", RenderSpec(size), device=where) for where in (setting.where, "cpu")]
    mine, graph, cpu = *made, CpuEngine(RenderSpec(size))
    rows, worst, means = [], 0, []
    for op in OPS:
        values = strengths(op)
        images = [textured(size, size, seed) for seed in range(len(values))]
        plan = one_op(op.name, values, len(values))
        found = render(mine, images, plan)
        largest, mean, share = difference(found, render(cpu, images, plan))
        rows.append([op.name, largest, mean, share, difference(found, render(graph, images, plan))[0]])
        worst, means = max(worst, largest), [*means, mean]
        headers = ["op", "largest", "mean", "share of pixels that differ", "largest, to DALI on the CPU"]
        record.table("Each op over its range, device against cpu engine, from raw pixels, in levels", headers, rows)
    record.row("largest difference of any op, raw pixels", worst, "levels", goal=LEVELS, at_most=True)
    record.row("mean difference of the op with the largest", max(means), "levels")
    for engine in (*made, cpu):
        engine.close()


def loader(source: Source, engine: Engine, ops: int = 0, batch: int = 16) -> Loader:
    """Random order and flips."""
    options = LoaderOptions(batch_size=batch, train=True, seed=3, view=View(flip=True), policy=policy_of(ops))
    return Loader(source, engine, options)


def order(setting: Setting, record: Record) -> None:
    """Two epochs from everywhere: rows, labels and ids are those of the cpu engine; flips from raw pixels are exact."""
    wrong = steps = 0
    exact = True
    for name in ("raw64", "jpeg64"):
        source = CacheSource(setting.cache(name), "train")
        mine, cpu = device_engine(setting, source.image_size), CpuEngine(RenderSpec(source.image_size))
        for kind in kinds(source, mine):
            ours, theirs = loader(kind, mine), loader(source, cpu)
            for epoch in range(2):
                ours.set_epoch(epoch)
                theirs.set_epoch(epoch)
                for one, other in zip(ours, theirs, strict=True):
                    same = torch.equal(one.labels.cpu(), other.labels) and np.array_equal(one.rows, other.rows)
                    wrong += not (same and np.array_equal(kind.ids[one.rows], source.ids[other.rows]))
                    steps += 1
                    if name == "raw64":
                        exact &= torch.equal(one.images.cpu(), other.images)
        mine.close()
        cpu.close()
    record.row(f"batches of {steps} whose rows, labels or ids differ", wrong, "", goal=0, at_most=True)
    record.row("plain and mirrored raw images are equal to the last bit", int(exact), "", goal=1, note="1 is yes")


def kinds(source: CacheSource, engine: Engine) -> Iterator[Source]:
    """The source as it is, and resident on the engine's device."""
    yield source
    yield ResidentSource(source, engine)


def resume(setting: Setting, record: Record) -> None:
    """In the middle of an epoch a new loader goes on: the batches that are left, bit for bit."""
    rows = []
    for name in ("raw64", "jpeg64"):
        source = CacheSource(setting.cache(name), "train")
        engine = device_engine(setting, source.image_size)
        for kind, label in zip(kinds(source, engine), ("streamed", "resident"), strict=True):
            for count in (0, 2) if has_dali() else (0,):
                found = wrong_after_resuming(kind, engine, count, setting.pick(10, 2))
                rows.append([f"{name}, {label}, {count} ops", *found])
        engine.close()
    record.table("Going on in the middle of an epoch", ["source", "batches after it", "that differ"], rows)
    wrong = sum(row[2] for row in rows)
    record.row("batches that differ after resuming in mid-epoch", wrong, "", goal=0, at_most=True)


def wrong_after_resuming(source: Source, engine: Engine, ops: int, stop: int) -> tuple[int, int]:
    """(batches that were left, how many of them differ) when a loader stops after `stop` batches."""
    first, second = loader(source, engine, ops), loader(source, engine, ops)
    first.set_epoch(1)
    batches = iter(first)
    for _ in range(stop):
        next(batches)
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state)
    pairs = list(zip(batches, second, strict=True))
    same = [torch.equal(a.images, b.images) and np.array_equal(a.rows, b.rows) for a, b in pairs]
    return len(same), len(same) - sum(same)


def jpeg(setting: Setting, record: Record, size: int) -> None:
    """Decoders: whole photos that have to be fitted, and files of the right size already."""
    if not has_dali():
        return
    side = setting.px(size)
    mine, cpu = make_engine("dali", RenderSpec(side), device=setting.where), CpuEngine(RenderSpec(side))
    files = [Path(name) for name in json.loads((setting.work / "photos.json").read_text(encoding="utf-8"))]
    photos = [np.frombuffer(file.read_bytes(), np.uint8) for file in files]
    source = CacheSource(setting.cache(f"jpeg{size}"), "train")
    cached = list(source.fetch(np.arange(min(128, len(source.labels)), dtype=np.int64)))
    for what, pictures in (("photos, fitted", photos), ("cached files", cached)):
        plan = nothing(len(pictures))
        found = render(mine, pictures, plan)
        largest, mean, share = difference(found, render(cpu, pictures, plan))
        name = f"JPEG at {size} px, {what}"
        record.row(
            f"{name}: mean difference",
            mean,
            "levels",
            goal=MEAN_LEVELS,
            at_most=True,
            note=f"largest {largest}, {share:.0%} of pixels differ; decoded {'mixed' if setting.gpu else 'by DALI'}",
        )
        again = render(mine, pictures, plan, batch=7)
        apart = difference(found, again)
        record.row(f"{name}: largest difference in batches of another size", apart[0], "levels", note="0 is hoped for")
    mine.close()
    cpu.close()
