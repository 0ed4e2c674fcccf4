"""The augmentation cache, built on the GPU and on the CPU of the same machine; JPEG encoding included.

What a build takes before it gets going (CUDA, DALI's graph) is measured with a handful of images, and taken off.
"""

import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from augment_cache.format.source import CacheSource
from pipelines.decode import decode
from pipelines.sources import SPLITS
from tests.benchmarks.rivals.pool import list_images
from tests.gpu.common import Record, Setting, has_dali, job
from tests.gpu.prepare import COPIES

SIZES = (64, 224)
FEW = 24
"""Images of the build that only starts."""
COMPARED = 400
MEAN_LEVELS = 2.0
"""Mean difference of the stored originals: that of the decoders, and JPEG's own."""


def run(setting: Setting, record: Record) -> None:
    """Both sizes, each way in turn."""
    data = Path((setting.work / "data.txt").read_text(encoding="utf-8"))  # crops, or the folder that was given
    few = handful(data, setting.work / "few")
    ways = {"cpu": ["--engine", "cpu", "--device", "cpu"], "gpu": ["--engine", "dali", "--device", setting.where]}
    if not has_dali():
        record.note("no DALI: there is no build on the GPU; the CPU's own figures stand alone")
        del ways["gpu"]
    rows: list[list[Any]] = []
    for size in SIZES:
        rates: dict[str, list[float]] = {name: [] for name in ways}
        starts: dict[str, tuple[int, float]] = {}
        for name, words in ways.items():
            with record.attempt(f"start of {name} at {size} px"):
                report, _ = built(setting, few, folder(setting, name, size), words, size)
                starts[name] = (report["images"], report["seconds"])
        for number in range(setting.pick(3, 1)):
            if number and setting.late(40):
                break
            for name in [*ways][:: 1 if number % 2 == 0 else -1]:
                with record.attempt(f"{name} at {size} px"):
                    report, cpu = built(setting, data, folder(setting, name, size), ways[name], size)
                    images, seconds = starts[name]
                    rates[name].append(rate_after(report, images, seconds))
                    rate = report["images"] / report["seconds"]
                    words = [f"{report['engine']}, {size} px", rate, seconds, rates[name][-1]]
                    rows.append([*words, 1000 * cpu / report["images"], report["bytes"] / 1e6])
        headers = ["build", "images/s, all in all", f"s for {FEW} images", "images/s after that"]
        headers += ["CPU s per 1,000 images", "MB"]
        record.table("Originals and two copies, JPEG quality 90", headers, rows)
        if all(rates.values()) and len(rates) > 1:
            ratios = [mine / theirs for mine, theirs in zip(rates["gpu"], rates["cpu"], strict=False)]
            record.row(f"{size} px: GPU's images/s over the CPU's, after the start", None, "times", values=ratios)
            with record.attempt(f"comparison at {size} px"):
                compare(setting, record, size)


def folder(setting: Setting, name: str, size: int) -> Path:
    """Where a way builds."""
    return setting.work / "built" / f"{name}{size}"


def handful(data: Path, few: Path) -> Path:
    """A folder of class folders with a few of the images."""
    found = list_images(data)
    for number, name in enumerate(found[:: max(1, len(found) // FEW)][:FEW]):
        file = few / Path(name).parent.name / f"{number}{Path(name).suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(name, file)
    return few


def rate_after(report: dict[str, Any], images: int, seconds: float) -> float:
    """Images per second of what a build did beyond the one that only started."""
    return float((report["images"] - images) / max(report["seconds"] - seconds, 1e-3))


def built(setting: Setting, data: Path, out: Path, words: list[str], size: int) -> tuple[dict[str, Any], float]:
    """Build once, in a process of its own: its report with the number of `images`, imports not timed; CPU seconds."""
    before = _cpu_seconds()
    more = ["--size", setting.px(size), "--encoding", "jpeg", "--copies", COPIES, "--force", "true"]
    fresh = ["--allow_empty_classes", "true", "--out", out]
    shutil.rmtree(out, ignore_errors=True)  # so that nothing is reused
    report = job("augment_cache.build", "--data", data, *fresh, *more, *words)
    images = sum(entry["rows"] for entry in report["splits"].values())
    return {**report, "images": images}, _cpu_seconds() - before


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(setting: Setting, record: Record, size: int) -> None:
    """Rows of both caches, one by one: the same samples, labels and plan; pixels within the decoders' tolerance."""
    wrong = total = 0
    means: dict[bool, list[float]] = {False: [], True: []}
    for split in SPLITS:
        mine, theirs = (CacheSource(folder(setting, name, size), split) for name in ("gpu", "cpu"))
        count = min(len(mine.labels), len(theirs.labels))
        total += count
        wrong += abs(len(mine.labels) - len(theirs.labels))
        wrong += int((mine.ids[:count] != theirs.ids[:count]).sum())
        wrong += int((mine.labels[:count] != theirs.labels[:count]).sum())
        for row in np.linspace(0, count - 1, min(count, COMPARED)).astype(int).tolist():
            a, b = mine.record(row), theirs.record(row)
            plans = [(r.copy, r.source, r.op, r.magnitude, r.centre) for r in (a, b)]
            wrong += plans[0] != plans[1]
            levels = [decode(np.frombuffer(r.image, np.uint8)).astype(np.int16) for r in (a, b)]
            apart = np.abs(levels[0] - levels[1])
            means[a.copy > 0].append(float(apart.mean()))
    record.row(f"{size} px: rows of {total} whose id, label or plan differ", wrong, "", goal=0, at_most=True)
    name = f"{size} px: mean difference of pixels"
    originals, copies = (float(np.mean(means[kind])) for kind in (False, True))
    record.row(f"{name}, originals", originals, "levels", goal=MEAN_LEVELS, at_most=True)
    record.row(f"{name}, copies", copies, "levels", note="ops such as Equalize spread what decoders differ by")
