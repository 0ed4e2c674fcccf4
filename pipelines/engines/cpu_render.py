"""One image on the CPU: decoded as small as will do, resized, on its square. No torch needed."""

import sys
from functools import lru_cache

import cv2
import numpy as np

from pipelines.augmentations import FILL
from pipelines.decode import Header, Pixels, decode, read_header
from pipelines.engines import antialias
from pipelines.engines.base import Image, RenderSpec
from pipelines.fit import WHOLE, Box, Placement, place, scaled

DCT_FACTORS = (8, 4, 2)
"""JPEG decoding at 1/8, 1/4 and 1/2; libjpeg-turbo has fast code for these and for full size only."""

_WHOLE: tuple[Box, ...] = (WHOLE,)


def show(spec: RenderSpec, image: Image, out: Pixels) -> None:
    """A whole image, upright, on its square.

    Args:
        spec: What it looks like.
        image: Encoded or raw.
        out: uint8 [size, size, 3], contiguous; filled.

    Raises:
        CorruptSampleError: It is damaged or no image.
    """
    header = read_header(image) if image.ndim == 1 else None
    if header and header.turbo and header.orientation == 1 and (header.height, header.width) == out.shape[:2]:
        decode(image, header=header, out=out)
        return
    full_size, pixels, (placement,) = open_image(spec, image, _WHOLE, header)
    out[:] = fitted(pixels, full_size, placement, spec.size)


def open_image(
    spec: RenderSpec, image: Image, boxes: tuple[Box, ...], header: Header | None = None
) -> tuple[tuple[int, int], Pixels, list[Placement]]:
    """Decode an image as small as the placements of some boxes allow.

    Args:
        spec: What it will look like.
        image: Encoded or raw.
        boxes: Parts of it that will be shown.
        header: Result of `read_header`, if it is at hand.

    Returns:
        (height, width) of the upright image in full, its pixels, which may be fewer, and a placement in the full size
        for each box.

    Raises:
        CorruptSampleError: It is damaged or no image.
    """
    if image.ndim == 3:
        height, width = image.shape[:2]
        return (height, width), image, _placed(height, width, spec, boxes)[0]
    header = header or read_header(image)
    height, width = header.upright
    placements, factor = _placed(height, width, spec, boxes)
    pixels = decode(image, header=header, min_height=-(-height // factor), min_width=-(-width // factor))
    return (height, width), pixels, placements


@lru_cache(4096)  # photos of a folder tend to have few sizes
def _placed(height: int, width: int, spec: RenderSpec, boxes: tuple[Box, ...]) -> tuple[list[Placement], int]:
    """Placements of the boxes, and the factor by which the image may shrink while decoding."""
    placements = [place(height, width, spec.size, spec.fit, box) for box in boxes]
    return placements, dct_factor(height, width, placements)


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
    source, target = _scaled(placement.source, full_size, (pixels.shape[0], pixels.shape[1])), placement.target
    part = pixels[source.top : source.top + source.height, source.left : source.left + source.width]
    same = (source.width, source.height) == (target.width, target.height)
    full = (target.width, target.height) == (size, size)
    if same and full:
        return np.ascontiguousarray(part)
    square = np.empty((size, size, 3), np.uint8) if full else np.full((size, size, 3), FILL, np.uint8)
    inner = square[target.top : target.top + target.height, target.left : target.left + target.width]
    if same:
        inner[:] = part
    else:
        resize(part, inner, shrunk=pixels.shape[:2] != full_size)
    return square


_scaled = lru_cache(4096)(scaled)


LITTLE = 1.25
"""Reduction that needs no antialiasing after a scaled decode, which has removed the finest detail already: on photos,
at 1.14 (512 to 256 to 224 px), plain bilinear comes nearer to Lanczos (40.4 dB) than the triangle filter (39.6 dB)."""


def resize(pixels: Pixels, out: Pixels, *, shrunk: bool = False) -> None:
    """Bilinear with antialiasing: the triangle filter grows with the reduction, as in Pillow and DALI.

    Args:
        pixels: uint8 [any, any, 3].
        out: uint8 [height, width, 3], part of an image or a whole one; filled with the result.
        shrunk: The decoder has reduced the image already.
    """
    height, width = out.shape[:2]
    if shrunk and pixels.shape[0] <= LITTLE * height and pixels.shape[1] <= LITTLE * width:
        cv2.resize(pixels, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        return
    if "torch" in sys.modules:
        _shrink_by_torch(pixels, out)
    else:  # the same levels; loading torch costs more than it would save on ten thousand images
        antialias.shrink(pixels, out)


def _shrink_by_torch(pixels: Pixels, out: Pixels) -> None:
    import torch

    height, width = out.shape[:2]
    # torch would copy a part of an image in parallel, with a team of OpenMP threads for each thread that calls it.
    whole = np.require(pixels, requirements=["C", "W"])
    image = torch.from_numpy(whole[None]).permute(0, 3, 1, 2)
    # What torch.nn.functional.interpolate(mode="bilinear", antialias=True) calls after 10 us of questions.
    result = torch.ops.aten._upsample_bilinear2d_aa(image, [height, width], False, None, None)
    # The answer comes in planes. numpy would take three times as long to interleave them.
    cv2.merge(list(result.numpy()[0]), out)
