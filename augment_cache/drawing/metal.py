"""Metal: drink can, food can, bottle cap. Hard highlights along a cylinder, bare aluminium at the rims."""

import numpy as np

from augment_cache.drawing.canvas import PRINTS, Canvas, Colour, pick_colour
from augment_cache.drawing.noise import Field, Rng, between, facets

_BARE: Colour = (188, 190, 194)
_DARK: Colour = (70, 72, 76)


def drink_can(rng: Rng, canvas: Canvas) -> None:
    """A slim can with printed label, tapered bare rims and the top with its tab in sight; half of them are dented."""
    radius = between(rng, 0.22, 0.27)
    rim = radius * 0.82
    lift = between(rng, 0.05, 0.09)
    body = canvas.turned([(0.10, rim), (0.17, radius), (0.86, radius), (0.93, rim)])
    canvas.paint(np.maximum(body, canvas.ellipse(0.5, 0.93, rim, lift * 0.6)), _BARE)
    label = canvas.turned([(0.17, radius), (0.86, radius)])
    canvas.tint(label, pick_colour(rng, PRINTS))
    _print_label(rng, canvas, label, 0.17, 0.86)
    canvas.round(radius, gloss=0.95, dark=0.30)
    top = canvas.ellipse(0.5, 0.10, rim, lift)
    canvas.paint(top, (214, 216, 220))
    canvas.tint(canvas.ellipse(0.5, 0.105, rim * 0.86, lift * 0.8), (150, 152, 157))
    canvas.tint(canvas.ellipse(0.5, 0.10 + lift * 0.35, rim * 0.42, lift * 0.32), (28, 28, 30))
    canvas.tint(canvas.ellipse(0.5, 0.10 - lift * 0.2, rim * 0.25, lift * 0.28), (225, 227, 230))
    if rng.random() < 0.5:
        _crush(rng, canvas)


def _print_label(rng: Rng, canvas: Canvas, label: Field, top: float, bottom: float) -> None:
    ink = pick_colour(rng, PRINTS)
    kind = rng.integers(3)
    if kind == 0:
        slope, start = between(rng, -0.4, 0.4), between(rng, 0.35, 0.6)
        wave = canvas.polygon([(0.0, start), (1.0, start + slope), (1.0, start + slope + 0.16), (0.0, start + 0.16)])
        canvas.tint(label * wave, ink)
    elif kind == 1:
        middle = between(rng, 0.42, 0.58)
        canvas.tint(label * canvas.ellipse(0.5, middle, 0.17, 0.13), ink)
        canvas.tint(label * canvas.box(0.38, middle - 0.02, 0.62, middle + 0.03), (240, 240, 236))
    else:
        edge = top + (bottom - top) * between(rng, 0.3, 0.7)
        canvas.tint(label * canvas.box(0.0, edge, 1.0, bottom), ink)
        canvas.tint(label * canvas.box(0.0, edge - 0.015, 1.0, edge + 0.015), (235, 235, 230))


def _crush(rng: Rng, canvas: Canvas) -> None:
    dents = facets(rng, canvas.side, 9)
    canvas.shade(1.0 + 0.28 * dents)
    canvas.bend(rng, 0.045)


def food_can(rng: Rng, canvas: Canvas) -> None:
    """A wide, ribbed tin, opened: dark inside, the lid bent up behind; some still have a paper band."""
    radius, lift = between(rng, 0.34, 0.42), between(rng, 0.09, 0.14)
    top, bottom = 0.28, between(rng, 0.82, 0.90)
    if rng.random() < 0.6:
        canvas.paint(canvas.ellipse(0.5 + between(rng, -0.1, 0.1), top - 0.14, radius * 0.8, 0.12), _BARE)
        canvas.shade(0.75 + 0.5 * canvas.x)
    wall = canvas.turned([(top, radius), (bottom, radius)])
    canvas.paint(np.maximum(wall, canvas.ellipse(0.5, bottom, radius, lift * 0.8)), (178, 178, 176))
    ribs = np.sin((canvas.y + 0.25 * (canvas.x - 0.5) ** 2) * 2 * np.pi / 0.065)
    canvas.shade(1.0 + 0.20 * ribs * wall)
    if rng.random() < 0.4:
        band = wall * canvas.box(0.0, top + 0.10, 1.0, bottom - 0.08)
        canvas.tint(band, pick_colour(rng, PRINTS))
        canvas.tint(band * canvas.ellipse(0.5, 0.6, 0.16, 0.09), pick_colour(rng, PRINTS))
    canvas.round(radius, gloss=0.7, dark=0.32)
    _rust(rng, canvas)
    canvas.paint(canvas.ellipse(0.5, top, radius, lift), (216, 217, 218))
    canvas.tint(canvas.ellipse(0.5, top, radius * 0.92, lift * 0.86), _DARK)
    canvas.tint(canvas.ellipse(0.5, top + lift * 0.3, radius * 0.8, lift * 0.5), (112, 108, 104))
    if rng.random() < 0.3:
        canvas.bend(rng, 0.03)


def _rust(rng: Rng, canvas: Canvas) -> None:
    spots = np.clip(facets(rng, canvas.side, 30) - 0.55, 0.0, 1.0)
    canvas.tint(spots, (120, 66, 34), between(rng, 0.0, 0.8))


def bottle_cap(rng: Rng, canvas: Canvas) -> None:
    """A crown cap with its crimped skirt, seen from outside (printed) or inside (bare with a seal)."""
    turn = np.linspace(0.0, 2 * np.pi, 252, endpoint=False)
    reach = 0.46 + 0.022 * np.cos(21 * turn)
    crown = canvas.polygon([(0.5 + r * np.cos(t), 0.5 + r * np.sin(t)) for t, r in zip(turn, reach, strict=True)])
    canvas.paint(crown, _BARE)
    across, down = canvas.x - 0.5, canvas.y - 0.5
    skirt = np.cos(21 * np.arctan2(down, across))
    canvas.shade(0.72 + 0.34 * skirt - 0.5 * (across + down))
    inside = rng.random() < 0.35
    face = canvas.ellipse(0.5, 0.5, 0.37, 0.37)
    canvas.tint(face, (168, 168, 166) if inside else pick_colour(rng, PRINTS))
    if inside:
        canvas.tint(canvas.ellipse(0.5, 0.5, 0.30, 0.30), (205, 204, 196))
        canvas.tint(canvas.ellipse(0.49, 0.49, 0.25, 0.25), (140, 140, 140))
    else:
        canvas.tint(canvas.ellipse(0.5, 0.5, 0.22, 0.22), pick_colour(rng, PRINTS))
    canvas.shade(1.0 - 0.45 * (across + down) * face)
    shine = np.exp(-(((across + 0.16) / 0.14) ** 2) - ((down + 0.18) / 0.07) ** 2)
    canvas.tint(shine, (255, 255, 255), 0.75)
    _rust(rng, canvas)
