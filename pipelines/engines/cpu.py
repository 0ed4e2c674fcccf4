"""The cpu engine: threads over simplejpeg (scaled decode), torch (antialiased resize) and OpenCV (ops).

All of these release Python's lock while pixels move. Results do not depend on the number of threads or the batch size.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from pipelines.augmentations import FILL, OPS
from pipelines.console.cores import usable_cores
from pipelines.decode import Pixels
from pipelines.engines.base import Image, Job, Rendered, RenderSpec, Stack, Timing
from pipelines.engines.cpu_ops import apply_op
from pipelines.engines.cpu_render import fitted, open_image, show
from pipelines.errors import CorruptSampleError
from pipelines.fit import Box
from pipelines.plan import Plan

CHUNKS_PER_THREAD = 2
"""Parts of a batch per thread: more than one, so that a thread with large images does not hold up the rest."""

JOBS_AHEAD = 2
INSTANT_BYTES = 4 << 20
"""Copied in about 0.1 ms; to wake a thread and to be woken by it takes longer."""


class CpuEngine:
    """See `pipelines.engines.base.Engine`.

    Args:
        spec: What the images look like.
        threads: Worker threads; 0 takes one per core that this process may use.
        inline: With a single thread, let the caller itself do the work when it asks for a result: nothing is handed
            over, but nothing is done ahead either.
    """

    name = "cpu"
    device = torch.device("cpu")

    def __init__(self, spec: RenderSpec, *, threads: int = 0, inline: bool = False) -> None:
        self.spec = spec
        self.threads = threads or usable_cores()
        cv2.setNumThreads(0)  # the engine's own threads are enough
        alone = inline and self.threads == 1
        self._pool = None if alone else ThreadPoolExecutor(self.threads, thread_name_prefix="render")
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="copy")

    def stream(self, jobs: Iterable[Job]) -> Iterator[Rendered]:
        """Render jobs in order, `JOBS_AHEAD` of them in the background."""
        if self._pool is None:
            for job in jobs:
                task = _Task(self.spec, job)
                yield _gathered(task, [task.render(0, len(job.images))])
            return
        waiting: deque[_Pending] = deque()
        try:
            for job in jobs:
                waiting.append(self._submit(self._pool, job))
                if len(waiting) > JOBS_AHEAD:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            for pending in waiting:
                pending.cancel()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._copier.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, job: Job) -> "_Pending":
        task, count = _Task(self.spec, job), len(job.images)
        if task.instant:
            done: Future[_Part] = Future()
            done.set_result(task.render(0, count))
            return _Pending(task, [done])
        if task.one_thread:
            return _Pending(task, [self._copier.submit(task.render, 0, count)])
        parts = min(max(count, 1), self.threads * (1 if task.copied else CHUNKS_PER_THREAD))
        edges = [count * part // parts for part in range(parts + 1)]
        return _Pending(task, [pool.submit(task.render, edges[part], edges[part + 1]) for part in range(parts)])

    @staticmethod
    def _next(waiting: "deque[_Pending]") -> Rendered:
        ahead = sum(pending.done() for pending in waiting) / len(waiting)
        return waiting.popleft().result(ahead)


class _Part(NamedTuple):
    """What became of a run of samples."""

    errors: dict[int, str]
    products: list[list[Any] | None]
    timing: Timing


class _Pending:
    """A job whose parts are being rendered."""

    def __init__(self, task: "_Task", futures: list[Future[_Part]]) -> None:
        self._task, self._futures = task, futures

    def done(self) -> bool:
        return all(future.done() for future in self._futures)

    def result(self, ahead: float) -> Rendered:
        return _gathered(self._task, [future.result() for future in self._futures], ahead)

    def cancel(self) -> None:
        for future in self._futures:
            future.cancel()


def _gathered(task: "_Task", parts: list[_Part], ahead: float = 0.0) -> Rendered:
    errors = {index: reason for part in parts for index, reason in part.errors.items()}
    products = [product for part in parts for product in part.products]
    timing = sum((part.timing for part in parts), Timing())
    return Rendered(torch.from_numpy(task.pixels), errors, task.job.tag, products, timing, ahead)


class _Task:
    """A job and the memory for its pixels."""

    def __init__(self, spec: RenderSpec, job: Job) -> None:
        self.spec, self.job = spec, job
        kept = 0 if job.finish else len(job.images)
        self.pixels = np.empty((job.plan.rounds, kept, spec.size, spec.size, 3), np.uint8)
        self._plain = job.finish is None and job.plan.rounds == 1 and job.plan.is_plain
        stack = job.images if self._plain and isinstance(job.images, Stack) else None
        self.copied = stack is not None and stack.side == (spec.size, spec.size)
        """Nothing but copies, some of them mirrored."""
        self.one_thread = stack is not None and self.copied and stack.one_thread
        self.instant = stack is not None and self.copied and stack.in_memory and self.pixels.nbytes <= INSTANT_BYTES
        """Done sooner than handed to another thread."""

    def render(self, start: int, stop: int) -> _Part:
        """Render samples start … stop - 1, into their place or for `finish`."""
        if self.copied:
            return self._copy(start, stop)
        return self._show(start, stop) if self._plain else self._render(start, stop)

    def _copy(self, start: int, stop: int) -> _Part:
        began = perf_counter()
        stack, out = self.job.images, self.pixels[0, start:stop]
        assert isinstance(stack, Stack)
        errors = stack.copy_to(start, self.job.plan.flip[0, start:stop], out)
        for index in errors:
            out[index - start] = FILL
        return _Part(errors, [], Timing(fetch=perf_counter() - began))

    def _show(self, start: int, stop: int) -> _Part:
        """What `_render` does, without what ops and crops would need: that costs as much as decoding a small JPEG."""
        job, pixels, errors, clock = self.job, self.pixels[0], {}, _Clock()
        for index, flip in enumerate(job.plan.flip[0, start:stop].tolist(), start):
            out = pixels[index]
            try:
                image = job.images[index]
                clock.ended("fetch")
                show(self.spec, image, out)
                clock.ended("decode")
                if flip:
                    cv2.flip(out, 1, out)
            except CorruptSampleError as error:
                errors[index] = str(error)
                out[:] = FILL
            clock.ended("augment")
        return _Part(errors, [], clock.timing)

    def _render(self, start: int, stop: int) -> _Part:
        job = self.job
        errors: dict[int, str] = {}
        products: list[list[Any] | None] = []
        clock = _Clock()
        for index, versions in enumerate(_versions(job.plan, start, stop), start):
            try:
                image = job.images[index]
                clock.ended("fetch")
                rendered = _rendered(self.spec, image, versions, clock)
                if job.finish:
                    products.append([job.finish(pixels) for pixels in rendered])
                else:
                    for number, pixels in enumerate(rendered):
                        self.pixels[number, index] = pixels
            except CorruptSampleError as error:
                errors[index] = str(error)
                if job.finish:
                    products.append(None)
                else:
                    self.pixels[:, index] = FILL
            clock.ended("augment")
        return _Part(errors, products, clock.timing)


class _Clock:
    """Adds up what the steps of one thread take, each from the end of the one before."""

    def __init__(self) -> None:
        self._last = perf_counter()
        self._seconds = dict.fromkeys(Timing._fields, 0.0)

    def ended(self, step: str) -> None:
        now = perf_counter()
        self._seconds[step] += now - self._last
        self._last = now

    @property
    def timing(self) -> Timing:
        return Timing(**self._seconds)


class _Version(NamedTuple):
    """One version of one sample, in plain numbers: numpy's scalars cost more than the smaller ops."""

    ops: list[tuple[str, float, tuple[float, float]]]
    """Name, value and centre of each op, in order."""
    flip: bool
    box: Box


def _versions(plan: Plan, start: int, stop: int) -> list[list[_Version]]:
    """For each of some samples its versions, one per round."""
    part = plan.take(slice(start, stop))
    rounds = [
        [
            _Version(_ops(codes, values, centres), flip, (box[0], box[1], box[2], box[3]))
            for codes, values, centres, flip, box in zip(*columns, strict=True)
        ]
        for columns in zip(
            part.op.tolist(),
            part.value.tolist(),
            part.centre.tolist(),
            part.flip.tolist(),
            part.box.tolist(),
            strict=True,
        )
    ]
    return [list(versions) for versions in zip(*rounds, strict=True)]


def _ops(
    codes: list[int], values: list[float], centres: list[list[float]]
) -> list[tuple[str, float, tuple[float, float]]]:
    return [
        (OPS[code].name, value, (centre[0], centre[1]))
        for code, value, centre in zip(codes, values, centres, strict=True)
        if code
    ]


def _rendered(spec: RenderSpec, image: Image, versions: list[_Version], clock: _Clock) -> Iterator[Pixels]:
    """The versions of a sample, each uint8 [size, size, 3], contiguous."""
    boxes = tuple(dict.fromkeys([version.box for version in versions]))
    full_size, pixels, placements = open_image(spec, image, boxes)
    clock.ended("decode")
    bases = {
        box: fitted(pixels, full_size, placement, spec.size) for box, placement in zip(boxes, placements, strict=True)
    }
    for version in versions:
        result = bases[version.box]
        for name, value, centre in version.ops:
            result = apply_op(result, name, value, centre)
        yield cv2.flip(result, 1) if version.flip else result
