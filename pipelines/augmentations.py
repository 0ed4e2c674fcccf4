"""The augmentation ops as data: names, units, ranges, signs, and the numbers an engine needs to carry one out.

Ranges are those of the AutoAugment family as competition teams used them (Cubuk et al., "AutoAugment", CVPR 2019,
table 6; "RandAugment", 2020). Three things differ on purpose: Rotate goes both ways; shears are about the centre of
the image instead of its corner, so that the object stays in the frame; translations are by whole pixels, as in
torchvision, so that nothing is blurred.

The last four ops are no part of that competition's 14. Color is Pillow's saturation, the sixteenth op of the
AutoAugment family (with Identity and Invert). Rotate90, FlipX and Zoom are albumentations' RandomRotate90,
HorizontalFlip and the scale of ShiftScaleRotate, with which the competition's smallest models were trained.
"""

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
from numpy.typing import NDArray

FILL = 128
"""Grey level of pixels that come from outside the image, of cut-outs and of square padding."""


@dataclass(frozen=True)
class Op:
    """One augmentation.

    Attributes:
        name: The field's name for it.
        unit: What the value means.
        low: Value of the weakest effect.
        high: Value of the strongest effect; may lie below `low` (Solarize's threshold falls).
        signed: The value is negated for half of the samples.
        whole: The value is rounded to a whole number.
        even: Every whole number comes equally often; mere rounding gives the two ends half a share.
    """

    name: str
    unit: str
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    whole: bool = False
    even: bool = False

    @property
    def has_value(self) -> bool:
        """False for ops that have no strength: Invert, AutoContrast, Equalize, FlipX."""
        return self.low != self.high


IDENTITY = Op("Identity", "none")

OPS: tuple[Op, ...] = (
    IDENTITY,
    Op("Invert", "none"),
    Op("Contrast", "factor - 1", 0.0, 0.9, signed=True),
    Op("AutoContrast", "none"),
    Op("Rotate", "degrees, counter-clockwise", 0.0, 30.0, signed=True),
    Op("TranslateX", "share of the side, to the right", 0.0, 150 / 331, signed=True),
    Op("TranslateY", "share of the side, downwards", 0.0, 150 / 331, signed=True),
    Op("Cutout", "share of the side", 0.0, 0.5),
    Op("Brightness", "factor - 1", 0.0, 0.9, signed=True),
    Op("Equalize", "none"),
    Op("Solarize", "threshold", 256.0, 0.0),
    Op("Posterize", "bits kept", 8.0, 4.0, whole=True),
    Op("Sharpness", "factor - 1", 0.0, 0.9, signed=True),
    Op("ShearX", "offset to the right per row downwards", 0.0, 0.3, signed=True),
    Op("ShearY", "offset downwards per column to the right", 0.0, 0.3, signed=True),
    Op("Color", "factor - 1", 0.0, 0.9, signed=True),
    Op("Rotate90", "quarter turns, counter-clockwise", 0.0, 3.0, whole=True, even=True),
    Op("FlipX", "none"),
    Op("Zoom", "scale factor - 1", 0.0, 0.5, signed=True),
)
"""All ops; an op's position is its code in a plan, so new ops go to the end. Code 0 changes nothing."""

CODES: dict[str, int] = {op.name: code for code, op in enumerate(OPS)}
GEOMETRIC: frozenset[str] = frozenset(
    {"Rotate", "TranslateX", "TranslateY", "ShearX", "ShearY", "Rotate90", "FlipX", "Zoom"}
)
"""Ops that are one affine map each. Rotate90 and FlipX only move pixels: no engine may change a level."""

QUARTER_TURNS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
"""Cosine and sine of 0, 90, 180 and 270 degrees; those of the math module are not exact."""

Affine = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Choice:
    """An op as a policy offers it.

    Attributes:
        op: Name of the op.
        low: Value of the weakest effect, in the op's unit.
        high: Value of the strongest effect.
        probability: Share of the samples that get the op once it was chosen; the others stay as they are.
    """

    op: str
    low: float
    high: float
    probability: float = 1.0

    def __post_init__(self) -> None:
        if self.op not in CODES:
            raise ValueError(f"unknown op {self.op!r}; the ops are {', '.join(CODES)}")
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"{self.op}: probability must be in [0, 1], got {self.probability}")
        op = OPS[CODES[self.op]]
        least, most = sorted((op.low, op.high))
        if not (least <= self.low <= most and least <= self.high <= most):
            raise ValueError(f"{self.op}: range [{self.low}, {self.high}] leaves [{least}, {most}] ({op.unit})")


MOST_TURNS = 16
"""Ops applied one after the other, at most."""


@dataclass(frozen=True)
class Policy:
    """What may happen to a copy: in each turn one of its choices, evenly, one turn after the other.

    Attributes:
        name: For people and manifests.
        turns: The ops to choose from in each turn.
    """

    name: str
    turns: tuple[tuple[Choice, ...], ...]

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= MOST_TURNS:
            raise ValueError(f"policy {self.name!r}: turns must be 1 to {MOST_TURNS}, got {self.slots}")
        if not all(self.turns):
            raise ValueError(f"policy {self.name!r} offers no op in one of its turns")

    @classmethod
    def repeated(cls, name: str, choices: tuple[Choice, ...], turns: int = 1) -> "Policy":
        """A policy of several turns over the same choices."""
        return cls(name, (choices,) * turns)

    @property
    def slots(self) -> int:
        """Number of ops applied one after the other."""
        return len(self.turns)


def full_range(name: str, probability: float = 1.0) -> Choice:
    """A choice over the whole range of an op."""
    op = OPS[CODES[name]]
    return Choice(name, op.low, op.high, probability)


def value_text(op: Op, value: float) -> str:
    """A value in words, short enough to stand under a picture; empty for ops without one."""
    if not op.has_value:
        return ""
    if op.unit.endswith("factor - 1"):
        return f"times {1 + value:.2f}"
    if op.unit.startswith("quarter turns"):
        return f"{90 * value:+.0f}°"
    if op.unit.startswith("degrees"):
        return f"{value:+.1f}°"
    if op.unit.startswith("share"):
        return f"{value:+.0%}" if op.signed else f"{value:.0%}"
    if op.unit == "threshold":
        return f"from level {value:.0f}"
    return f"{value:.0f} bits" if op.whole else f"{value:+.2f}"


def affine(name: str, value: float, size: int) -> Affine:
    """The affine map of a geometric op, from output to input.

    Args:
        name: One of `GEOMETRIC`.
        value: Signed value in the op's unit.
        size: Side of the square image in px.

    Returns:
        Rows (a, b, c), (d, e, f): the output point (x, y) shows the input point (a x + b y + c, d x + e y + f), in
        continuous coordinates: the centre of the first pixel is (0.5, 0.5).
    """
    half = size / 2
    if name in ("Rotate", "Rotate90"):
        c, s = QUARTER_TURNS[round(value) % 4] if name == "Rotate90" else (cos(radians(value)), sin(radians(value)))
        return ((c, -s, half - c * half + s * half), (s, c, half - s * half - c * half))
    if name == "TranslateX":
        return ((1.0, 0.0, -float(whole_pixels(value, size))), (0.0, 1.0, 0.0))
    if name == "TranslateY":
        return ((1.0, 0.0, 0.0), (0.0, 1.0, -float(whole_pixels(value, size))))
    if name == "ShearX":
        return ((1.0, -value, value * half), (0.0, 1.0, 0.0))
    if name == "ShearY":
        return ((1.0, 0.0, 0.0), (-value, 1.0, value * half))
    if name == "FlipX":
        return ((-1.0, 0.0, float(size)), (0.0, 1.0, 0.0))
    if name == "Zoom":
        step = 1.0 / (1.0 + value)
        return ((step, 0.0, half - step * half), (0.0, step, half - step * half))
    raise ValueError(f"{name} is no affine map")


def whole_pixels(value: float, size: int) -> int:
    """How far a translation moves an image of `size` px, in px."""
    return round(value * size)


def cutout_box(value: float, centre: tuple[float, float], size: int) -> tuple[int, int, int, int]:
    """The rectangle that Cutout paints (DeVries and Taylor, 2017): a square, clipped to the image.

    Args:
        value: Side of the square as a share of the image's side.
        centre: (x, y) as shares of the side, each in [0, 1).
        size: Side of the image in px.

    Returns:
        (left, top, width, height) in px.
    """
    side = int(value * size + 0.5)
    left, top = int(centre[0] * size) - side // 2, int(centre[1] * size) - side // 2
    right, bottom = min(left + side, size), min(top + side, size)
    left, top = max(left, 0), max(top, 0)
    return left, top, max(right - left, 0), max(bottom - top, 0)


def posterize_mask(bits: float) -> int:
    """The bit mask that keeps the upper `bits` bits."""
    return (0xFF << (8 - int(bits))) & 0xFF


LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue. As in Pillow, Contrast goes to and from the image's mean luma, Color to
and from each pixel's own."""


def sharpness_kernel(value: float | NDArray[np.floating]) -> NDArray[np.float32]:
    """The 3 x 3 filter of Sharpness: the image plus `value` times its difference to Pillow's SMOOTH filter.

    Args:
        value: One, or [...] of them.

    Returns:
        float32 [..., 3, 3]; each sums to 1.
    """
    smooth = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float64) / 13
    identity = np.zeros((3, 3))
    identity[1, 1] = 1
    strength = np.asarray(value, np.float64)[..., None, None]
    return ((1 + strength) * identity - strength * smooth).astype(np.float32)


def color_matrix(value: float | NDArray[np.floating]) -> NDArray[np.float32]:
    """The matrix of Color: a pixel's luma plus (1 + `value`) times the pixel's difference to it.

    Args:
        value: One, or [...] of them.

    Returns:
        float32 [..., 3, 3], (red, green, blue) to (red, green, blue); rows sum to 1, so greys stay.
    """
    strength = np.asarray(value, np.float64)[..., None, None]
    luma = np.tile(np.array(LUMA, np.float64), (3, 1))
    return ((1 + strength) * np.eye(3) - strength * luma).astype(np.float32)
