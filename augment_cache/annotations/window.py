"""Where a crop is cut: pure geometry, from a box and a frame to a window of whole pixels.

Boxes are COCO's `[x, y, width, height]` in px as floats, with x to the right and y down from the frame's upper left
corner. Windows are the same four numbers as integers; they never leave the frame and are never empty.
"""

import math
from typing import Literal, NamedTuple

Shape = Literal["square", "tight"]


class Box(NamedTuple):
    """A rectangle as COCO writes it, in px."""

    x: float
    y: float
    width: float
    height: float

    @property
    def side(self) -> float:
        """The shorter side in px, which says how much of the object can be seen."""
        return min(self.width, self.height)


class Window(NamedTuple):
    """A rectangle of whole pixels inside a frame."""

    x: int
    y: int
    width: int
    height: int


def clip_box(box: Box, width: int, height: int) -> Box | None:
    """The part of a box that lies in a frame.

    Args:
        box: Any four floats, also NaN, infinite or negative ones.
        width: Columns of the frame in px.
        height: Rows of the frame in px.

    Returns:
        The clipped box, or None when nothing with an area is left or the box makes no sense.
    """
    if not all(map(math.isfinite, box)) or box.width <= 0 or box.height <= 0:
        return None
    left, right = max(box.x, 0.0), min(box.x + box.width, float(width))
    top, bottom = max(box.y, 0.0), min(box.y + box.height, float(height))
    return Box(left, top, right - left, bottom - top) if right > left and bottom > top else None


def crop_window(box: Box, width: int, height: int, *, shape: Shape, margin: float) -> Window:
    """The window to cut for a box.

    `square`: as long as the longer side x (1 + margin), centred on the box, then shifted to stay in the frame; a frame
    shorter than that clips it, and only then is the window not square. `tight`: the box with margin / 2 of the longer
    side on each of its four sides, clipped to the frame.

    Args:
        box: A box inside the frame, as `clip_box` returns it.
        width: Columns of the frame in px.
        height: Rows of the frame in px.
        shape: `square` or `tight`.
        margin: What is added in total, as a share of the longer side; 0.1 gives the usual crop x 1.1.

    Returns:
        A window inside the frame, at least 1 px each way, that holds the box up to rounding (less than 1 px a side).
    """
    longer = max(box.width, box.height)
    grown = longer * (1 + margin)
    if shape == "square":
        x, columns = _shifted(box.x + box.width / 2, grown, width)
        y, rows = _shifted(box.y + box.height / 2, grown, height)
    else:
        x, columns = _clipped(box.x, box.width, longer * margin / 2, width)
        y, rows = _clipped(box.y, box.height, longer * margin / 2, height)
    return Window(x, y, columns, rows)


def _shifted(centre: float, length: float, limit: int) -> tuple[int, int]:
    pixels = min(max(_round(length), 1), limit)
    return min(max(_round(centre - pixels / 2), 0), limit - pixels), pixels


def _clipped(start: float, length: float, border: float, limit: int) -> tuple[int, int]:
    first = min(max(_round(start - border), 0), limit - 1)
    last = min(max(_round(start + length + border), first + 1), limit)
    return first, last - first


def _round(value: float) -> int:
    """Halves go up, always; Python's own rounding to even would make neighbouring boxes differ by a pixel."""
    return math.floor(value + 0.5)
