"""The ops of the cpu engine: OpenCV on arrays of levels."""

from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.augmentations import (
    FILL,
    GEOMETRIC,
    LUMA,
    affine,
    color_matrix,
    cutout_box,
    posterize_mask,
    sharpness_kernel,
    whole_pixels,
)
from pipelines.decode import Pixels


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
    if name in ("TranslateX", "TranslateY"):
        return _moved(pixels, name, value)
    if name in GEOMETRIC:
        return _warped(pixels, name, value)
    if name == "Cutout":
        left, top, width, height = cutout_box(value, centre, pixels.shape[0])
        result = pixels.copy()
        result[top : top + height, left : left + width] = FILL
        return result
    if name == "Sharpness":
        return cv2.filter2D(pixels, -1, sharpness_kernel(value), borderType=cv2.BORDER_REFLECT_101)
    if name == "Color":
        return cv2.transform(pixels, color_matrix(value))
    if name == "Contrast":
        red, green, blue, _ = cv2.mean(pixels)
        centre_level = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
        return cv2.addWeighted(pixels, 1.0 + value, pixels, 0.0, -value * centre_level)
    if name == "AutoContrast":
        return cv2.merge([_stretched(plane) for plane in _planes(pixels)])
    if name == "Equalize":
        return cv2.merge([cv2.equalizeHist(plane, plane) for plane in _planes(pixels)])
    if name == "Invert":
        return cv2.bitwise_not(pixels)
    if name == "Brightness":
        return cv2.convertScaleAbs(pixels, alpha=float(np.float32(1.0 + value)))
    if name == "Posterize":
        return pixels & np.uint8(posterize_mask(value))
    if name == "Solarize":  # 255 - x is x with all bits turned
        _, above = cv2.threshold(pixels, ceil(value) - 1, 255, cv2.THRESH_BINARY)
        return cv2.bitwise_xor(pixels, above)
    if name == "Identity":
        return pixels
    raise ValueError(f"the cpu engine does not know {name!r}")


def _moved(pixels: Pixels, name: str, value: float) -> Pixels:
    """A move by whole pixels, without interpolation."""
    size = pixels.shape[0]
    by = whole_pixels(value, size)
    kept, to = slice(max(-by, 0), size - max(by, 0)), slice(max(by, 0), size - max(-by, 0))
    result = np.full_like(pixels, FILL)
    if name == "TranslateX":
        result[:, to] = pixels[:, kept]
    else:
        result[to] = pixels[kept]
    return result


def _warped(pixels: Pixels, name: str, value: float) -> Pixels:
    size = pixels.shape[0]
    (a, b, c), (d, e, f) = affine(name, value, size)
    # OpenCV counts from the centre of the first pixel, `affine` from its corner.
    matrix = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    # OpenCV's kernel for four channels is twice as fast as that for three, and gives the same levels.
    warped = cv2.warpAffine(
        cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA),
        matrix,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(FILL, FILL, FILL, FILL),
    )
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


def _planes(pixels: Pixels) -> list[NDArray[np.uint8]]:
    """The channels, in memory of their own."""
    planes = list(np.empty((3, *pixels.shape[:2]), np.uint8))
    cv2.split(pixels, planes)  # to let OpenCV find the memory takes five times as long
    return planes


def _stretched(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One channel, the darkest level made 0 and the brightest 255; a flat one stays."""
    low, high, _, _ = cv2.minMaxLoc(plane)
    if high <= low:
        return plane
    return cv2.convertScaleAbs(plane, plane, 255.0 / (high - low), -low * 255.0 / (high - low))
