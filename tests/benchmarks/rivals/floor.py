"""The floor: decode every source in full, encode three images of the output size, and nothing else.

What it encodes are squares that were made beforehand from photos of the same folder, so that they are as hard to
encode as everybody else's. Threads on all cores: simplejpeg lets go of Python's lock.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipelines.augmentations import FILL
from pipelines.console.cores import usable_cores
from tests.benchmarks.rivals.pool import append, in_chunks, list_images

COPIES = 2
SQUARES = 64
"""Different pictures that are encoded in turn."""


class Floor:
    """See `tests.benchmarks.rivals.contestant.Builder`; the first folder gives the squares."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._squares: list[NDArray[np.uint8]] = []
        self._pool = ThreadPoolExecutor(usable_cores())

    def build(self, data: Path, out: Path) -> None:
        """Decode every source of a folder and encode as many images as the others."""
        out.mkdir(parents=True)
        files = list_images(data)
        self._squares = self._squares or [_square(file, self._size) for file in files[:SQUARES]]
        chunks = in_chunks(files)
        # Written by one thread, in order: the others decode and encode meanwhile.
        for images in self._pool.map(self._encoded, range(len(chunks)), chunks):
            append(out, images)

    def _encoded(self, number: int, files: list[str]) -> list[bytes]:
        images = []
        for position, file in enumerate(files):
            simplejpeg.decode_jpeg(Path(file).read_bytes())
            square = self._squares[(number * len(files) + position) % len(self._squares)]
            images += [_jpeg(square) for _ in range(1 + COPIES)]
        return images

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()


def _square(file: str, size: int) -> NDArray[np.uint8]:
    pixels = simplejpeg.decode_jpeg(Path(file).read_bytes())
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    part = cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    down, across = size - part.shape[0], size - part.shape[1]
    edges = (down // 2, down - down // 2, across // 2, across - across // 2)
    return np.asarray(cv2.copyMakeBorder(part, *edges, cv2.BORDER_CONSTANT, value=(FILL, FILL, FILL)))


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    return bytes(simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420"))


def make(size: int) -> Floor:
    """The contestant."""
    return Floor(size)
