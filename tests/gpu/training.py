"""Does a training step ever wait? The job's own steps on one constant batch and on what its loader gives.

What runs is `training.engine.run.Run`: forward, loss, backward, clipping, optimizer and schedule, bfloat16, channels
last, progress, the watch on the loss, signals. Only the loader behind it is exchanged: `constant` gives one batch,
which is on the device already, over and over. `bare` is a loop by hand over the same batch: forward, backward, step.
Feeds take turns, the first of one round being the last of the next; shares are taken within a round.
"""

import functools
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import nn

from pipelines.console.progress import ProgressMeter
from pipelines.engines.base import Engine, RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.loader import Batch, Loader, LoaderOptions
from pipelines.plan import View
from pipelines.resident import ResidentSource
from pipelines.sources import Source
from tests.gpu.common import Record, Setting
from tests.gpu.engines import policy_of
from tests.gpu.idle import Idle, utilisation, words
from training.engine.config import DataConfig, ModelConfig, SaveConfig, TrainConfig
from training.engine.data import training_sources
from training.engine.loop import network_input
from training.engine.optimization import OptimizerConfig, ScheduleConfig
from training.engine.preemption import StopSignals
from training.engine.run import Run
from training.engine.setup import assemble, start
from training.model.create import create_model
from training.train import make_network

NETWORKS = ("mobilenetv3_small_050", "resnet18", "shufflenet_g3_wd4", "tf_efficientnet_lite0")
CACHES = {64: "raw64", 224: "jpeg224"}
FEEDS = ("constant", "resident", "streamed", "resident, one op", "bare")
GOAL = 0.95
BATCH = 256
NEEDED = {False: 9.0, True: 45.0}
"""Seconds that a network takes at one size, plain and compiled, roughly."""


@dataclass
class Feed:
    """Stands in for a run's loader.

    Attributes:
        loader: Whose options and source are said to be its own.
        constant: One batch over and over; None for those of the loader.
        given: Batches without an end.
    """

    loader: Loader
    constant: Batch | None = None
    given: Iterator[Batch] = field(init=False)

    def __post_init__(self) -> None:
        self.options, self.source, self.skipped = self.loader.options, self.loader.source, self.loader.skipped
        self.given = itertools.repeat(self.constant) if self.constant is not None else self._endless()

    def _endless(self) -> Iterator[Batch]:
        for epoch in itertools.count():
            self.loader.set_epoch(epoch)
            yield from self.loader

    def set_epoch(self, epoch: int) -> None:
        """The loader counts its epochs itself: turns are shorter or longer than they are."""

    def __iter__(self) -> Iterator[Batch]:
        return self.given


def run(setting: Setting, record: Record) -> None:
    """Each network at each size, plain ones first."""
    rows: list[list[Any]] = []
    with StopSignals() as signals, Idle(utilisation) as idle:
        for compiled, size in itertools.product((False, True), CACHES):
            with record.attempt(f"{size} px"), feeds_of(setting, size) as (engine, feeds):
                for name in chosen(setting, size, compiled=compiled):
                    title = f"{name}, {size} px{', compiled' if compiled else ''}"
                    if setting.late(setting.pick(NEEDED[compiled], 0)):
                        record.note(f"{title}: left out, the time was spent")
                        continue
                    with record.attempt(title):
                        case = Case(setting, name, size, compiled, signals)
                        rates, windows = case.measure(feeds)
                        report(record, title, rates, rows, words(idle.share(windows)))
                engine.close()
            if not compiled and size == 64:
                record.note(f"batch {setting.pick(BATCH, 8)}, bfloat16, channels last, AdamW, {engine.name} engine")
    if idle.obstacle:
        record.note(idle.obstacle)
    for name in NETWORKS[: setting.pick(2, 1)]:
        with record.attempt(f"CUDA graphs, {name}"):
            graphs(setting, record, name)


def graphs(setting: Setting, record: Record, name: str) -> None:
    """What is to be had beyond the job: a loop by hand on one batch, its kernels launched as CUDA graphs."""
    if setting.late(setting.pick(NEEDED[True], 0)):
        record.note(f"{name} with CUDA graphs: left out, the time was spent")
        return
    torch._dynamo.reset()
    batch, size, device = setting.pick(BATCH, 8), setting.px(64), setting.device
    network = create_model(name, 6).to(device, memory_format=torch.channels_last)
    how = {"backend": "aot_eager"} if setting.rehearsal else {"mode": "reduce-overhead"}
    fast = torch.compile(network, **how)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=setting.gpu)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 6

    def steps(count: int) -> float:
        setting.sync()
        began = time.perf_counter()
        for _ in range(count):
            with torch.autocast(device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(fast(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)  # they lie in the memory of a graph that runs again
        setting.sync()
        return time.perf_counter() - began

    steps(setting.pick(10, 2))
    count = setting.pick(100, 2)
    rates = [count * batch / steps(count) for _ in range(setting.pick(5, 2))]
    record.row(f"{name}, 64 px, by hand with CUDA graphs, constant tensors", None, "images/s", values=rates)


def chosen(setting: Setting, size: int, *, compiled: bool) -> tuple[str, ...]:
    """All networks; in rehearsal few."""
    if setting.rehearsal and compiled:
        return NETWORKS[:1] if size == 64 else ()
    return NETWORKS[:: setting.pick(1, 2)] if size == 64 else NETWORKS[: setting.pick(4, 1)]


@contextmanager
def feeds_of(setting: Setting, size: int) -> Iterator[tuple[Engine, dict[str, Feed]]]:
    """The engine that a training job takes, and every feed but the last of `FEEDS`."""
    source, _ = training_sources(DataConfig(path=setting.cache(CACHES[size]), allow_empty_classes=True))
    engine = make_engine("auto", RenderSpec(setting.px(size)), device=setting.where)
    resident = ResidentSource(source, engine)

    def loader(from_: Source, ops: int = 0) -> Loader:
        options = LoaderOptions(
            batch_size=setting.pick(BATCH, 8), train=True, view=View(flip=True), policy=policy_of(ops)
        )
        return Loader(from_, engine, options)

    first = next(iter(loader(resident)))
    here = first._replace(images=first.images.to(setting.device), labels=first.labels.to(setting.device))
    yield (
        engine,
        {
            "constant": Feed(loader(resident), here),
            "resident": Feed(loader(resident)),
            "streamed": Feed(loader(source)),
            "resident, one op": Feed(loader(resident, 1)),
        },
    )


class Case:
    """A network at a size, in a run of the engine that is ready to go."""

    def __init__(self, setting: Setting, name: str, size: int, compiled: bool, signals: StopSignals) -> None:
        self.setting = setting
        config = TrainConfig(
            data=DataConfig(
                path=setting.cache(CACHES[size]),
                batch_size=setting.pick(BATCH, 8),
                resident="off",
                allow_empty_classes=True,
            ),
            model=ModelConfig(name=name, compile=compiled),
            optimizer=OptimizerConfig(name="adamw", lr=1e-4),
            schedule=ScheduleConfig(epochs=1_000_000, warmup_epochs=0),
            save=SaveConfig(minutes=10_000),
            out=setting.work / "unused",
            precision="bf16",
            trackers="",
            threads=setting.pick(0, 2),
        )
        torch._dynamo.reset()  # of the networks before this one
        machine = start(config)
        sources = training_sources(config.data)
        with eager_backend(setting.rehearsal):
            self.run: Run = assemble(config, machine, sources, make_network(config, sources[0]), signals)
        self.run.train_loader.engine.close()

    def measure(self, feeds: dict[str, Feed]) -> tuple[dict[str, list[float]], list[tuple[float, float]]]:
        """Images per second of each feed in each round, and when that was on real data."""
        self.epoch(feeds["constant"], 2)
        seconds = self.epoch(feeds["constant"], self.setting.pick(10, 2)) / self.setting.pick(10, 2)
        for feed in feeds.values():
            self.epoch(feed, self.setting.pick(5, 1))
        steps = max(self.setting.pick(20, 2), round(self.setting.pick(0.5, 0.1) / seconds))
        steps = min(steps, self.setting.pick(1000, 4))
        rates: dict[str, list[float]] = {name: [] for name in FEEDS}
        windows = []
        for number in range(self.setting.pick(4, 2)):
            for name in [*FEEDS[number % len(FEEDS) :], *FEEDS[: number % len(FEEDS)]]:
                begin = time.perf_counter()
                bare = name == "bare"
                took = self.bare(feeds["constant"], steps) if bare else self.epoch(feeds[name], steps)
                rates[name].append(steps * feeds["constant"].options.batch_size / took)
                if name == "resident":
                    windows.append((begin, time.perf_counter()))
        return rates, windows

    def epoch(self, feed: Feed, steps: int) -> float:
        """Seconds of so many steps of the job; their end waits for the loss, and so for the device."""
        run = self.run
        run.train_loader, run.steps = feed, steps  # type: ignore[assignment]
        run.state.step, run.state.epoch = 0, 0
        self.setting.sync()
        began = time.perf_counter()
        run._train_epoch(ProgressMeter("", 0, ""))
        seconds = time.perf_counter() - began
        run.state.loss = run.state.seconds = run.state.data_wait = 0.0
        run.state.trained = False
        run._loss.zero_()
        return seconds

    def bare(self, feed: Feed, steps: int) -> float:
        """Seconds of so many steps by hand."""
        trainer, batch = self.run.trainer, feed.constant
        assert batch is not None
        optimizer = trainer.optimizer.optimizer
        trainer.model.train()
        self.setting.sync()
        began = time.perf_counter()
        for _ in range(steps):
            logits = trainer.model(network_input(batch, self.setting.device, trainer.format))
            nn.functional.cross_entropy(logits.float(), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.setting.sync()
        return time.perf_counter() - began


def report(record: Record, title: str, rates: dict[str, list[float]], rows: list[list[Any]], idle: str) -> None:
    """A figure for each kind of data, and a line of the table."""
    for name in ("resident", "streamed"):
        shares = [mine / theirs for mine, theirs in zip(rates[name], rates["constant"], strict=True)]
        note = f"GPU idle {idle}" if name == "resident" else ""
        record.row(f"{title}: {name} / constant", None, "", goal=GOAL, values=shares, note=note)
    rows.append([title, *(median(rates[name]) for name in FEEDS)])
    record.table("Images per second of the job's steps", ["network", *FEEDS], rows)


@contextmanager
def eager_backend(rehearsal: bool) -> Iterator[None]:
    """In rehearsal torch.compile traces, but generates no code: that takes minutes and a compiler."""
    if not rehearsal:
        yield
        return
    before = torch.compile
    torch.compile = functools.partial(before, backend="aot_eager")  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = before
