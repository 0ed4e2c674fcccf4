"""The cpu engine: threads over simplejpeg (scaled decode), torch (antialiased resize) and OpenCV (ops).

All of these release Python's lock while pixels move. Results do not depend on the number of threads or the batch size.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.augmentations import (
    FILL,
    GEOMETRIC,
    LUMA,
    OPS,
    affine,
    cutout_box,
    linear_table,
    point_table,
    sharpness_kernel,
)
from pipelines.console.cores import usable_cores
from pipelines.decode import Pixels, decode, read_header
from pipelines.engines.base import Image, Job, Rendered, RenderSpec
from pipelines.errors import CorruptSampleError
from pipelines.fit import Box, Placement, place, scaled
from pipelines.plan import Plan

CHUNKS_PER_THREAD = 2
"""Parts of a batch per thread: more than one, so that a thread with large images does not hold up the rest."""

JOBS_AHEAD = 2
DCT_FACTORS = (8, 4, 2)
"""JPEG decoding at 1/8, 1/4 and 1/2; libjpeg-turbo has fast code for these and for full size only."""


class CpuEngine:
    """See `pipelines.engines.base.Engine`.

    Args:
        spec: What the images look like.
        threads: Worker threads; 0 takes one per core that this process may use.
    """

    name = "cpu"
    device = torch.device("cpu")

    def __init__(self, spec: RenderSpec, *, threads: int = 0) -> None:
        self.spec = spec
        self.threads = threads or usable_cores()
        cv2.setNumThreads(0)  # the engine's own threads are enough
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="render")

    def stream(self, jobs: Iterable[Job]) -> Iterator[Rendered]:
        """Render jobs in order, `JOBS_AHEAD` of them in the background."""
        waiting: deque[_Pending] = deque()
        try:
            for job in jobs:
                waiting.append(self._submit(job))
                if len(waiting) > JOBS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for pending in waiting:
                pending.cancel()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, job: Job) -> "_Pending":
        count = len(job.images)
        size = self.spec.size
        pixels = np.empty((job.plan.rounds, count, size, size, 3), np.uint8)
        parts = min(max(count, 1), self.threads * CHUNKS_PER_THREAD)
        edges = [count * part // parts for part in range(parts + 1)]
        futures = [
            self._pool.submit(_render_range, self.spec, job, pixels, edges[part], edges[part + 1])
            for part in range(parts)
        ]
        return _Pending(job, pixels, futures)


class _Pending:
    """A job whose parts are being rendered."""

    def __init__(self, job: Job, pixels: NDArray[np.uint8], futures: list[Future[dict[int, str]]]) -> None:
        self._job, self._pixels, self._futures = job, pixels, futures

    def result(self) -> Rendered:
        errors: dict[int, str] = {}
        for future in self._futures:
            errors.update(future.result())
        return Rendered(torch.from_numpy(self._pixels), errors, self._job.tag)

    def cancel(self) -> None:
        for future in self._futures:
            future.cancel()


def _render_range(spec: RenderSpec, job: Job, pixels: NDArray[np.uint8], start: int, stop: int) -> dict[int, str]:
    """Render samples start … stop - 1 into their place; returns the errors."""
    errors: dict[int, str] = {}
    for index in range(start, stop):
        try:
            _render_sample(spec, job.images[index], job.plan, index, pixels[:, index])
        except CorruptSampleError as error:
            errors[index] = str(error)
            pixels[:, index] = FILL
    return errors


def _render_sample(spec: RenderSpec, image: Image, plan: Plan, index: int, out: NDArray[np.uint8]) -> None:
    boxes = [_box(row) for row in plan.box[:, index].tolist()]
    full_size, pixels, placements = _open(spec, image, boxes)
    bases: dict[Box, Pixels] = {}
    for number, (box, placement) in enumerate(zip(boxes, placements, strict=True)):
        if box not in bases:
            bases[box] = fitted(pixels, full_size, placement, spec.size)
        result = bases[box]
        for slot in range(plan.slots):
            code = int(plan.op[number, index, slot])
            if code:
                x, y = plan.centre[number, index, slot].tolist()
                result = apply_op(result, OPS[code].name, float(plan.value[number, index, slot]), (x, y))
        if plan.flip[number, index]:
            result = cv2.flip(result, 1)
        out[number] = result


def _box(row: list[float]) -> Box:
    return (row[0], row[1], row[2], row[3])


def _open(spec: RenderSpec, image: Image, boxes: list[Box]) -> tuple[tuple[int, int], Pixels, list[Placement]]:
    """Decode as small as the placements allow; (upright full size, pixels, placements in the full size)."""
    if image.ndim == 3:
        height, width = image.shape[:2]
        return (height, width), image, [place(height, width, spec.size, spec.fit, box) for box in boxes]
    header = read_header(image)
    height, width = header.upright
    placements = [place(height, width, spec.size, spec.fit, box) for box in boxes]
    factor = dct_factor(height, width, placements)
    pixels = decode(image, header=header, min_height=-(-height // factor), min_width=-(-width // factor))
    return (height, width), pixels, placements


def dct_factor(height: int, width: int, placements: list[Placement]) -> int:
    """The largest of 8, 4, 2, 1 by which the image may shrink while decoding without being enlarged afterwards."""
    for factor in DCT_FACTORS:
        if all(
            p.source.width >= p.target.width * factor and p.source.height >= p.target.height * factor
            for p in placements
        ):
            return factor
    return 1


def fitted(pixels: Pixels, full_size: tuple[int, int], placement: Placement, size: int) -> Pixels:
    """Show the placement's source, resized, on a grey square.

    Args:
        pixels: uint8 [height, width, 3], the image at its full size or smaller.
        full_size: (height, width) that the placement speaks of.
        placement: Where pixels come from and go.
        size: Side of the square in px.

    Returns:
        uint8 [size, size, 3], contiguous; may share memory with `pixels` if nothing had to be done.
    """
    source = scaled(placement.source, full_size, (pixels.shape[0], pixels.shape[1]))
    target = placement.target
    part = pixels[source.top : source.top + source.height, source.left : source.left + source.width]
    if (source.width, source.height) != (target.width, target.height):
        part = resized(part, target.height, target.width)
    if (target.width, target.height) == (size, size):
        return np.ascontiguousarray(part)
    square = np.full((size, size, 3), FILL, np.uint8)
    square[target.top : target.top + target.height, target.left : target.left + target.width] = part
    return square


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Bilinear with antialiasing: the triangle filter grows with the reduction, as in Pillow and DALI."""
    # torch would copy a part of an image in parallel, with a team of OpenMP threads for each thread that calls it.
    whole = np.require(pixels, requirements=["C", "W"])
    planes = torch.from_numpy(whole).permute(2, 0, 1).unsqueeze(0)
    result = torch.nn.functional.interpolate(
        planes, size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return np.ascontiguousarray(result.squeeze(0).permute(1, 2, 0).numpy())


def apply_op(pixels: Pixels, name: str, value: float, centre: tuple[float, float] = (0.5, 0.5)) -> Pixels:
    """Carry out one op.

    Args:
        pixels: uint8 [size, size, 3]; not changed.
        name: Name of the op.
        value: Signed value in the op's unit.
        centre: (x, y) of the cut-out as shares of the side.

    Returns:
        uint8 [size, size, 3].
    """
    if name in GEOMETRIC:
        return _warped(pixels, name, value)
    if name == "Cutout":
        left, top, width, height = cutout_box(value, centre, pixels.shape[0])
        result = pixels.copy()
        result[top : top + height, left : left + width] = FILL
        return result
    if name == "Sharpness":
        return cv2.filter2D(pixels, -1, sharpness_kernel(value), borderType=cv2.BORDER_REFLECT_101)
    if name == "Contrast":
        red, green, blue, _ = cv2.mean(pixels)
        centre_level = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
        return cv2.LUT(pixels, linear_table(1.0 + value, -value * centre_level))
    if name == "AutoContrast":
        return cv2.LUT(pixels, _auto_contrast_table(pixels))
    if name == "Equalize":
        return cv2.merge([cv2.equalizeHist(plane) for plane in cv2.split(pixels)])
    if name == "Identity":
        return pixels
    return cv2.LUT(pixels, point_table(name, value))


def _warped(pixels: Pixels, name: str, value: float) -> Pixels:
    size = pixels.shape[0]
    (a, b, c), (d, e, f) = affine(name, value, size)
    # OpenCV counts from the centre of the first pixel, `affine` from its corner.
    matrix = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    return cv2.warpAffine(
        pixels,
        matrix,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(FILL, FILL, FILL),
    )


def _auto_contrast_table(pixels: Pixels) -> NDArray[np.uint8]:
    """Per channel: the darkest level becomes 0, the brightest 255; a flat channel stays. uint8 [1, 256, 3]."""
    flat = pixels.reshape(-1, 3)
    low, high = flat.min(axis=0), flat.max(axis=0)
    columns = [
        linear_table(255.0 / (float(h) - float(lo)), -float(lo) * 255.0 / (float(h) - float(lo)))
        if h > lo
        else np.arange(256, dtype=np.uint8)
        for lo, h in zip(low, high, strict=True)
    ]
    return np.stack(columns, axis=1).reshape(1, 256, 3)
