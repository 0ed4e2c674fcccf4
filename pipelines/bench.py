"""Measure how fast a data set is read: images per second, and where the time goes.

Runs a first epoch from nothing (opening, and decoding for resident mode, included), then rounds of whole epochs, and
shows for each image what reading, decoding and augmenting cost the loader's threads and how long the consumer waited.
With --step_ms the consumer takes its time over every batch, as a training step does: a loader that keeps up shows a
wait near zero.
"""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pipelines.augmentations import OPS, Policy, full_range
from pipelines.console.cores import usable_cores
from pipelines.console.job import run_job
from pipelines.console.output import human_bytes, human_seconds, render_table
from pipelines.console.progress import ProgressMeter
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import DeviceName, EngineName, make_engine
from pipelines.errors import ProblemFoundError, UsageError
from pipelines.fit import Fit
from pipelines.loader import Batch, Loader, LoaderOptions, OrderName
from pipelines.opening import OpenOptions, open_anything, wanted_splits
from pipelines.plan import View
from pipelines.resident import ResidentMode, ResidentOptions, ResidentSource, make_resident
from pipelines.sources import Source
from pipelines.stats import LoaderStats
from pipelines.tensors import DType, TensorFormat

DEFAULT_SIZE = 64
LAST_OF_THE_14 = 14
EXAMPLE = """
  python -m pipelines.bench --data out/cache
  python -m pipelines.bench --data out/cache --resident off --ops 1 --dtype float32
  python -m pipelines.bench --data photos/trashnet --size 224 --min_area 0.3 --step_ms 20
"""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Options of the bench job.

    Args:
        data: A cache, a folder of crops, a folder of class folders, or photos with their annotations.json.
        split: Which split of it.
        size: Side of the images in px; a cache's own when absent, 64 otherwise.
        fit: How other shapes become square: pad, stretch or crop.
        copies: Use only so many augmented copies of each sample of a cache; all when absent.
        order: Order of the samples: shuffled, balanced or sequential.
        batch_size: Images per batch.
        flip: Mirror half of the images.
        min_area: Smallest share of the image that a random resized crop shows; 1 switches it off.
        ops: Online augmentation: so many of the 14 ops on each image.
        dtype: What the images are turned into; uint8 leaves the levels alone.
        channels_last: Leave pixels in the memory order in which they are rendered.
        check: rows holds every row of a cache against its checksum; off trusts the disk.
        resident: Keep all decoded images in memory: auto where that changes no pixel and the memory is there, on, off.
        resident_share: Of the free memory that auto may take.
        engine: Renders the images. auto is DALI on a GPU, the cpu engine otherwise.
        device: Where DALI works.
        threads: CPU threads of the loader; 0 for one per core.
        rounds: How often it is measured after the first epoch.
        seconds: Length of a round, at least; a round ends with a batch.
        step_ms: How long the consumer takes over a batch, in milliseconds.
        seed: Of order and augmentation.
    """

    data: Path
    split: str = "train"
    size: int | None = None
    fit: Fit = "pad"
    copies: int | None = None
    order: OrderName = "shuffled"
    batch_size: int = 128
    flip: bool = True
    min_area: float = 1.0
    ops: int = 0
    dtype: DType = "uint8"
    channels_last: bool = True
    check: Literal["rows", "off"] = "rows"
    resident: ResidentMode = "auto"
    resident_share: float = 0.3
    engine: EngineName = "auto"
    device: DeviceName = "auto"
    threads: int = 0
    rounds: int = 5
    seconds: float = 1.0
    step_ms: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"batch_size": (1, 65536), "ops": (0, 16), "rounds": (1, 1000), "threads": (0, 4096)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"--{name} must be {low} to {high}, got {getattr(self, name)}")
        if self.size is not None and not 4 <= self.size <= 4096:
            raise UsageError(f"--size must be 4 to 4096 px, got {self.size}")
        for name, most in (("seconds", 3600.0), ("step_ms", 1e6)):
            if not 0.0 <= getattr(self, name) <= most:
                raise UsageError(f"--{name} must be 0 to {most:g}, got {getattr(self, name)}")


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure.

    Returns:
        The report. Keys: `data`, `split`, `samples`, `size`, `engine`, `device`, `threads`, `resident` (bytes that are
        kept in memory; 0 when streamed); `first_epoch` {`seconds` from opening on, `images`, `images_per_second`};
        `rounds` (list of {`images`, `seconds`, `images_per_second`, `bytes_per_second`, `cpu_seconds`, `fetch`,
        `decode`, `augment`, `wait` (seconds), `queue_occupancy` (0 to 1), `skipped`}); `images_per_second` {`median`,
        `least`, `most`}; `cpu_per_1000_images` (seconds, median); `wait_share` (of the rounds' time, median);
        `peak_memory` (bytes).
    """
    start = time.perf_counter()
    (source,) = wanted_splits(config.data, open_anything(config.data, _open_options(config)), (config.split,))
    size = _size(config, source)
    threads = config.threads or usable_cores()
    engine = make_engine(config.engine, RenderSpec(size, config.fit), device=config.device, threads=threads)
    try:
        view = View(flip=config.flip, min_area=config.min_area)
        resident = ResidentOptions(mode=config.resident, share=config.resident_share)
        (source,) = make_resident((source,), engine, view=view, plain=not config.ops, options=resident, show=True)
        options = LoaderOptions(
            batch_size=config.batch_size,
            train=config.order != "sequential",
            order=config.order,
            seed=config.seed,
            view=view,
            policy=_policy(config.ops),
            damaged="skip",
        )
        loader = Loader(source, engine, options, TensorFormat(config.dtype, channels_last=config.channels_last))
        first = _first_epoch(loader, start, config.step_ms)
        rounds = _rounds(loader, config)
    except ValueError as error:
        raise UsageError(f"{config.data}: {error}") from error
    finally:
        engine.close()
    rates = [entry["images_per_second"] for entry in rounds]
    return {
        "data": str(config.data),
        "split": config.split,
        "samples": len(source.labels),
        "size": size,
        "engine": engine.name,
        "device": str(engine.device),
        "threads": threads,
        "resident": source.bytes if isinstance(source, ResidentSource) else 0,
        "first_epoch": first,
        "rounds": rounds,
        "images_per_second": {"median": median(rates), "least": min(rates), "most": max(rates)},
        "cpu_per_1000_images": median(1000 * entry["cpu_seconds"] / entry["images"] for entry in rounds),
        "wait_share": median(entry["wait"] / entry["seconds"] for entry in rounds),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _open_options(config: BenchConfig) -> OpenOptions:
    return OpenOptions(
        copies=config.copies, allow_empty_classes=True, check=config.check == "rows", splits=(config.split,)
    )


def _size(config: BenchConfig, source: Source) -> int:
    own: int | None = getattr(source, "image_size", None)
    return config.size or own or DEFAULT_SIZE


def _policy(ops: int) -> Policy | None:
    """So many of the 14 ops, each evenly and over its whole range."""
    choices = tuple(full_range(op.name) for op in OPS[1 : LAST_OF_THE_14 + 1])
    return Policy.repeated(f"{ops} of 14", choices, turns=ops) if ops else None


def _first_epoch(loader: Loader, start: float, step_ms: float) -> dict[str, Any]:
    images = sum(_consumed(batch, step_ms) for batch in loader if batch.real)
    if not images:
        skipped = f"; {loader.skipped[0].where}: {loader.skipped[0].reason}" if loader.skipped else ""
        raise ProblemFoundError(f"no image could be read{skipped}")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "images": images, "images_per_second": images / seconds}


def _consumed(batch: Batch, step_ms: float) -> int:
    """Look at a batch as a training step would have to, and take the time of one."""
    float(batch.images[0, 0, 0, 0])
    if step_ms:
        time.sleep(step_ms / 1000)
    return batch.real


def _rounds(loader: Loader, config: BenchConfig) -> list[dict[str, Any]]:
    batches = _endless(loader)
    found = []
    with ProgressMeter("bench", config.rounds, "rounds") as progress:
        for _ in range(config.rounds):
            loader.stats = LoaderStats()
            cpu, start = time.process_time(), time.perf_counter()
            while True:
                _consumed(next(batches), config.step_ms)
                if time.perf_counter() - start >= config.seconds:
                    break
            stats = loader.stats.as_dict()
            found.append({**stats, "cpu_seconds": time.process_time() - cpu})
            progress.advance(1, f"{stats['images_per_second']:,.0f} images/s")
    return found


def _endless(loader: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        epoch += 1
        loader.set_epoch(epoch)
        yield from loader


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    kept = f"resident, {human_bytes(report['resident'])} in memory" if report["resident"] else "streamed"
    rounds = report["rounds"]
    rates, first = report["images_per_second"], report["first_epoch"]
    steps = {name: median(1e6 * entry[name] / entry["images"] for entry in rounds) for name in STEPS}
    rows = [[STEPS[name], f"{value:.2f}"] for name, value in steps.items()]
    return (
        f"{report['data']}, {report['split']}: {report['samples']:,} images at {report['size']} px, {kept}; "
        f"{report['engine']} engine on {report['device']}, {report['threads']} threads\n\n"
        f"first epoch   {first['images_per_second']:,.0f} images/s, {human_seconds(first['seconds'])} with opening\n"
        f"after it      {rates['median']:,.0f} images/s ({rates['least']:,.0f} to {rates['most']:,.0f} in "
        f"{len(rounds)} rounds), {human_bytes(median(entry['bytes_per_second'] for entry in rounds))}/s\n"
        f"CPU           {report['cpu_per_1000_images']:.4f} s per 1,000 images, consumer included\n"
        f"waited        {report['wait_share']:.1%} of the time; queue "
        f"{median(entry['queue_occupancy'] for entry in rounds):.0%} full when asked\n"
        f"memory        {human_bytes(report['peak_memory'])} at most\n\n"
        + render_table(["where the time goes", ">us per image"], rows)
    )


STEPS = {
    "fetch": "reading and checking, loader's threads",
    "decode": "decoding, loader's threads",
    "augment": "resizing, ops, flips, loader's threads",
    "wait": "consumer waiting",
}


def main() -> None:
    """Run the job."""
    run_job(BenchConfig, bench, name="pipelines.bench", summary=(__doc__ or "").strip(), example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
