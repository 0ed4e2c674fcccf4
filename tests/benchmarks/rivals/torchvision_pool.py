"""Pillow and torchvision.transforms.v2 in two processes: Pillow decodes and encodes, v2's functions augment."""

import io
import random
from collections.abc import Callable
from math import atan, degrees

import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pipelines.augmentations import CODES, FILL, OPS
from tests.benchmarks.rivals.pool import PoolBuilder

COPIES, PROCESSES = 2, 2
GREY = (FILL, FILL, FILL)

Picture = Image.Image

_size = 0
_random = random.Random(0)


def make_square(picture: Picture, size: int) -> Picture:
    """Resize to fit, antialiased as Pillow always does it, and pad with grey."""
    return ImageOps.pad(picture, (size, size), method=Image.Resampling.BILINEAR, color=GREY)


def _affine(picture: Picture, *, x: float = 0.0, y: float = 0.0, slant: tuple[float, float] = (0.0, 0.0)) -> Picture:
    """Shift by whole pixels or shear by degrees."""
    shift = [round(x * picture.width), round(y * picture.height)]
    return F.affine(
        picture, 0.0, shift, 1.0, [-slant[0], -slant[1]], interpolation=InterpolationMode.BILINEAR, fill=FILL
    )


def _cutout(picture: Picture, share: float) -> Picture:
    side = round(share * picture.width)
    left, top = (_random.randrange(picture.width) - side // 2 for _ in range(2))
    result = picture.copy()
    result.paste(GREY, (left, top, left + side, top + side))
    return result


FUNCTIONS: dict[str, Callable[[Picture, float], Picture]] = {
    "Invert": lambda picture, _: F.invert(picture),
    "Contrast": lambda picture, value: F.adjust_contrast(picture, 1 + value),
    "AutoContrast": lambda picture, _: F.autocontrast(picture),
    "Rotate": lambda picture, value: F.rotate(picture, value, InterpolationMode.BILINEAR, fill=FILL),
    "TranslateX": lambda picture, value: _affine(picture, x=value),
    "TranslateY": lambda picture, value: _affine(picture, y=value),
    "Cutout": _cutout,
    "Brightness": lambda picture, value: F.adjust_brightness(picture, 1 + value),
    "Equalize": lambda picture, _: F.equalize(picture),
    "Solarize": lambda picture, value: F.solarize(picture, value),
    "Posterize": lambda picture, value: F.posterize(picture, int(value)),
    "Sharpness": lambda picture, value: F.adjust_sharpness(picture, 1 + value),
    "ShearX": lambda picture, value: _affine(picture, slant=(degrees(atan(value)), 0.0)),
    "ShearY": lambda picture, value: _affine(picture, slant=(0.0, degrees(atan(value)))),
}
"""v2's function for every op of the policy taco14."""

NAMES = list(FUNCTIONS)


def augment(picture: Picture, numbers: random.Random) -> Picture:
    """One of the 14 ops, evenly, over its range."""
    op = OPS[CODES[numbers.choice(NAMES)]]
    value = numbers.uniform(op.low, op.high) * (numbers.choice((-1, 1)) if op.signed else 1)
    return FUNCTIONS[op.name](picture, round(value) if op.whole else value)


def start(size: int) -> None:
    """Get a worker process ready."""
    global _size
    torch.set_num_threads(1)
    _size = size


def render(file: str) -> list[bytes]:
    """The original and its copies, encoded, from one decode and one resize."""
    with Image.open(file) as picture:
        square = make_square(picture.convert("RGB"), _size)
    return [_encoded(image) for image in (square, *(augment(square, _random) for _ in range(COPIES)))]


def _encoded(picture: Picture) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90, subsampling="4:2:0")
    return stream.getvalue()


def make(size: int) -> PoolBuilder:
    """The contestant."""
    return PoolBuilder(size, PROCESSES, start, render)
