"""The triangle filter's resize of torch, bit for bit, with numpy alone: whoever has no torch loaded need not load it.

Source: PyTorch, `UpSampleKernelAVXAntialias.h` (after Pillow-SIMD): the horizontal pass comes first, both round to
uint8, and weights are integers of at most 15 bits.
"""

from functools import lru_cache
from math import floor
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BLOCK = 16
"""Output rows per matrix product: they need few input rows."""
MOST_PRODUCTS = 1 << 18
"""Multiplications per matrix product, roughly. Of a larger one OpenBLAS gives a part to threads of its own, which go on
turning for 25 ms after it in case there is more: beside the caller's own threads that costs far more than it brings."""
WHOLE_AT_ONCE = 1 << 20
"""Levels that become floats at once; of larger images only what a block needs, so that they take little memory."""
MOST_BITS = 22
EXACT_BITS = 16
"""Sums of products with so many bits behind the point, 255 at most before it, are exact in float32."""


class _Block(NamedTuple):
    """Some output rows as a product: `rows` = `weights` @ input[`needs`]."""

    rows: slice
    needs: slice
    weights: NDArray[np.float32] | NDArray[np.float64]


def shrink(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Bilinear resize with antialiasing, as `torch.nn.functional.interpolate(mode="bilinear", antialias=True)` does it.

    Args:
        pixels: uint8 [any, any, 3].
        out: uint8 [height, width, 3]; filled with the result.
    """
    height, width = out.shape[:2]
    if pixels.shape[1] != width:
        pixels = cv2.transpose(_along_rows(cv2.transpose(pixels), width))
    out[:] = _along_rows(pixels, height) if pixels.shape[0] != height else pixels


def _along_rows(pixels: NDArray[np.uint8], rows: int) -> NDArray[np.uint8]:
    """Resize uint8 [n, m, 3] to uint8 [rows, m, 3]."""
    count, others = pixels.shape[:2]
    blocks = _blocks(count, rows)
    kind = blocks[0].weights.dtype
    levels = pixels.reshape(count, others * 3)
    small = levels.size <= WHOLE_AT_ONCE
    levels = levels.astype(kind) if small else levels
    sums = np.empty((rows, others * 3), kind)
    for block in blocks:
        needed = levels[block.needs]
        needed = needed if small else needed.astype(kind)
        step = max(MOST_PRODUCTS // block.weights.size, 1)
        for first in range(0, others * 3, step):
            part = slice(first, first + step)
            np.matmul(block.weights, needed[:, part], out=sums[block.rows, part])
    sums += 0.5  # still below 256: rounding makes the weights of a row add up to hardly more than 1
    return sums.astype(np.uint8).reshape(rows, others, 3)


@lru_cache(512)
def _blocks(count: int, rows: int) -> tuple[_Block, ...]:
    """How `rows` rows come from `count`."""
    starts, weights, bits = _weights(count, rows)
    kind = np.float32 if bits <= EXACT_BITS else np.float64
    blocks = []
    for first in range(0, rows, BLOCK):
        mine = range(first, min(first + BLOCK, rows))
        start, stop = starts[mine[0]], max(starts[row] + len(weights[row]) for row in mine)
        matrix = np.zeros((len(mine), stop - start), kind)
        for place, row in enumerate(mine):
            left = starts[row] - start
            matrix[place, left : left + len(weights[row])] = weights[row]
        blocks.append(_Block(slice(mine[0], mine[-1] + 1), slice(start, stop), matrix))
    return tuple(blocks)


def _weights(count: int, rows: int) -> tuple[list[int], list[NDArray[np.float64]], int]:
    """First input row and weights (multiples of 2 to the minus `bits`) of each output row, and `bits`."""
    scale = count / rows
    support = max(scale, 1.0)
    starts, weights = [], []
    for row in range(rows):
        centre = scale * (row + 0.5)
        start = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), count)
        shares = np.maximum(1 - np.abs((np.arange(start, stop) - centre + 0.5) / support), 0)
        starts.append(start)
        weights.append(shares / shares.sum())
    bits = _bits(max(float(shares.max()) for shares in weights))
    return starts, [np.floor(shares * 2**bits + 0.5) * 2.0**-bits for shares in weights], bits


def _bits(largest: float) -> int:
    """How many bits behind the point leave the largest weight below 2**15."""
    for bits in range(MOST_BITS):
        if floor(0.5 + largest * 2 ** (bits + 1)) >= 2**15:
            return bits
    return MOST_BITS
