"""A grid of pictures with captions, as one PNG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MARGIN = 6
FONT_SIZE = 12
LINE_HEIGHT = 15
BACKGROUND, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        pixels: uint8 [height, width, 3], RGB.
        caption: Lines under the picture.
    """

    pixels: NDArray[np.uint8]
    caption: tuple[str, ...] = ()


def draw_sheet(rows: Sequence[Sequence[Tile]], *, tile: int, title: str = "") -> bytes:
    """Lay out rows of tiles.

    Args:
        rows: The tiles; rows may differ in length.
        tile: Side in px that each picture is shown at; small ones are enlarged without smoothing, so that pixels show.
        title: A line above the grid.

    Returns:
        The PNG file.
    """
    lines = max((len(cell.caption) for row in rows for cell in row), default=0)
    columns = max((len(row) for row in rows), default=0)
    step = (tile + MARGIN, tile + lines * LINE_HEIGHT + MARGIN)
    top = LINE_HEIGHT + 2 * MARGIN if title else MARGIN
    sheet = Image.new("RGB", (columns * step[0] + MARGIN, len(rows) * step[1] + top + MARGIN), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    pen.text((MARGIN, MARGIN), title, INK, font)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            left, upper = MARGIN + x * step[0], top + y * step[1]
            sheet.paste(_enlarged(cell.pixels, tile), (left, upper))
            for number, line in enumerate(cell.caption):
                ink = INK if number == 0 else FAINT
                pen.text((left, upper + tile + number * LINE_HEIGHT), _shortened(line, tile, font), ink, font)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _enlarged(pixels: NDArray[np.uint8], tile: int) -> Image.Image:
    image = Image.fromarray(pixels)
    shrinks = max(image.size) > tile
    return image.resize((tile, tile), Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST)


def _shortened(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
