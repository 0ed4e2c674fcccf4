"""Build many shards, in this process or in several."""

import gc
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from augment_cache.building.shard_plan import ShardTask
from augment_cache.building.worker import Advance, Claim, Recipe, ShardBuilder, ShardResult
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import DeviceName, EngineName, make_engine
from pipelines.errors import TacopressError

KILLED = (
    "a process that built shards was killed, perhaps for want of memory; run the same command again with fewer "
    "--processes or a smaller --batch: what is finished is kept"
)
SIGNALS = {signal.SIGTERM, signal.SIGINT}
OWN_SIGNAL_SECONDS = 1.0
"""Ctrl-C reaches all processes of a terminal, but perhaps a builder before its parent: then ours is on its way."""
TAKING_SECONDS = 20.0
"""To take the next shard takes microseconds."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who builds; nothing here changes a byte, except the choice of the engine, which the recipe knows too.

    Attributes:
        engine: Name of the engine.
        device: Where DALI works.
        processes: Processes side by side.
        threads: CPU threads of all processes together.
        batch: Samples rendered together.
        strict: Stop at the first source that cannot be read.
    """

    engine: EngineName
    device: DeviceName
    processes: int
    threads: int
    batch: int
    strict: bool


@dataclass(frozen=True)
class _Site:
    """What every process needs to know."""

    recipe: Recipe
    out: Path
    workers: Workers
    claim: Claim

    def builder(self) -> ShardBuilder:
        recipe, workers = self.recipe, self.workers
        threads = max(1, workers.threads // workers.processes)
        spec = RenderSpec(recipe.size, recipe.fit)
        engine = make_engine(workers.engine, spec, device=workers.device, threads=threads, inline=True)
        return ShardBuilder(recipe, engine, self.out, batch=workers.batch, strict=workers.strict, claim=self.claim)


def build_shards(
    recipe: Recipe,
    tasks: Sequence[ShardTask],
    out: Path,
    workers: Workers,
    advance: Advance,
    claim: Claim,
) -> list[ShardResult]:
    """Build shards.

    Args:
        recipe: What to build.
        tasks: The shards.
        out: Folder of the cache.
        workers: Who builds.
        advance: Told the number of sources that were finished.
        claim: What the build was given.

    Returns:
        One result per task, in any order.
    """
    site = _Site(recipe, out, workers, claim)
    gc.freeze()  # what was imported is never garbage: looking through it again and again takes a tenth of the time
    try:
        if workers.processes == 1 or len(tasks) <= 1:
            return list(_build_here(site, tasks, advance))
        return _build_in_processes(site, tasks, advance)
    finally:
        gc.unfreeze()


def _build_here(site: _Site, tasks: Iterable[ShardTask], advance: Advance) -> Iterator[ShardResult]:
    builder = site.builder()
    try:
        yield from builder.build(tasks, advance)
    finally:
        builder.close()


def _build_in_processes(site: _Site, tasks: Sequence[ShardTask], advance: Advance) -> list[ShardResult]:
    # A forked process starts at once and shares what was imported. It is safe where no other thread may hold a lock
    # that the child would wait for, and no GPU is in use; elsewhere processes start afresh, in seconds.
    alone = threading.active_count() == 1 and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    context = get_context("fork" if alone else "spawn")
    following = context.Value("q", 0)
    # The largest first: whoever has the last one keeps the others waiting for it.
    tasks = sorted(tasks, key=lambda task: len(task.files) + int(task.copies.sum()), reverse=True)
    staff: dict[Connection, BaseProcess] = {}
    try:
        for number in range(1, min(site.workers.processes, len(tasks))):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(  # type: ignore[attr-defined]
                target=_work, args=(site, tasks, following, writer), name=f"build-{number}", daemon=True
            )
            with _without_signals():
                process.start()
            writer.close()
            staff[reader] = process
        return _build_with_others(site, _taken(tasks, following), dict(staff), advance)
    finally:
        for process in staff.values():
            process.terminate()
        for process in staff.values():
            process.join()


@contextmanager
def _without_signals() -> Iterator[None]:
    """Hold signals back while a process is forked: it must not act on them with its parent's handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _build_with_others(
    site: _Site, tasks: Iterator[ShardTask], busy: dict[Connection, BaseProcess], advance: Advance
) -> list[ShardResult]:
    """Build here too, listening to the other processes in between, until all have ended."""
    results: list[ShardResult] = []

    def listen(count: int) -> None:
        advance(count)
        _hear(busy, results, advance, seconds=0)

    results += list(_build_here(site, tasks, listen))
    while busy:
        _hear(busy, results, advance, seconds=None)
    return results


def _hear(
    busy: dict[Connection, BaseProcess], results: list[ShardResult], advance: Advance, *, seconds: float | None
) -> None:
    """What processes have to say within some time; those that have ended are busy no more."""
    ready = wait([*busy, *(process.sentinel for process in busy.values())], seconds)
    for reader, process in list(busy.items()):
        if reader not in ready and process.sentinel not in ready:
            continue
        if reader.poll() and _take(reader, results, advance):
            continue
        del busy[reader]
        process.join()
        if process.exitcode in {-number for number in SIGNALS}:
            time.sleep(OWN_SIGNAL_SECONDS)
        if process.exitcode != 0:
            raise TacopressError(KILLED)


def _take(reader: Connection, results: list[ShardResult], advance: Advance) -> bool:
    """Hear one message; False if there will be no more."""
    try:
        message = reader.recv()
    except EOFError:
        return False
    if isinstance(message, int):
        advance(message)
    elif isinstance(message, ShardResult):
        results.append(message)
    else:
        error, trace = message
        raise error from _InProcessError(trace)
    return True


class _InProcessError(Exception):
    """Where an error happened in another process, as text."""


def _work(site: _Site, tasks: Sequence[ShardTask], following: Any, writer: Connection) -> None:  # noqa: ANN401
    """Build shards that nobody else has taken; `following` counts those that were."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a script, which Ctrl-C is not for
            signal.signal(number, signal.SIG_DFL)  # the parent says what there is to say
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    end_with_parent()
    torch.set_num_threads(1)
    try:
        for result in _build_here(site, _taken(tasks, following), writer.send):
            writer.send(result)
    except Exception as error:
        known = error if isinstance(error, (TacopressError, OSError)) else RuntimeError(repr(error))
        writer.send((known, "".join(traceback.format_exception(error))))


def _taken(tasks: Sequence[ShardTask], following: Any) -> Iterator[ShardTask]:  # noqa: ANN401 - multiprocessing's Value
    lock = following.get_lock()
    while True:
        if not lock.acquire(timeout=TAKING_SECONDS):  # whoever held it is dead
            raise TacopressError(KILLED)
        number = following.value
        following.value += 1
        lock.release()
        if number >= len(tasks):
            return
        yield tasks[number]


def end_with_parent() -> None:
    """Let this process end when its parent does, even if that was killed: nobody would wait for its work."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
