"""The dali engine: the same plan carried out by an NVIDIA DALI graph, on a GPU or on the CPU.

DALI cannot skip a damaged sample (1.34 decodes a truncated JPEG silently, a hard error kills the pipeline), so files
that nobody has checked yet are checked first, in threads. Raw images of one size are copied into one array, in threads,
too: of a list DALI takes each by itself, for microseconds of Python's lock.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import dlpack

from pipelines.augmentations import FILL
from pipelines.console.cores import usable_cores
from pipelines.engines.base import Image, Job, Rendered, RenderSpec, Stack, Timing
from pipelines.engines.dali_compat import Dali
from pipelines.engines.dali_files import GREY_PNG, check, taken
from pipelines.engines.dali_graph import GraphShape, build_graph
from pipelines.engines.dali_inputs import Images, sizes_of, slot_inputs, view_inputs
from pipelines.engines.device import DeviceRows, versions
from pipelines.fit import WHOLE
from pipelines.plan import Plan
from pipelines.tensors import batch_memory

BATCHES_AHEAD = 2
FINISH_CHUNK = 16
"""Samples that one task of the thread pool finishes: enough to hide the cost of handing it over."""


class DaliEngine:
    """See `pipelines.engines.base.Engine`.

    Args:
        spec: What the images look like.
        gpu: Run on the current CUDA device; False runs the graph on the CPU.
        threads: DALI's CPU threads; 0 takes one per core that this process may use.

    Raises:
        UsageError: DALI is not installed.
    """

    name = "dali"

    def __init__(self, spec: RenderSpec, *, gpu: bool, threads: int = 0) -> None:
        self.spec, self.gpu = spec, gpu
        self.threads = threads or usable_cores()
        self.device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        # Rows that DALI reads in place are gathered on a stream of their own: nothing would tell DALI to wait for the
        # consumer's, and waiting for that here would wait for the whole training step that is queued there.
        self._gathering = torch.cuda.Stream(self.device) if gpu else None  # type: ignore[no-untyped-call]
        self._dali = Dali()
        self._pool = self._pool_of("work", self.threads)
        self._copier = self._pool_of("copy", 1)
        # These wait for the other threads, which must never wait for them.
        self._preparing = self._pool_of("prepare", BATCHES_AHEAD)
        self._free: list[_Graph] = []
        self._closed = False

    def _pool_of(self, name: str, count: int) -> ThreadPoolExecutor:
        """A pool whose threads work on the engine's GPU: a new thread begins on the first one."""
        on_gpu: dict[str, Any] = {"initializer": torch.cuda.set_device, "initargs": (self.device,)} if self.gpu else {}
        return ThreadPoolExecutor(count, thread_name_prefix=name, **on_gpu)

    def stream(self, jobs: Iterable[Job]) -> Iterator[Rendered]:
        """Render jobs in order, `BATCHES_AHEAD` of them inside DALI. Several streams may be under way at once."""
        finishing: deque[_Finishing] = deque()
        with closing(self._rendered(jobs)) as results:
            try:
                for job, rendered in results:
                    finishing.append(self._finish(job, rendered))
                    if not job.finish or len(finishing) > BATCHES_AHEAD:
                        yield finishing.popleft().result()
                while finishing:
                    yield finishing.popleft().result()
            finally:
                for left in finishing:
                    left.cancel()

    def _finish(self, job: Job, rendered: Rendered) -> "_Finishing":
        """Hand rendered samples to the job's `finish`, in threads, while DALI renders the next batches."""
        finish = job.finish
        if finish is None:
            return _Finishing(rendered, [])
        pixels = rendered.pixels.cpu().numpy()

        def run(start: int) -> list[list[Any] | None]:
            part = range(start, min(start + FINISH_CHUNK, pixels.shape[1]))
            return [None if index in rendered.errors else [finish(each) for each in pixels[:, index]] for index in part]

        futures = [self._pool.submit(run, start) for start in range(0, pixels.shape[1], FINISH_CHUNK)]
        return _Finishing(replace(rendered, pixels=rendered.pixels[:, :0]), futures)

    def _rendered(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Rendered], None, None]:
        waiting: deque[_Fed] = deque()
        leased: dict[GraphShape, _Graph] = {}
        prepared, clean = self._prepared(jobs), False
        try:
            for fed in prepared:
                if fed.shape is None:
                    while waiting:
                        yield self._collect(waiting.popleft())
                    yield fed.job, self._shown(fed)
                    continue
                graph = leased.get(fed.shape)
                if graph is None or graph.capacity < len(fed.images):
                    # What runs in another graph must come out first, or the order would be lost.
                    while waiting:
                        yield self._collect(waiting.popleft())
                    if graph is not None:
                        self._free.append(leased.pop(fed.shape))
                    graph = leased[fed.shape] = self._lease(fed.shape, len(fed.images))
                while waiting and waiting[0].graph is not graph:
                    yield self._collect(waiting.popleft())
                fed.graph = graph
                graph.feed(fed.inputs)
                waiting.append(fed)
                if len(waiting) >= BATCHES_AHEAD:
                    yield self._collect(waiting.popleft())
            while waiting:
                yield self._collect(waiting.popleft())
            clean = True
        except GeneratorExit:  # the caller stopped early; DALI must not keep batches of the past
            for fed in waiting:
                assert fed.graph is not None
                fed.graph.discard()
            clean = True
            raise
        finally:
            prepared.close()
            # A pipeline that failed is dead, and after an interrupt nobody knows what is inside: both are dropped.
            if clean and not self._closed:
                self._free.extend(leased.values())

    def _prepared(self, jobs: Iterable[Job]) -> Generator["_Fed", None, None]:
        """Everything that DALI is to be given; threads prepare the next `BATCHES_AHEAD` jobs meanwhile."""
        waiting: deque[Future[_Fed]] = deque()
        try:
            for job in jobs:
                if isinstance(job.images, DeviceRows) and job.plan.is_plain:  # done in less than it takes to hand over
                    while waiting:
                        yield waiting.popleft().result()
                    began = perf_counter()
                    yield _Fed(job, job.images.gather(), {}, None, {}, perf_counter() - began)
                    continue
                waiting.append(self._preparing.submit(self._prepare, job))
                if len(waiting) > BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()

    def _shown(self, fed: "_Fed") -> Rendered:
        """A job whose images are shown as they are, or mirrored: no graph is needed."""
        began = perf_counter()
        pixels = fed.images
        assert isinstance(pixels, torch.Tensor)
        if self._gathering is not None:  # in whose memory they may lie
            pixels.record_stream(torch.cuda.current_stream(self.device))
        shown = pixels[None] if fed.mirrored else versions(pixels, fed.job.plan.flip)
        timing = Timing(fetch=fed.fetch, augment=perf_counter() - began)
        return Rendered(shown, fed.errors, fed.job.tag, timing=timing)

    def close(self) -> None:
        """Drop the graphs and stop the threads."""
        self._closed = True
        self._free.clear()
        self._preparing.shutdown(wait=True, cancel_futures=True)
        for pool in (self._pool, self._copier):
            pool.shutdown(wait=True, cancel_futures=True)

    def _lease(self, shape: GraphShape, count: int) -> "_Graph":
        """A graph that no other stream uses: one that is free, or a new one."""
        for index, graph in enumerate(self._free):
            if graph.shape == shape and graph.capacity >= count:
                return self._free.pop(index)
        return _Graph(self._dali, shape, _capacity(count), self.spec.size, self.threads, self.device, self._gathering)

    def _prepare(self, job: Job) -> "_Fed":
        plan, size, stack = job.plan, self.spec.size, job.images
        began = perf_counter()
        if isinstance(stack, Stack) and stack.side == (size, size) and plan.is_plain:
            here = not self.gpu and plan.rounds == 1  # a GPU mirrors them for nothing
            pixels, errors = self._copied(stack, plan.flip[0] if here else None)
            return _Fed(job, pixels, errors, None, {}, perf_counter() - began, mirrored=here)
        images, errors, there = self._images(job)
        encoded = len(images) > 0 and images[0].ndim == 1
        resize = encoded or _cropped(plan) or bool(set(sizes_of(images)) - {(size, size)})
        views = plan.rounds if _cropped(plan) else 1
        inputs: dict[str, Any] = {"image": images}
        crop = resize and (_cropped(plan) or self.spec.fit == "crop")
        if resize:
            inputs.update(view_inputs(images, plan, self.spec, views, crop=crop))
        shape = GraphShape(encoded, there and self.gpu, resize, crop, views, plan.rounds, plan.slots)
        for number in range(plan.rounds):
            inputs[f"flip{number}"] = plan.flip[number].astype(np.int32)
            for slot in range(plan.slots):
                inputs.update(slot_inputs(plan, number, slot, size))
        return _Fed(job, images, errors, shape, inputs, perf_counter() - began)

    def _images(self, job: Job) -> tuple[Images, dict[int, str], bool]:
        """(images as DALI takes them, position → reason of damaged ones, whether they lie in one array)."""
        if isinstance(job.images, DeviceRows):
            with torch.cuda.stream(self._gathering):  # does nothing for None
                pixels = job.images.gather()
            if self._gathering is not None:
                self._gathering.synchronize()
            errors: dict[int, str] = {}
        elif isinstance(job.images, Stack) and len(job.images):
            pixels, errors = self._copied(job.images)
        else:
            return *self._checked(job), False
        return pixels, errors, True

    def _copied(self, stack: Stack, flip: NDArray[np.bool_] | None = None) -> tuple[torch.Tensor, dict[int, str]]:
        """A stack in one array on the device, written already; damaged images are grey, and reported."""
        count = len(stack)
        flip = np.zeros(count, np.bool_) if flip is None else flip
        pool = self._copier if stack.one_thread else self._pool
        shape = (count, *stack.side, 3)
        if self.gpu:
            host = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            host = batch_memory(shape, torch.uint8, self.device)
        out, parts = host.numpy(), 1 if stack.one_thread else min(self.threads, count)

        def copy(part: int) -> dict[int, str]:
            start, stop = count * part // parts, count * (part + 1) // parts
            errors = stack.copy_to(start, flip[start:stop], out[start:stop])
            for index in errors:
                out[index] = FILL
            return errors

        errors = {index: reason for found in pool.map(copy, range(parts)) for index, reason in found.items()}
        if self._gathering is None:
            return host, errors
        with torch.cuda.stream(self._gathering):
            pixels = host.to(self.device, non_blocking=True)
        self._gathering.synchronize()
        return pixels, errors

    def _checked(self, job: Job) -> tuple[list[Image], dict[int, str]]:
        """The images as DALI can read them; damaged ones are replaced and reported."""
        if job.checked:
            results = [taken(job.images, index) for index in range(len(job.images))]
        else:
            results = list(self._pool.map(lambda index: check(job.images, index), range(len(job.images))))
        errors = {index: result for index, result in enumerate(results) if isinstance(result, str)}
        images = [result for result in results if not isinstance(result, str)]
        raw = bool(images) and images[0].ndim == 3
        stand_in = np.full((self.spec.size, self.spec.size, 3), FILL, np.uint8) if raw else GREY_PNG
        return [stand_in if isinstance(result, str) else result for result in results], errors

    def _collect(self, fed: "_Fed") -> tuple[Job, Rendered]:
        assert fed.graph is not None
        began = perf_counter()
        pixels = fed.graph.collect(fed.job.plan.rounds, len(fed.images))
        for index in fed.errors:
            pixels[:, index] = FILL
        timing = Timing(fetch=fed.fetch, augment=perf_counter() - began)
        return fed.job, Rendered(pixels, fed.errors, fed.job.tag, timing=timing)


@dataclass
class _Finishing:
    """A rendered job whose samples are with `finish`."""

    rendered: Rendered
    futures: list[Future[list[list[Any] | None]]]

    def result(self) -> Rendered:
        return replace(self.rendered, products=[product for future in self.futures for product in future.result()])

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()


class _Graph:
    """A built DALI pipeline and its queue."""

    def __init__(
        self,
        dali: Dali,
        shape: GraphShape,
        capacity: int,
        size: int,
        threads: int,
        device: torch.device,
        gathering: "torch.cuda.Stream | None",
    ) -> None:
        self.shape, self.capacity, self._gathering = shape, capacity, gathering
        self._dali, self._size, self._device = dali, size, device
        self._gpu = device.type == "cuda"
        # Results are copied on a stream of their own, so that they never wait for the consumer's queued work.
        self._copying = torch.cuda.Stream(device) if self._gpu else None  # type: ignore[no-untyped-call]
        self._first = True

        @dali.pipeline_def(  # type: ignore[untyped-decorator]
            enable_conditionals=True,
            batch_size=capacity,
            num_threads=threads,
            device_id=device.index if self._gpu else None,
            prefetch_queue_depth=BATCHES_AHEAD,
        )
        def graph() -> Any:  # noqa: ANN401
            return build_graph(dali, shape, size=size, gpu=self._gpu)

        self._pipeline = graph()
        self._pipeline.build()

    def feed(self, inputs: dict[str, Any]) -> None:
        """Start a batch."""
        # The first `schedule_run` of a pipeline runs as many batches as its queue is deep; later ones run a single one.
        copies = BATCHES_AHEAD if self._first else 1
        self._first = False
        for _ in range(copies):
            for name, data in inputs.items():
                if isinstance(data, torch.Tensor):
                    # The stream is one on which nothing is left to be done.
                    self._pipeline.feed_input(name, _capsule(data), cuda_stream=self._gathering)
                else:
                    self._pipeline.feed_input(name, data)
        self._pipeline.schedule_run()
        for _ in range(copies - 1):
            self.discard()

    def discard(self) -> None:
        """Throw the oldest batch away."""
        self._pipeline.share_outputs()
        self._pipeline.release_outputs()

    def collect(self, rounds: int, count: int) -> torch.Tensor:
        """The pixels of the oldest batch, in memory of their own: uint8 [rounds, count, size, size, 3]."""
        outputs = self._pipeline.share_outputs()
        with torch.cuda.stream(self._copying):  # does nothing for None
            pixels = batch_memory((rounds, count, self._size, self._size, 3), torch.uint8, self._device)
            for number, output in enumerate(outputs):
                self._dali.feed_ndarray(output.as_tensor(), pixels[number], cuda_stream=self._copying)
        if self._copying is not None:
            self._copying.synchronize()  # DALI reuses its buffers as soon as they are released
            pixels.record_stream(torch.cuda.current_stream(self._device))
        self._pipeline.release_outputs()
        return pixels


@dataclass
class _Fed:
    """A job on its way through DALI; keeps alive what DALI reads without a copy."""

    job: Job
    images: Images
    errors: dict[int, str]
    shape: GraphShape | None
    """None where nothing is left to be done but flips."""
    inputs: dict[str, Any]
    fetch: float
    """Seconds that it took to get the images."""
    mirrored: bool = False
    """Flips have been done, too."""
    graph: _Graph | None = None


def _capsule(images: torch.Tensor) -> Any:  # noqa: ANN401
    """An array of images as DLPack, which can be taken once.

    Not as a numpy array: a thread of DALI's 1.34 gives it back without having taken Python's lock. And one image goes
    alone: PyTorch up to 2.9 gives a dimension of one a stride that 1.34 refuses.
    """
    to_dlpack = dlpack.to_dlpack  # type: ignore[attr-defined]
    return [to_dlpack(images[0])] if len(images) == 1 else to_dlpack(images)


def _capacity(count: int) -> int:
    """Batch sizes are rounded up to a power of two, so that a short last batch needs no new graph."""
    return max(64, 1 << (count - 1).bit_length())


def _cropped(plan: Plan) -> bool:
    return bool((plan.box != np.array(WHOLE, np.float32)).any())
