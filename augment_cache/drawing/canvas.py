"""A square, transparent canvas for one object, in unit coordinates: x to the right, y down, both 0 to 1."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from augment_cache.drawing.noise import Field, Rng, smooth

Colour = tuple[float, float, float]
"""RGB, 0 to 255."""

Weights = NDArray[np.floating[Any]]
"""float [side, side], 0 to 1 for a mask; any precision, the canvas rounds to float32."""

Points = Sequence[tuple[float, float]]

_SUBPIXEL_BITS = 4

WHITES: tuple[Colour, ...] = ((245, 245, 242), (236, 234, 226), (226, 231, 238), (240, 233, 214))

PRINTS: tuple[Colour, ...] = (
    (196, 32, 38), (26, 74, 160), (28, 128, 62), (240, 190, 30), (228, 110, 24), (40, 40, 44), (110, 40, 120),
    (60, 160, 190), (200, 200, 196), (140, 90, 50), (230, 120, 150), (245, 245, 242), (110, 150, 60), (90, 96, 104),
)  # fmt: skip
"""Colours of printing ink. All classes draw from here, so that no colour gives a class away."""


def pick_colour(rng: Rng, colours: Sequence[Colour], spread: float = 14.0) -> Colour:
    """One of the colours, shifted a little."""
    red, green, blue = np.clip(np.array(colours[int(rng.integers(len(colours)))]) + rng.normal(0.0, spread, 3), 8, 250)
    return float(red), float(green), float(blue)


def lit(colour: Colour, brightness: float) -> Colour:
    """The colour in another light."""
    red, green, blue = colour
    return red * brightness, green * brightness, blue * brightness


class Canvas:
    """What has been painted so far.

    Attributes:
        rgb: float32 [side, side, 3], 0 to 255, already multiplied by `alpha`.
        alpha: float32 [side, side], 0 to 1: how much of the ground is hidden.
        cover: float32 [side, side], 0 to 1: where the object is, also where it is transparent.
        x: float32 [side, side], unit coordinate of the pixel's middle.
        y: The same, downwards.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self.rgb: Field = np.zeros((side, side, 3), dtype=np.float32)
        self.alpha: Field = np.zeros((side, side), dtype=np.float32)
        self.cover: Field = np.zeros((side, side), dtype=np.float32)
        axis = (np.arange(side, dtype=np.float32) + 0.5) / side
        self.x, self.y = np.meshgrid(axis, axis)

    def paint(self, mask: Weights, colour: Colour, opacity: float | Weights = 1.0) -> None:
        """Lay a colour over everything under the mask; the mask becomes part of the object."""
        self.cover = np.asarray(mask + self.cover * (1.0 - mask), dtype=np.float32)
        self._lay(mask * opacity, colour)

    def tint(self, mask: Weights, colour: Colour, opacity: float | Weights = 1.0) -> None:
        """Like `paint`, but only on what is there already."""
        self._lay(mask * self.cover * opacity, colour)

    def _lay(self, weight: Weights, colour: Colour) -> None:
        alpha = np.asarray(weight + self.alpha * (1.0 - weight), dtype=np.float32)
        # A pixel at the edge is only partly the object's, and hides no more than that, however often it is painted.
        limit = np.minimum(self.cover / np.maximum(alpha, 1e-6), 1.0)
        over = (weight * limit).astype(np.float32)[..., None]
        under = ((1.0 - weight) * limit).astype(np.float32)[..., None]
        self.rgb = np.asarray(colour, dtype=np.float32) * over + self.rgb * under
        self.alpha = alpha * limit

    def shade(self, brightness: Weights) -> None:
        """Multiply the colours; below 1 darkens, and nothing gets brighter than white."""
        factor = np.maximum(brightness, 0.0).astype(np.float32)[..., None]
        self.rgb = np.minimum(self.rgb * factor, 255 * self.alpha[..., None])

    def erase(self, mask: Field) -> None:
        """Cut the mask out of the object."""
        keep = 1.0 - mask
        self.rgb, self.alpha, self.cover = self.rgb * keep[..., None], self.alpha * keep, self.cover * keep

    def polygon(self, points: Points) -> Field:
        """Anti-aliased mask of a filled polygon, float32 [side, side], 0 to 1."""
        mask = np.zeros((self.side, self.side), dtype=np.uint8)
        cv2.fillPoly(mask, [self._fixed(points)], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        return np.asarray(mask / 255, dtype=np.float32)

    def stroke(self, points: Points, thickness: float, *, closed: bool = False) -> Field:
        """Anti-aliased mask of a polyline; `thickness` in units, at least one pixel."""
        mask = np.zeros((self.side, self.side), dtype=np.uint8)
        pixels = max(1, round(thickness * self.side))
        cv2.polylines(mask, [self._fixed(points)], closed, 255, pixels, cv2.LINE_AA, _SUBPIXEL_BITS)
        return np.asarray(mask / 255, dtype=np.float32)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float) -> Field:
        """Anti-aliased mask of a filled ellipse."""
        return self.polygon(ring(x, y, radius_x, radius_y))

    def box(self, left: float, top: float, right: float, bottom: float) -> Field:
        """Anti-aliased mask of a rectangle."""
        return self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)])

    def turned(self, profile: Points) -> Field:
        """Mask of a solid of revolution about x = 0.5; `profile` gives (y, radius) from top to bottom."""
        right = [(0.5 + radius, y) for y, radius in profile]
        return self.polygon(right + [(1.0 - x, y) for x, y in reversed(right)])

    def round(self, radius: float, *, gloss: float = 0.0, dark: float = 0.5) -> None:
        """Light the object as a cylinder about x = 0.5.

        Args:
            radius: Of the cylinder, in units.
            gloss: Strength of the two highlights along it, 0 to 1.
            dark: Brightness at the far edge.
        """
        across = np.clip((self.x - 0.5) / radius, -1.0, 1.0)
        self.shade(dark + (1.12 - dark) * np.sqrt(np.clip(1.0 - (0.8 * across + 0.2) ** 2, 0.0, 1.0)))
        light = np.exp(-(((across + 0.42) / 0.13) ** 2)) + 0.5 * np.exp(-(((across - 0.62) / 0.08) ** 2))
        self.tint(light, (255, 255, 255), 0.7 * gloss)

    def bend(self, rng: Rng, amount: float, cell: float = 0.35) -> None:
        """Dent the object: move every pixel by up to about `amount` units, smoothly."""
        size = self.side
        dx = smooth(rng, size, size, cell * size) * amount * size
        dy = smooth(rng, size, size, cell * size) * amount * size
        map_x, map_y = self.x * size - 0.5 + dx, self.y * size - 0.5 + dy
        self.rgb, self.alpha, self.cover = (
            np.asarray(cv2.remap(field, map_x, map_y, cv2.INTER_LINEAR), dtype=np.float32)
            for field in (self.rgb, self.alpha, self.cover)
        )

    def _fixed(self, points: Points) -> NDArray[np.int32]:
        pixels = np.asarray(points, dtype=np.float64) * self.side - 0.5
        return np.round(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def ring(x: float, y: float, radius_x: float, radius_y: float, count: int = 48) -> list[tuple[float, float]]:
    """Points on an ellipse, clockwise from the right."""
    turn = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    return [(float(x + radius_x * np.cos(t)), float(y + radius_y * np.sin(t))) for t in turn]


def lump(rng: Rng, radius: float, roughness: float, count: int, aspect: float = 1.0) -> list[tuple[float, float]]:
    """Outline of an irregular lump about the middle; `roughness` 0 is an ellipse."""
    turn = np.linspace(0.0, 2 * np.pi, count, endpoint=False) + rng.uniform(-1.5, 1.5, count) / count
    reach = radius * (1.0 - roughness * rng.uniform(0.0, 1.0, count))
    return [(float(0.5 + r * np.cos(t)), float(0.5 + aspect * r * np.sin(t))) for t, r in zip(turn, reach, strict=True)]


def zigzag(left: float, right: float, y: float, depth: float, teeth: int) -> list[tuple[float, float]]:
    """A saw-tooth edge from left to right, teeth `depth` units high."""
    x = np.linspace(left, right, 2 * teeth + 1)
    return [(float(place), y + (depth if tooth % 2 else 0.0)) for tooth, place in enumerate(x)]
