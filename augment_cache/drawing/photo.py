"""One photo of the sample: ground, litter, shadows, light, lens, sensor, JPEG, and where each object is in sight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from augment_cache.drawing.canvas import Canvas
from augment_cache.drawing.catalogue import Kind, deal
from augment_cache.drawing.ground import GROUNDS
from augment_cache.drawing.noise import Field, Rng, between, generator, layered

SEEN = 0.6
"""Share of every object that has to stay in sight, inside the frame and not under another."""

_TRIES = 40
_HANG = 0.4  # share of an object's box that may hang over the frame's edge
_SMALL = 48  # px; smaller objects stay inside, a piece of one would be a crop of nothing
_SHADOW_REACH = 28


class Sprite(NamedTuple):
    """An object at its final size and angle, cut to its bounds."""

    rgb: Field
    """float32 [height, width, 3], 0 to 255, multiplied by `alpha`."""
    alpha: Field
    """float32 [height, width], 0 to 1: how much it hides."""
    cover: Field
    """float32 [height, width], 0 to 1: where it is."""


class Seen(NamedTuple):
    """What an annotation says of one object, measured on the pixels of it that are in sight."""

    category: int
    """TACO's category id."""
    bbox: tuple[float, float, float, float]
    """x, y, width, height of the tight box, in px."""
    area: float
    """Pixels in sight."""
    polygons: tuple[tuple[float, ...], ...]
    """Outlines x0, y0, x1, y1, …, in px; more than one where another object lies across."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A finished photo.

    Args:
        jpeg: The encoded file.
        objects: The objects in it, from the lowest to the topmost.
    """

    jpeg: bytes
    objects: tuple[Seen, ...]


def render_photo(seed: int, index: int, *, width: int, height: int) -> Photo:
    """Draw one photo; a function of its arguments and of nothing else.

    Args:
        seed: Of the data set.
        index: Of the photo, from 0.
        width: In px.
        height: In px.
    """
    rng = generator(seed, index)
    picture = GROUNDS[int(rng.integers(len(GROUNDS)))](rng, height, width)
    owner = np.zeros((height, width), dtype=np.int16)
    light, strength = between(rng, 0, 2 * np.pi), between(rng, 0.2, 0.6)
    placed: list[Kind] = []
    needed = [0.0]
    for kind in deal(seed, index):
        sprite = draw_object(rng, kind, min(width, height))
        spot = _find_spot(rng, sprite, owner, needed)
        if spot is not None:
            placed.append(kind)
            needed.append(SEEN * float((sprite.cover > 0.5).sum()))
            _lay(picture, owner, sprite, spot, number=len(placed), light=light, strength=strength)
    objects = tuple(outline(owner == number, kind.id) for number, kind in enumerate(placed, start=1))
    pixels = _expose(rng, picture)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=int(rng.integers(80, 96)), colorspace="RGB", colorsubsampling="420")
    return Photo(jpeg=jpeg, objects=objects)


def draw_object(rng: Rng, kind: Kind, frame: int) -> Sprite:
    """One object of a kind at a random size, angle and state; `frame` is the shorter side of the photo, in px."""
    largest = min(kind.largest, 0.42 * frame)
    longest = float(np.exp(rng.uniform(np.log(min(kind.smallest, largest)), np.log(largest))))
    canvas = Canvas(round(np.clip(2.0 * longest, 96, 360)))
    kind.draw(rng, canvas)
    _soil(rng, canvas)
    return _turn(rng, canvas, longest)


def _soil(rng: Rng, canvas: Canvas) -> None:
    """Dirt and weather: what has lain outside is neither clean nor evenly coloured."""
    size = canvas.side
    dirt = np.clip(layered(rng, size, size, size / 4, 4) - 0.1, 0.0, 1.0)
    canvas.tint(dirt, (104, 90, 70), between(rng, 0.0, 0.55) * canvas.alpha)
    faded = canvas.rgb.mean(axis=2, keepdims=True)
    canvas.rgb = canvas.rgb + (faded - canvas.rgb) * np.float32(rng.uniform(0.0, 0.45))
    canvas.rgb = canvas.rgb * np.float32(rng.uniform(0.78, 1.06))


def _turn(rng: Rng, canvas: Canvas, longest: float) -> Sprite:
    """Foreshorten, mirror and rotate, so that the longer side of the result's tight box is `longest` px."""
    angle, squeeze = between(rng, 0, 2 * np.pi), rng.uniform(0.82, 1.0, 2)
    mirror = 1.0 if rng.random() < 0.5 else -1.0
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = matrix @ np.array([[mirror * squeeze[0], between(rng, -0.12, 0.12)], [0.0, squeeze[1]]])
    rows, columns = np.nonzero(canvas.cover > 0.5)
    corners = matrix @ np.stack([columns, rows]).astype(np.float64)
    low, high = corners.min(axis=1), corners.max(axis=1)
    scale = (longest - 1) / float((high - low).max())
    size = np.ceil((high - low) * scale).astype(int) + 3
    affine = np.column_stack([matrix * scale, 1.0 - low * scale])
    soft = 0.35 / scale  # anti-aliasing: the affine step samples four source pixels only
    stack = np.dstack([canvas.rgb, canvas.alpha])
    target = (int(size[0]), int(size[1]))
    rgba, cover = (
        np.asarray(cv2.warpAffine(cv2.GaussianBlur(field, (0, 0), soft), affine, target), dtype=np.float32)
        for field in (stack, canvas.cover)
    )
    return Sprite(rgba[..., :3], rgba[..., 3], cover)


def _find_spot(rng: Rng, sprite: Sprite, owner: NDArray[np.int16], needed: Sequence[float]) -> tuple[int, int] | None:
    """Where to put an object so that it and all below it stay in sight.

    Args:
        rng: Where the tries come from.
        sprite: The object.
        owner: int16 [height, width], the number of the object that is seen at each pixel; 0 is the ground.
        needed: Pixels that have to stay in sight, for each number in `owner`.

    Returns:
        Row and column of its top left corner, outside the frame perhaps; None when no spot tried would do, which
        happens in small and crowded photos only.
    """
    solid = sprite.cover > 0.5
    total = int(solid.sum())
    tall, wide = solid.shape
    height, width = owner.shape
    hang = _HANG if max(tall, wide) > _SMALL else 0.0
    in_sight = np.bincount(owner.ravel(), minlength=len(needed))
    for _ in range(_TRIES):
        top = int(rng.integers(round(-hang * tall), max(round(height - tall * (1 - hang)), 0) + 1))
        left = int(rng.integers(round(-hang * wide), max(round(width - wide * (1 - hang)), 0) + 1))
        under, mine = _windows(owner.shape, solid.shape, top, left)
        hidden = np.bincount(owner[under][solid[mine]], minlength=len(needed))
        hidden[0] = 0
        if solid[mine].sum() >= SEEN * total and np.all(in_sight - hidden >= needed):
            return top, left
    return None


def _windows(
    frame: tuple[int, ...], size: tuple[int, ...], top: int, left: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the frame and of the sprite where the two overlap."""
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = max(min(top + size[0], frame[0]), y0), max(min(left + size[1], frame[1]), x0)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _lay(
    picture: Field,
    owner: NDArray[np.int16],
    sprite: Sprite,
    spot: tuple[int, int],
    *,
    number: int,
    light: float,
    strength: float,
) -> None:
    top, left = spot
    reach = _SHADOW_REACH
    wide = cv2.copyMakeBorder(
        sprite.cover * (0.4 + 0.6 * sprite.alpha), reach, reach, reach, reach, cv2.BORDER_CONSTANT
    )
    away = 3.0 + 0.05 * max(sprite.cover.shape)
    shift_y, shift_x = round(away * np.sin(light)), round(away * np.cos(light))
    shadow = strength * np.asarray(cv2.GaussianBlur(wide, (0, 0), 2.0 + 0.3 * away), dtype=np.float32)
    under, mine = _windows(owner.shape, shadow.shape, top - _SHADOW_REACH + shift_y, left - _SHADOW_REACH + shift_x)
    picture[under] *= 1.0 - shadow[mine][..., None]
    under, mine = _windows(owner.shape, sprite.cover.shape, top, left)
    picture[under] = sprite.rgb[mine] + picture[under] * (1.0 - sprite.alpha[mine][..., None])
    owner[under][sprite.cover[mine] > 0.5] = number


def outline(mask: NDArray[np.bool_], category: int) -> Seen:
    """Measure one object.

    Args:
        mask: bool [height, width], where it is in sight; at least one pixel.
        category: TACO's category id.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = float(columns[0]), float(rows[0])
    bbox = (x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    polygons = tuple(
        tuple(float(value) + 0.5 for value in contour.ravel())  # middles of the pixels
        for contour in contours
        if len(contour) >= 3
    )
    box = (x, y, x + bbox[2], y, x + bbox[2], y + bbox[3], x, y + bbox[3])
    return Seen(category, bbox, float(mask.sum()), polygons or (box,))


def _expose(rng: Rng, picture: Field) -> NDArray[np.uint8]:
    """Light falling off across the scene, exposure, colour cast, blur of the lens, noise of the sensor."""
    height, width = picture.shape[:2]
    turn, fall = between(rng, 0, 2 * np.pi), between(rng, 0.0, 0.28)
    across = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(np.cos(turn))
    down = np.linspace(-1, 1, height, dtype=np.float32) * np.float32(np.sin(turn))
    gradient = 1.0 + fall * (across[None, :] + down[:, None])
    gain = rng.uniform(0.68, 1.15) * rng.uniform(0.93, 1.07, 3)
    exposed = picture * gradient[..., None] * gain.astype(np.float32)
    exposed = cv2.GaussianBlur(exposed, (0, 0), between(rng, 0.35, 1.0))
    noise = between(rng, 1.5, 6.0) * rng.standard_normal((height, width, 3), dtype=np.float32)
    return np.asarray(np.clip(np.rint(exposed + noise), 0, 255), dtype=np.uint8)
