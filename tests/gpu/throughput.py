"""Images per second of every way to feed a network on the device, all of them in turn, and how idle the GPU was.

A batch counts when its images are on the network's device, mirrored at random and normalised in float16, and its labels
beside them. Nothing waits for a single batch, as no training step does; a turn ends when the device has done all of it.
Before a turn's clock starts the way runs for a moment, so that nothing counts that was read ahead while others ran.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from augment_cache.format.source import CacheSource
from pipelines.console.cores import usable_cores
from pipelines.engines.base import Engine, RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.loader import Loader, LoaderOptions
from pipelines.plan import View
from pipelines.resident import ResidentSource
from pipelines.sources import Source, Subset
from pipelines.tensors import TensorFormat
from tests.gpu.common import Record, Setting, has_dali
from tests.gpu.engines import device_engine, policy_of
from tests.gpu.idle import Idle, utilisation, words
from tests.gpu.prepare import files_of
from tests.gpu.rivals import Pair, TorchvisionFeed, airbench
from tests.gpu.sampling import Sampler
from training.engine.loop import network_input

OPS = {0: "flip", 1: "one op", 2: "two ops"}
GOALS = {
    ("resident 64", 0): 2_000_000,
    ("resident 64", 1): 300_000,
    ("raw 64", 0): 400_000,
    ("JPEG 224", 0): 15_000,
}
"""Images per second, on an H200-class card with 16 cores."""

EPOCH = 50_000
"""Rows are repeated up to about so many, so that epochs are not over before they have begun."""
SPIN_UP = 0.15


@dataclass
class Way:
    """One way to feed a network.

    Attributes:
        name: For the table.
        feed: Endless batches on the device.
        goal: Images per second.
        rates: Of each round.
        windows: When it had its turns.
    """

    name: str
    feed: Iterator[Pair]
    goal: float | None = None
    rates: list[float] = field(default_factory=list)
    windows: list[tuple[float, float]] = field(default_factory=list)


def run(setting: Setting, record: Record) -> None:
    """Open everything, then rounds in which each way has its turn."""
    torchvision = open_torchvision(setting, record)  # first: its workers are forked, which CUDA and threads forbid
    if not has_dali():
        record.note("no DALI: no decoding and no ops on the device; the dali engine's own gather stands for its flips")
    ways = [*ours(setting, record), *theirs(setting, record), *torchvision]
    ways = [way for way in ways if warmed(way, setting, record)]
    if not ways:
        return
    seconds = setting.pick(0.9, 0.15)
    with Idle(utilisation) as idle:
        for number in range(setting.pick(5, 2)):
            if number and setting.late(len(ways) * (seconds + SPIN_UP + 0.3)):
                record.note(f"only {number} rounds: the time was spent")
                break
            for way in [*ways[number % len(ways) :], *ways[: number % len(ways)]]:
                with record.attempt(way.name):
                    take_turn(way, seconds, setting)
    if idle.obstacle:
        record.note(idle.obstacle)
    for way in (way for way in ways if way.rates):
        note = f"GPU idle {words(idle.share(way.windows))}"
        record.row(way.name, None, "images/s", goal=way.goal, values=way.rates, note=note)
    for way in (way for way in ways if way.goal and not setting.late(3)):
        with record.attempt(f"profile of {way.name}"):
            profile(way, setting, record)


def take_turn(way: Way, seconds: float, setting: Setting) -> None:
    """Run for so long; the rate goes to `way.rates`."""
    pull(way, SPIN_UP)
    setting.sync()
    start = time.perf_counter()
    images = pull(way, seconds)
    setting.sync()
    end = time.perf_counter()
    way.rates.append(images / (end - start))
    way.windows.append((start, end))


def pull(way: Way, seconds: float) -> int:
    """Take batches for so long, at least one; how many images."""
    images, end = 0, time.perf_counter() + seconds
    while True:
        images += len(next(way.feed)[1])
        if time.perf_counter() >= end:
            return images


def warmed(way: Way, setting: Setting, record: Record) -> bool:
    """Let a way build its graphs; False if it fails or nothing is left of the time."""
    if setting.late(30 if setting.gpu else 0):
        record.note(f"{way.name}: left out, the time was spent")
        return False
    with record.attempt(way.name):
        for _ in range(4):
            next(way.feed)
        setting.sync()
        return True
    return False


def feed(source: Source, engine: Engine, setting: Setting, ops: int, batch: int) -> Iterator[Pair]:
    """Epoch after epoch of the house's loader, as a network gets it."""
    options = LoaderOptions(batch_size=batch, train=True, view=View(flip=True), policy=policy_of(ops))
    loader, wanted = Loader(source, engine, options), TensorFormat("float16")
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for found in loader:
            yield network_input(found, setting.device, wanted), found.labels.to(setting.device, non_blocking=True)


def long(source: Source, setting: Setting) -> Source:
    """The rows again and again, up to an epoch of decent length."""
    count = len(source.labels)
    return Subset(source, np.tile(np.arange(count, dtype=np.int64), max(1, setting.pick(EPOCH, count) // count)))


def ours(setting: Setting, record: Record) -> list[Way]:
    """The house's ways, by the engine of the device and by the cpu engine."""
    ways: list[Way] = []
    sources = {name: CacheSource(setting.cache(name), "train") for name in ("raw64", "jpeg64", "jpeg224")}
    small, large = sources["raw64"].image_size, sources["jpeg224"].image_size
    batches = {small: setting.pick(1024, 16), large: setting.pick(256, 16)}

    def add(name: str, source: Source, engine: Engine, counts: tuple[int, ...]) -> None:
        size, endless = engine.spec.size, long(source, setting)
        suffix = "" if engine.name == "dali" else f", {engine.name} engine"
        for ops in counts:
            goal = GOALS.get((name, ops)) if engine.name != "cpu" else None
            given = feed(endless, engine, setting, ops, batches[size])
            ways.append(Way(f"{name}, {OPS[ops]}{suffix}", given, goal))

    with record.attempt("engine of the device"):
        engines = {size: device_engine(setting, size) for size in (small, large)}
        resident = ResidentSource(sources["raw64"], engines[small])
        add("resident 64", resident, engines[small], (0, 1, 2) if has_dali() else (0,))
        if has_dali():
            add("raw 64", sources["raw64"], engines[small], (0, 1, 2))
            add("JPEG 224", sources["jpeg224"], engines[large], (0, 1, 2))
            add("JPEG 64", sources["jpeg64"], engines[small], (0, 1, 2))
    with record.attempt("cpu engine"):
        cpu = {size: CpuEngine(RenderSpec(size)) for size in (small, large)}
        add("resident 64", ResidentSource(sources["raw64"], cpu[small], mirror=True), cpu[small], (0, 1))
        add("raw 64", sources["raw64"], cpu[small], (0,))
        add("JPEG 224", sources["jpeg224"], cpu[large], (0, 1))
    return ways


def theirs(setting: Setting, record: Record) -> list[Way]:
    """The whole set on the device, as cifar10-airbench has it."""
    with record.attempt("airbench"):
        source = CacheSource(setting.cache("raw64"), "train")
        repeat = max(1, setting.pick(EPOCH, 1) // len(source.labels))
        given = airbench(source, setting.device, setting.pick(1024, 16), repeat)
        return [Way("torch-native resident 64, flip + shift (airbench)", given)]
    return []


def open_torchvision(setting: Setting, record: Record) -> list[Way]:
    """torchvision's ways, their workers started."""
    workers = setting.pick(max(1, usable_cores() - 1), 1)
    ways = []
    for what, name, op in (
        ("JPEG 224", "jpeg224", False),
        ("JPEG 64", "jpeg64", False),
        ("JPEG 224", "jpeg224", True),
    ):
        with record.attempt(f"torchvision, {what}"):
            batch = setting.pick(256 if name == "jpeg224" else 1024, 16)
            made = TorchvisionFeed(files_of(setting, name), setting.device, batch, workers, op=op)
            title = f"torchvision DataLoader, {what}, {'one op' if op else 'flip'}, {workers} workers"
            ways.append(Way(title, made.batches()))
    return ways


def profile(way: Way, setting: Setting, record: Record, most: int = 12) -> None:
    """Where the main thread's time goes, for what to improve."""
    with Sampler() as sampler:
        began = time.perf_counter()
        images = pull(way, setting.pick(1.0, 0.1))
        setting.sync()
        seconds = time.perf_counter() - began
    rows = [[place, share, 1e6 * share * seconds / images] for place, share in sampler.shares(most)]
    record.table(f"Where the main thread of '{way.name}' is", ["place", "share of its time", "us per image"], rows)
