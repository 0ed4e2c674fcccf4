"""Plasticbag: carrier bags, crisp packets, film. Limp outlines and many soft, bright folds."""

import numpy as np

from augment_cache.drawing.canvas import PRINTS, WHITES, Canvas, Colour, lump, pick_colour, zigzag
from augment_cache.drawing.noise import Field, Rng, between, facets, folds, layered, smooth

_FILMS: tuple[Colour, ...] = ((236, 238, 240), (220, 228, 232), (240, 240, 236), (200, 214, 222))


def carrier_bag(rng: Rng, canvas: Canvas) -> None:
    """A vest bag lying about: two handles, long folds from the handles down, often a printed sign."""
    colour = pick_colour(rng, WHITES if rng.random() < 0.5 else PRINTS, 8)
    wide, dip = between(rng, 0.30, 0.40), between(rng, 0.36, 0.44)
    left, right = 0.5 - wide, 0.5 + wide
    outline = [
        (left + 0.03, 0.03), (left + 0.19, 0.03), (left + 0.22, 0.20), (0.44, dip), (0.56, dip), (right - 0.22, 0.20),
        (right - 0.19, 0.03), (right - 0.03, 0.03), (right + 0.02, 0.45), (right, 0.90), (0.5, 0.96), (left, 0.90),
        (left - 0.02, 0.45),
    ]  # fmt: skip
    opacity = between(rng, 0.72, 0.97)
    canvas.paint(canvas.polygon(outline), colour, opacity)
    for middle in (left + 0.11, right - 0.11):
        canvas.erase(canvas.ellipse(middle, 0.17, 0.038, 0.095))
    if rng.random() < 0.6:
        canvas.tint(canvas.ellipse(0.5, 0.64, 0.17, 0.12), pick_colour(rng, PRINTS), 0.85)
        canvas.tint(canvas.box(0.40, 0.62, 0.60, 0.66), pick_colour(rng, WHITES), 0.85)
    _drape(rng, canvas, 0.10, stretch=0.25)
    canvas.bend(rng, between(rng, 0.04, 0.09))
    canvas.bend(rng, 0.02, 0.12)


def _drape(rng: Rng, canvas: Canvas, cell: float, *, stretch: float) -> None:
    size = canvas.side
    hollow = layered(rng, size, size, cell * size * 1.3, 2, stretch=stretch)
    canvas.shade(0.92 + 0.26 * hollow)
    canvas.tint(folds(rng, size, cell * 1.5, stretch=stretch), (255, 255, 255), _patches(rng, size, 0.55))
    canvas.tint(folds(rng, size, cell * 1.5, stretch=stretch * 2), (30, 32, 36), _patches(rng, size, 0.35))


def _patches(rng: Rng, size: int, strength: float) -> Field:
    """Opacity that comes and goes: a fold ends somewhere, a net of unbroken lines would look like light under water."""
    return np.asarray(strength * np.clip(smooth(rng, size, size, size / 4) + 0.35, 0.0, 1.0), dtype=np.float32)


def crisp_packet(rng: Rng, canvas: Canvas) -> None:
    """A shiny packet with saw-tooth seals at both ends and a loud print; some are torn open and show their foil."""
    half = between(rng, 0.28, 0.36)
    left, right = 0.5 - half, 0.5 + half
    ends = [*zigzag(left, right, 0.03, 0.028, 12), *zigzag(right, left, 0.97, -0.028, 12)]
    canvas.paint(canvas.polygon(ends), pick_colour(rng, PRINTS))
    canvas.tint(canvas.ellipse(0.5, 0.36, half * 0.75, 0.13), pick_colour(rng, PRINTS))
    canvas.tint(canvas.box(0.5 - half * 0.5, 0.33, 0.5 + half * 0.5, 0.38), pick_colour(rng, WHITES))
    canvas.tint(canvas.ellipse(0.5, 0.68, half * 0.55, 0.10), (226, 180, 84))
    for edge in (0.03, 0.89):
        seal = canvas.box(0, edge, 1, edge + 0.08)
        lines = 0.5 + 0.5 * np.sin(canvas.y * 2 * np.pi / 0.016)
        canvas.tint(seal * lines, (225, 226, 228), 0.5)
    if rng.random() < 0.4:
        canvas.tint(
            canvas.polygon([(left, 0.0), (right, 0.0), (right, 0.22), (0.5, 0.13), (left, 0.26)]), (198, 200, 204)
        )
    canvas.shade(1.1 - 1.4 * (canvas.x - 0.5) ** 2)
    _drape(rng, canvas, 0.13, stretch=1.0)
    canvas.shade(1.0 + 0.16 * facets(rng, canvas.side, 30))
    canvas.tint(folds(rng, canvas.side, 0.13), (255, 255, 255), _patches(rng, canvas.side, 0.9))
    canvas.bend(rng, between(rng, 0.03, 0.07))


def plastic_film(rng: Rng, canvas: Canvas) -> None:
    """A torn piece of see-through film: hardly a colour of its own, a mesh of bright folds, a bright edge."""
    shape = canvas.polygon(lump(rng, 0.49, 0.45, 16, between(rng, 0.6, 1.0)))
    canvas.paint(shape, pick_colour(rng, _FILMS, 6), between(rng, 0.22, 0.45))
    size = canvas.side
    canvas.tint(np.clip(layered(rng, size, size, size / 5, 3), 0, 1), (250, 252, 255), 0.45)
    canvas.tint(np.clip(facets(rng, size, 24), 0, 1), (250, 252, 255), 0.35)
    canvas.tint(folds(rng, size, 0.20), (255, 255, 255), _patches(rng, size, 0.9))
    canvas.tint(folds(rng, size, 0.13, stretch=0.4), (255, 255, 255), _patches(rng, size, 0.8))
    canvas.tint(folds(rng, size, 0.24), (40, 44, 50), _patches(rng, size, 0.4))
    canvas.bend(rng, 0.06)
