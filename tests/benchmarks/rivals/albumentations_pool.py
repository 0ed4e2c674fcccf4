"""albumentations in two processes: OpenCV decodes, resizes, augments and encodes.

Pictures stay in OpenCV's order of channels, which saves two conversions; only Contrast notices, in the weights of its
mean luma. Of transforms that do the same thing the cheaper one was taken: a factor on brightness is
`RandomBrightnessContrast` without its offset, a square cut-out is `Erasing`. Posterize keeps 4 to 7 bits because
albumentations refuses 8, and Sharpen goes one way only; both cost what ours cost: one table, one 3 x 3 filter.
"""

import os
from math import atan, degrees

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise importing it asks the network for its newest version

import albumentations as A  # type: ignore[import-untyped]
import cv2

from pipelines.augmentations import CODES, FILL, OPS
from tests.benchmarks.rivals.pool import PoolBuilder

COPIES, PROCESSES = 2, 2
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]

_square: A.Compose
_augment: A.Compose
"""The two transforms of a worker process, made once by its initializer."""


def make_square(size: int) -> A.Compose:
    """Resize to fit, antialiased, and pad with grey."""
    return A.Compose(
        [
            A.LongestMaxSize(size, interpolation=cv2.INTER_AREA),
            A.PadIfNeeded(size, size, border_mode=cv2.BORDER_CONSTANT, fill=FILL),
        ]
    )


def make_augment(seed: int) -> A.Compose:
    """One of the 14 ops, evenly, over the ranges of `pipelines.augmentations`."""
    factor = (1 - _most("Brightness"), 1 + _most("Brightness"))
    shift = (-_most("TranslateX"), _most("TranslateX"))
    slant = degrees(atan(_most("ShearX")))
    outside = {"border_mode": cv2.BORDER_CONSTANT, "fill": FILL, "p": 1}
    ops = [
        A.InvertImg(p=1),
        A.ColorJitter(brightness=(1, 1), contrast=factor, saturation=(1, 1), hue=(0, 0), p=1),
        A.AutoContrast(method="pil", p=1),
        A.Rotate(limit=_most("Rotate"), **outside),
        A.Affine(translate_percent={"x": shift, "y": (0, 0)}, **outside),
        A.Affine(translate_percent={"x": (0, 0), "y": shift}, **outside),
        A.Erasing(scale=(0, _most("Cutout") ** 2), ratio=(1, 1), fill=FILL, p=1),
        A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=_most("Brightness"), p=1),
        A.Equalize(mode="cv", by_channels=True, p=1),
        A.Solarize(threshold_range=(0, 1), p=1),
        A.Posterize(num_bits=(4, 7), p=1),
        A.Sharpen(alpha=(0, _most("Sharpness")), lightness=(1, 1), p=1),
        A.Affine(shear={"x": (-slant, slant), "y": (0, 0)}, **outside),
        A.Affine(shear={"x": (0, 0), "y": (-slant, slant)}, **outside),
    ]
    return A.Compose([A.OneOf(ops, p=1)], seed=seed)


def _most(name: str) -> float:
    return OPS[CODES[name]].high


def start(size: int) -> None:
    """Get a worker process ready."""
    global _square, _augment
    cv2.setNumThreads(1)
    _square, _augment = make_square(size), make_augment(seed=0)


def render(file: str) -> list[bytes]:
    """The original and its copies, encoded, from one decode and one resize."""
    square = _square(image=cv2.imread(file))["image"]
    images = [square, *(_augment(image=square)["image"] for _ in range(COPIES))]
    return [cv2.imencode(".jpg", image, JPEG)[1].tobytes() for image in images]


def make(size: int) -> PoolBuilder:
    """The contestant."""
    return PoolBuilder(size, PROCESSES, start, render)
