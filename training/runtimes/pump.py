"""Images through a network as fast as the cores allow: some threads decode while others run the network.

Imports neither torch nor DALI.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from pipelines.engines.base import Image, RenderSpec
from pipelines.engines.cpu_render import show
from pipelines.errors import CorruptSampleError
from training.runtimes.base import Runtime

AHEAD = 128
"""Decoded images that may wait for the network. So many that a few large files do not empty the store; two portions
wait in any case."""
PORTION = 8
"""Images that a thread takes at once, in whole batches: to agree with the other threads takes tens of microseconds."""


@dataclass(frozen=True, kw_only=True)
class Pumped:
    """What came out.

    Attributes:
        logits: float32 [n, classes]; NaN where an image is damaged.
        errors: Position of each damaged image → reason.
        seconds: float64 [n]; how long the network took for each, its share of its batch; 0 where damaged.
        inferring: Seconds in which at least one thread ran the network.
        total: Seconds from the first image to the last.
    """

    logits: NDArray[np.float32]
    errors: dict[int, str]
    seconds: NDArray[np.float64]
    inferring: float
    total: float

    @property
    def kept(self) -> NDArray[np.int64]:
        """int64 [k]; positions of the images that are not damaged, ascending."""
        return np.delete(np.arange(len(self.logits)), list(self.errors))


def pump(
    runtime: Runtime,
    images: Sequence[Image],
    spec: RenderSpec,
    *,
    batch_size: int = 1,
    threads: int = 1,
    networks: int = 1,
    done: Callable[[int], None] | None = None,
) -> Pumped:
    """Decode images and run a network on them.

    Images are cut into batches by their positions, so that what is computed does not depend on threads or timing.

    Args:
        runtime: The network.
        images: Encoded or raw; read when a thread gets to them.
        spec: What the network sees.
        batch_size: Images that go through the network together.
        threads: Threads altogether, at least 1. Whoever is free runs the network if nobody else does and something is
            decoded, and decodes otherwise: so the network hardly ever waits.
        networks: How many of them may run the network at the same time.
        done: Called with the number of images of each finished portion, from any of the threads, one at a time.

    Raises:
        Exception: Whatever the network raises; the threads have ended by then.
    """
    work = _Work(runtime, images, spec, batch_size, networks, done)
    others = [threading.Thread(target=work.run, daemon=True) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    try:
        work.run()
    finally:
        work.stop()
        for thread in others:
            thread.join()
    return work.result()


@dataclass
class _Batch:
    """Some neighbours on their way."""

    start: int
    stop: int
    pixels: NDArray[np.uint8]
    rows: list[int] = field(default_factory=list)
    """Positions of those that could be decoded; their pixels come first."""


@dataclass
class _Portion:
    """What a thread takes at once: neighbouring batches."""

    batches: list[_Batch]
    decoded: bool = False

    @property
    def images(self) -> int:
        return self.batches[-1].stop - self.batches[0].start


class _Work:
    """What the threads share."""

    def __init__(
        self,
        runtime: Runtime,
        images: Sequence[Image],
        spec: RenderSpec,
        batch_size: int,
        networks: int,
        done: Callable[[int], None] | None,
    ) -> None:
        self._runtime, self._images, self._spec, self._done = runtime, images, spec, done
        self._batch_size, self._networks = batch_size, networks
        self._portion = max(PORTION // batch_size, 1) * batch_size
        self._ahead = max(2, AHEAD // self._portion)
        count = len(images)
        self._logits = np.full((count, len(runtime.classes)), np.nan, np.float32)
        self._seconds = np.zeros(count)
        self._errors: dict[int, str] = {}
        self._spans: list[tuple[float, float]] = []
        self._change = threading.Condition()
        self._next = 0  # first image that nobody has taken to decode
        self._decoding = 0
        self._inferring = 0
        self._ready: deque[_Portion] = deque()
        self._failure: BaseException | None = None
        self._stopped = False
        self._start = perf_counter()

    def run(self) -> None:
        """Work until there is nothing left; the body of a thread."""
        try:
            while True:
                with self._change:
                    task = self._take()
                if task is None:
                    return
                if task.decoded:
                    self._infer(task)
                else:
                    self._decode(task)
        except BaseException as error:
            with self._change:
                self._failure = self._failure or error
            self.stop()

    def stop(self) -> None:
        """No more work for anybody."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    def result(self) -> Pumped:
        """What the threads have made of it."""
        if self._failure is not None:
            raise self._failure
        return Pumped(
            logits=self._logits,
            errors=dict(sorted(self._errors.items())),
            seconds=self._seconds,
            inferring=covered(self._spans),
            total=perf_counter() - self._start,
        )

    def _take(self) -> _Portion | None:
        """The next thing to do; waits where all there is to do depends on others. Needs the lock."""
        while not self._stopped:
            undecoded = self._next < len(self._images)
            runnable = bool(self._ready) and self._inferring < self._networks
            full = len(self._ready) >= self._ahead
            if runnable and (not self._inferring or full or not undecoded):
                self._inferring += 1
                return self._ready.popleft()
            if undecoded and not full:
                return self._next_portion()
            if not undecoded and not self._ready and not self._decoding:
                return None
            self._change.wait()
        return None

    def _next_portion(self) -> _Portion:
        start, size = self._next, self._spec.size
        self._next = min(start + self._portion, len(self._images))
        self._decoding += 1
        edges = [*range(start, self._next, self._batch_size), self._next]
        return _Portion(
            [_Batch(begin, end, np.empty((end - begin, size, size, 3), np.uint8)) for begin, end in pairwise(edges)]
        )

    def _decode(self, portion: _Portion) -> None:
        for batch in portion.batches:
            for row in range(batch.start, batch.stop):
                try:
                    show(self._spec, self._images[row], batch.pixels[len(batch.rows)])
                    batch.rows.append(row)
                except CorruptSampleError as error:
                    self._errors[row] = str(error)
        portion.decoded = True
        with self._change:
            self._decoding -= 1
            self._ready.append(portion)
            self._change.notify_all()

    def _infer(self, portion: _Portion) -> None:
        spans = []
        for batch in portion.batches:
            if not batch.rows:
                continue
            start = perf_counter()
            logits = self._runtime.logits(batch.pixels[: len(batch.rows)])
            end = perf_counter()
            self._logits[batch.rows] = logits
            self._seconds[batch.rows] = (end - start) / len(batch.rows)
            spans.append((start, end))
        with self._change:
            self._inferring -= 1
            self._spans += spans
            if self._done is not None:
                self._done(portion.images)
            self._change.notify_all()


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """How much of the time at least one of some spans covers.

    Args:
        spans: (start, end), in any order.
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total
