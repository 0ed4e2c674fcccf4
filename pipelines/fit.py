"""How an image of any shape becomes a square: which part of it is shown, and where it lands. Pure integer geometry."""

from dataclasses import dataclass
from math import floor
from typing import Literal, NamedTuple

Fit = Literal["pad", "stretch", "crop"]
Box = tuple[float, float, float, float]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Rect(NamedTuple):
    """A rectangle of pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Placement:
    """Where pixels come from and where they go.

    Attributes:
        source: The part of the image that is shown.
        target: Where it lands in the square, resized to this rectangle; the rest is filled.
    """

    source: Rect
    target: Rect


def place(height: int, width: int, size: int, fit: Fit, box: Box = WHOLE) -> Placement:
    """Fit an image into a square.

    Args:
        height: Of the image, in px.
        width: Of the image, in px.
        size: Side of the square, in px.
        fit: `pad` shows all of the image, centred in a square whose side is the image's longer side; `crop` shows the
            central square; `stretch` shows all of it, without keeping the aspect ratio.
        box: (left, top, width, height) of a random resized crop, as shares of that square.

    Returns:
        The placement; both rectangles hold at least one pixel, `source` lies in the image and `target` in the square.
    """
    across = _axis(width, _square(height, width, width, fit), size, box[0], box[2])
    down = _axis(height, _square(height, width, height, fit), size, box[1], box[3])
    return Placement(Rect(across[0], down[0], across[1], down[1]), Rect(across[2], down[2], across[3], down[3]))


def _square(height: int, width: int, side: int, fit: Fit) -> int:
    if fit == "pad":
        return max(height, width)
    return min(height, width) if fit == "crop" else side


def _axis(length: int, square: int, size: int, start: float, share: float) -> tuple[int, int, int, int]:
    """One axis: (source start, source length, target start, target length)."""
    shown = max(square * share, 1.0)
    first = (length - square) / 2 + min(square * start, square - shown)
    begin, end = max(first, 0.0), min(first + shown, float(length))
    if end <= begin:  # the crop shows nothing but padding: keep the nearest line of pixels
        begin = min(max(begin, 0.0), length - 1.0)
        end = begin + 1.0
    source_start = min(round_half_up(begin), length - 1)
    source_length = max(round_half_up(end) - source_start, 1)
    source_length = min(source_length, length - source_start)
    scale = size / shown
    target_start = min(max(round_half_up((begin - first) * scale), 0), size - 1)
    target_length = max(round_half_up((end - begin) * scale), 1)
    return source_start, source_length, target_start, min(target_length, size - target_start)


def round_half_up(value: float) -> int:
    """Round to the nearest integer, halves upwards (Python's `round` would go to the even one)."""
    return floor(value + 0.5)


def scaled(rect: Rect, from_size: tuple[int, int], to_size: tuple[int, int]) -> Rect:
    """The same part of an image that was decoded at another size.

    Args:
        rect: In the image of `from_size`.
        from_size: (height, width).
        to_size: (height, width).
    """
    left, width = _scaled_axis(rect.left, rect.width, from_size[1], to_size[1])
    top, height = _scaled_axis(rect.top, rect.height, from_size[0], to_size[0])
    return Rect(left, top, width, height)


def _scaled_axis(start: int, length: int, from_length: int, to_length: int) -> tuple[int, int]:
    if from_length == to_length:
        return start, length
    first = min(start * to_length // from_length, to_length - 1)
    last = max(-(-(start + length) * to_length // from_length), first + 1)
    return first, min(last, to_length) - first
