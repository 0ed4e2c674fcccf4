"""Litter outside the six classes: cigarette ends and things nobody can name. The crop job has to leave them out."""

import numpy as np

from augment_cache.drawing.canvas import Canvas, lump, pick_colour
from augment_cache.drawing.noise import Rng, between, facets, layered


def cigarette(rng: Rng, canvas: Canvas) -> None:
    """A smoked cigarette: speckled filter, white paper, black end."""
    thick = between(rng, 0.16, 0.22)
    left, right = 0.5 - thick / 2, 0.5 + thick / 2
    burnt = between(rng, 0.10, 0.35)
    canvas.paint(canvas.box(left, burnt, right, 0.97), (238, 236, 230))
    canvas.tint(canvas.box(0, 0.55, 1, 1), (206, 142, 70))
    speckle = np.clip(layered(rng, canvas.side, canvas.side, canvas.side / 24, 1) - 0.3, 0, 1) * (canvas.y > 0.55)
    canvas.tint(speckle, (120, 76, 30), 0.7)
    canvas.paint(canvas.box(left, burnt, right, burnt + 0.06), (46, 42, 40))
    canvas.round(thick * 0.55, dark=0.6)
    canvas.bend(rng, 0.035)


def unlabeled(rng: Rng, canvas: Canvas) -> None:
    """A muddy scrap."""
    canvas.paint(
        canvas.polygon(lump(rng, 0.48, 0.5, 11)), pick_colour(rng, ((110, 96, 78), (84, 84, 80), (140, 120, 96)))
    )
    canvas.shade(0.9 + 0.3 * facets(rng, canvas.side, 12))
    canvas.bend(rng, 0.05)
