"""Styrofoam: broken pieces, clamshells, foam cups. White, thick and dull, with the beads in sight."""

import numpy as np

from augment_cache.drawing.canvas import Canvas, Colour, lump, pick_colour
from augment_cache.drawing.noise import Field, Rng, beads, between, layered

_FOAM: tuple[Colour, ...] = ((244, 245, 245), (238, 238, 232), (230, 234, 240), (243, 238, 224))


def _bead(rng: Rng, canvas: Canvas, across: int, depth: float) -> None:
    canvas.shade(1.04 - depth + depth * beads(rng, canvas.side, across))


def foam_piece(rng: Rng, canvas: Canvas) -> None:
    """A broken lump: crumbling outline, large beads, a shaded face where it broke."""
    count = int(rng.integers(7, 12))
    shape = lump(rng, 0.46, 0.22, count, between(rng, 0.55, 0.95))
    thick = between(rng, 0.06, 0.14)
    canvas.paint(canvas.polygon([(x, min(y + thick, 0.99)) for x, y in shape]), (186, 188, 190))
    canvas.paint(canvas.polygon([(x, y - thick * 0.3) for x, y in shape]), pick_colour(rng, _FOAM, 4))
    size = canvas.side
    canvas.shade(0.97 + 0.10 * layered(rng, size, size, size / 4))
    _bead(rng, canvas, int(rng.integers(13, 20)), 0.34)
    canvas.bend(rng, 0.02, 0.07)
    canvas.shade(1.08 - 0.25 * canvas.y)


def food_container(rng: Rng, canvas: Canvas) -> None:
    """A clamshell lying open: two trays with rounded corners, joined at a hinge, each with a sunken bottom."""
    colour = pick_colour(rng, _FOAM, 4)
    half = between(rng, 0.36, 0.44)
    for top, bottom in ((0.04, 0.485), (0.515, 0.96)):
        left, right = 0.5 - half, 0.5 + half
        canvas.paint(_rounded(canvas, left, top, right, bottom, 0.07), colour)
        inset = 0.075
        well = _rounded(canvas, left + inset, top + inset, right - inset, bottom - inset, 0.05)
        canvas.shade(1.0 - 0.17 * well)
        floor = _rounded(canvas, left + 0.13, top + 0.12, right - 0.09, bottom - 0.085, 0.04)
        canvas.shade(1.0 + 0.16 * floor)
    canvas.paint(canvas.box(0.5 - half * 0.9, 0.48, 0.5 + half * 0.9, 0.52), (196, 197, 196))
    _bead(rng, canvas, 34, 0.13)
    if rng.random() < 0.5:
        stain = np.clip(layered(rng, canvas.side, canvas.side, canvas.side / 4) - 0.35, 0, 1)
        canvas.tint(stain, (150, 84, 30), 0.8)
    canvas.shade(1.05 - 0.16 * canvas.x)
    canvas.bend(rng, 0.02)


def _rounded(canvas: Canvas, left: float, top: float, right: float, bottom: float, radius: float) -> Field:
    corners = ((right, bottom, -1, -1), (left, bottom, 1, -1), (left, top, 1, 1), (right, top, -1, 1))
    points = []
    for quarter, (x, y, inward, down) in enumerate(corners):
        for turn in np.linspace(quarter, quarter + 1, 6) * np.pi / 2:
            points.append((x + inward * radius + radius * np.cos(turn), y + down * radius + radius * np.sin(turn)))
    return canvas.polygon([(float(x), float(y)) for x, y in points])


def foam_cup(rng: Rng, canvas: Canvas) -> None:
    """A plain foam cup: thick rim, fine beads, no print; some have a bite broken out."""
    top, foot = 0.17, 0.94
    wide, narrow, lift = between(rng, 0.34, 0.40), between(rng, 0.24, 0.29), between(rng, 0.09, 0.13)
    wall = canvas.turned([(top, wide), (top + 0.09, wide), (top + 0.10, wide * 0.93), (foot - 0.03, narrow)])
    canvas.paint(np.maximum(wall, canvas.ellipse(0.5, foot - 0.03, narrow, lift * 0.5)), pick_colour(rng, _FOAM, 4))
    canvas.tint(canvas.stroke([(0, top + 0.115), (1, top + 0.115)], 0.015), (150, 152, 154), 0.5)
    canvas.round(wide, dark=0.6)
    canvas.paint(canvas.ellipse(0.5, top, wide, lift), (250, 250, 248))
    canvas.tint(canvas.ellipse(0.5, top + 0.005, wide * 0.80, lift * 0.74), (188, 188, 186))
    canvas.tint(canvas.ellipse(0.5, top + 0.03, wide * 0.70, lift * 0.55), (214, 213, 210))
    _bead(rng, canvas, 26, 0.26)
    if rng.random() < 0.4:
        x = between(rng, 0.25, 0.75)
        canvas.erase(
            canvas.polygon([(x - 0.14, 0.0), (x + 0.13, 0.0), (x + 0.09, 0.2), (x + 0.02, 0.3), (x - 0.07, 0.22)])
        )
    canvas.bend(rng, 0.015)
