"""Build many shards, in this process or in several."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from augment_cache.building.shard_plan import ShardTask
from augment_cache.building.worker import Recipe, ShardBuilder, ShardResult
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import DeviceName, EngineName, make_engine


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


def build_shards(
    recipe: Recipe, tasks: Sequence[ShardTask], out: Path, workers: Workers, advance: Callable[[int], None]
) -> list[ShardResult]:
    """Build all shards.

    Args:
        recipe: What to build.
        tasks: The shards.
        out: Folder of the cache.
        workers: Who builds.
        advance: Called with the number of sources that were finished.

    Returns:
        One result per task, in the order of the tasks.
    """
    if workers.processes == 1:
        return list(_build_here(recipe, tasks, out, workers, advance))
    return _build_in_processes(recipe, tasks, out, workers, advance)


def _build_here(
    recipe: Recipe, tasks: Sequence[ShardTask], out: Path, workers: Workers, advance: Callable[[int], None]
) -> Iterator[ShardResult]:
    builder = _make_builder(recipe, out, workers)
    try:
        for task in tasks:
            yield builder.build(task)
            advance(len(task.files))
    finally:
        builder.close()


def _build_in_processes(
    recipe: Recipe, tasks: Sequence[ShardTask], out: Path, workers: Workers, advance: Callable[[int], None]
) -> list[ShardResult]:
    results: dict[int, ShardResult] = {}
    # Fresh interpreters: a forked child would inherit locks of the threads that torch and OpenCV have started.
    pool = ProcessPoolExecutor(
        workers.processes, get_context("spawn"), initializer=_start_worker, initargs=(recipe, out, workers)
    )
    with pool:
        try:
            futures = {pool.submit(_build_in_worker, task): index for index, task in enumerate(tasks)}
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                advance(len(tasks[futures[future]].files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[index] for index in range(len(tasks))]


def _make_builder(recipe: Recipe, out: Path, workers: Workers) -> ShardBuilder:
    threads = max(1, workers.threads // workers.processes)
    engine = make_engine(workers.engine, RenderSpec(recipe.size, recipe.fit), device=workers.device, threads=threads)
    return ShardBuilder(recipe, engine, out, batch=workers.batch, threads=threads, strict=workers.strict)


_builder: ShardBuilder | None = None
"""The builder of a worker process, made once by its initializer."""


def _start_worker(recipe: Recipe, out: Path, workers: Workers) -> None:
    global _builder
    _builder = _make_builder(recipe, out, workers)


def _build_in_worker(task: ShardTask) -> ShardResult:
    assert _builder is not None
    return _builder.build(task)
