"""What the litter lies on: grass, sand, asphalt, soil with leaves, paving stones, water."""

from collections.abc import Callable

import cv2
import numpy as np

from augment_cache.drawing.canvas import Colour
from augment_cache.drawing.noise import Field, Rng, between, layered, smooth

Ground = Callable[[Rng, int, int], Field]
"""(generator, height, width) → float32 [height, width, 3], RGB, 0 to 255."""

_SUBPIXEL_BITS = 4


def _coloured(colour: Colour, brightness: Field) -> Field:
    return np.asarray(np.array(colour, dtype=np.float32) * brightness[..., None], dtype=np.float32)


def _grain(rng: Rng, height: int, width: int) -> Field:
    return rng.standard_normal((height, width), dtype=np.float32)


def _strokes(rng: Rng, ground: Field, count: int, length: float, lean: float, colour: Colour, thickness: int) -> None:
    """Draw `count` short straight lines in one colour; `lean` is how far they may tilt from upright, in radians."""
    height, width = ground.shape[:2]
    foot = rng.uniform((0, 0), (width, height + length), (count, 2))
    angle, reach = rng.uniform(-lean, lean, count), rng.uniform(0.4, 1.0, count) * length
    tip = foot + np.stack([np.sin(angle) * reach, -np.cos(angle) * reach], axis=1)
    lines = np.round(np.stack([foot, tip], axis=1) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.polylines(ground, list(lines), False, colour, thickness, cv2.LINE_8, _SUBPIXEL_BITS)


def grass(rng: Rng, height: int, width: int) -> Field:
    """Blades in a dozen greens over dark earth, some of them dry."""
    ground = _coloured((62, 74, 34), 1.0 + 0.25 * layered(rng, height, width, 60))
    dry = between(rng, 0.0, 0.6)
    length = between(rng, 14, 34)
    for step in range(12):
        light = 0.55 + 0.06 * step
        mix = dry * float(rng.random())
        green = np.array((86, 132, 42)) * (1 - mix) + np.array((170, 152, 92)) * mix
        red, middle, blue = green * light * rng.uniform(0.9, 1.1, 3)
        _strokes(rng, ground, 300, length, 0.8, (float(red), float(middle), float(blue)), 2 - step % 2)
    return np.asarray(ground * (1.0 + 0.18 * smooth(rng, height, width, 90))[..., None], dtype=np.float32)


def sand(rng: Rng, height: int, width: int) -> Field:
    """Fine grain, wind ripples, a few dark crumbs."""
    field = 1.0 + 0.09 * layered(rng, height, width, 80) + 0.055 * _grain(rng, height, width)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    phase = (y + x * between(rng, -0.5, 0.5)) / between(rng, 5, 11) + 3.0 * smooth(rng, height, width, 120)
    field += between(rng, 0.0, 0.07) * np.sin(phase)
    field -= 0.35 * (_grain(rng, height, width) > 3.0)
    return _coloured((204, 184, 146), np.asarray(field, dtype=np.float32))


def asphalt(rng: Rng, height: int, width: int) -> Field:
    """Grey with light and dark chippings, now and then a crack or a painted line."""
    chips = cv2.GaussianBlur(_grain(rng, height, width), (0, 0), 1.1)
    field = 1.0 + 0.55 * np.clip(chips, -0.35, 0.8) + 0.10 * layered(rng, height, width, 90)
    tone = between(rng, 70, 140)
    ground = _coloured((tone, tone, tone * 1.03), np.asarray(field, dtype=np.float32))
    if rng.random() < 0.3:
        edge, broad = between(rng, 0.1, 0.8) * width, between(rng, 30, 60)
        band = [(edge, 0), (edge + broad, 0), (edge + broad + 60, height), (edge + 60, height)]
        mask = cv2.fillPoly(np.zeros((height, width), np.float32), [np.round(band).astype(np.int32)], 1.0)
        mask = mask * np.clip(0.9 + 0.5 * chips, 0, 1) * np.float32(0.75)
        ground += (np.array((225, 222, 205), dtype=np.float32) - ground) * mask[..., None]
    for _ in range(int(rng.integers(0, 3))):
        start = np.array((rng.uniform(0, width), -20))
        walk = start + np.cumsum(rng.normal((0, 12), (9, 4), (60, 2)), axis=0)
        cv2.polylines(ground, [np.round(walk).astype(np.int32)], False, (34, 34, 36), 2, cv2.LINE_8)
    return ground


def soil(rng: Rng, height: int, width: int) -> Field:
    """Brown earth under fallen leaves and twigs."""
    field = 1.0 + 0.30 * layered(rng, height, width, 26, 4) + 0.10 * _grain(rng, height, width)
    ground = _coloured((104, 80, 58), field)
    leaves = ((158, 104, 48), (128, 84, 44), (184, 140, 66), (116, 66, 42), (142, 122, 64), (94, 104, 52))
    for _ in range(int(rng.integers(20, 75))):
        _leaf(rng, ground, leaves[int(rng.integers(len(leaves)))])
    _strokes(rng, ground, int(rng.integers(4, 22)), 80, 1.57, (70, 52, 38), 2)
    return np.asarray(ground * (1.0 + 0.06 * _grain(rng, height, width))[..., None], dtype=np.float32)


def _leaf(rng: Rng, ground: Field, colour: Colour) -> None:
    height, width = ground.shape[:2]
    along = np.linspace(0.0, 1.0, 9)
    half = np.sin(along * np.pi) ** 0.8 * rng.uniform(0.16, 0.30)
    shape = np.concatenate([np.stack([along, half], 1), np.stack([along, -half], 1)[::-1]]) - (0.5, 0.0)
    turn = between(rng, 0, 2 * np.pi)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    place = rng.uniform((0, 0), (width, height))
    points = (shape @ matrix.T) * between(rng, 22, 56) + place
    light = between(rng, 0.65, 1.2)
    fixed = np.round(points * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    dark = tuple(channel * light * 0.62 for channel in colour)
    cv2.fillPoly(ground, [fixed + (2 << _SUBPIXEL_BITS)], (42, 32, 24), cv2.LINE_8, _SUBPIXEL_BITS)
    cv2.fillPoly(ground, [fixed], tuple(channel * light for channel in colour), cv2.LINE_8, _SUBPIXEL_BITS)
    cv2.polylines(ground, [fixed[[0, len(along) - 1]]], False, dark, 1, cv2.LINE_8, _SUBPIXEL_BITS)


def paving(rng: Rng, height: int, width: int) -> Field:
    """Stones in offset rows, each with its own tone, seen at an angle; dirt in the joints."""
    turn = between(rng, 0, np.pi)
    long, short = between(rng, 70, 150), between(rng, 44, 80)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    across, down = x * np.cos(turn) + y * np.sin(turn) + 2000, y * np.cos(turn) - x * np.sin(turn) + 2000
    wobble = 2.0 * smooth(rng, height, width, 24)
    row = np.floor(down / short)
    shifted = across / long + 0.5 * (row % 2)
    column = np.floor(shifted)
    edge = np.minimum(
        np.minimum(down / short - row, 1 - (down / short - row)) * short,
        np.minimum(shifted - column, 1 - (shifted - column)) * long,
    )
    tones = rng.uniform(0.86, 1.12, (64, 64)).astype(np.float32)
    field = tones[row.astype(np.int64) % 64, column.astype(np.int64) % 64]
    field = field * (1.0 + 0.07 * layered(rng, height, width, 30) + 0.05 * _grain(rng, height, width))
    joint = np.clip((edge + wobble) / 2.5 - 0.6, 0.0, 1.0)
    stone = ((150, 146, 140), (158, 122, 104), (172, 164, 148))[int(rng.integers(3))]
    return _coloured(stone, np.asarray(field * (0.45 + 0.55 * joint), dtype=np.float32))


def water(rng: Rng, height: int, width: int) -> Field:
    """Ripples drawn out sideways with the sky in their crests."""
    waves = layered(rng, height, width, between(rng, 6, 13), 3, stretch=5.0)
    swell = smooth(rng, height, width, 120, stretch=2)
    base = ((58, 84, 92), (70, 88, 70), (48, 70, 100))[int(rng.integers(3))]
    ground = _coloured(base, 1.0 + 0.25 * waves + 0.2 * swell)
    crest = np.clip(waves - 0.70, 0.0, 1.0) * 0.9
    return np.asarray(ground + crest[..., None] * np.array((150, 165, 175), dtype=np.float32), dtype=np.float32)


GROUNDS: tuple[Ground, ...] = (grass, sand, asphalt, soil, paving, water)
