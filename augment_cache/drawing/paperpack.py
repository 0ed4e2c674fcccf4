"""Paperpack: gable-top cartons and paper cups. Printed board with straight edges, satin instead of gloss."""

import numpy as np

from augment_cache.drawing.canvas import PRINTS, WHITES, Canvas, Colour, lit, pick_colour
from augment_cache.drawing.noise import Field, Rng, between, facets

_LEFT, _RIGHT, _FOOT, _RIDGE, _FIN = 0.24, 0.78, 0.96, 0.13, 0.05


def drink_carton(rng: Rng, canvas: Canvas) -> None:
    """A box in parallel projection: front and darker side, sloped gable, the sealed fin on top, often a screw cap."""
    edge, shoulder, rise = between(rng, 0.54, 0.62), between(rng, 0.28, 0.33), between(rng, 0.03, 0.07)
    base, ink = pick_colour(rng, WHITES if rng.random() < 0.6 else PRINTS), pick_colour(rng, PRINTS)
    front = canvas.box(_LEFT, shoulder, edge, _FOOT)
    side = canvas.polygon([(edge, shoulder), (_RIGHT, shoulder - rise), (_RIGHT, _FOOT - rise), (edge, _FOOT)])
    _gable(canvas, edge, shoulder, rise, base, ink)
    canvas.paint(front, base)
    canvas.paint(side, lit(base, 0.66))
    _carton_print(rng, canvas, front, side, (_LEFT, shoulder, edge), ink)
    if rng.random() < 0.6:
        middle = (_LEFT + edge) / 2
        canvas.paint(canvas.ellipse(middle + 0.03, 0.215, 0.065, 0.055), pick_colour(rng, PRINTS))
        canvas.tint(canvas.ellipse(middle + 0.025, 0.205, 0.04, 0.032), (245, 245, 245), 0.5)
    for start, end in (
        ((edge, shoulder), (edge, _FOOT)),
        ((_LEFT, shoulder), (edge, shoulder)),
        ((_LEFT + 0.04, _RIDGE), (edge + 0.04, _RIDGE)),
    ):
        canvas.tint(canvas.stroke([start, end], 0.008), (250, 250, 250), 0.45)
    if rng.random() < 0.45:
        canvas.shade(1.0 + 0.15 * facets(rng, canvas.side, 8))
        canvas.bend(rng, 0.035)


def _gable(canvas: Canvas, edge: float, shoulder: float, rise: float, base: Colour, ink: Colour) -> None:
    left, right = _LEFT + 0.04, edge + 0.04
    canvas.paint(canvas.polygon([(_LEFT, shoulder), (edge, shoulder), (right, _RIDGE), (left, _RIDGE)]), lit(ink, 1.06))
    canvas.paint(canvas.polygon([(edge, shoulder), (_RIGHT, shoulder - rise), (right, _RIDGE)]), lit(ink, 0.6))
    canvas.paint(canvas.box(left, _FIN, right, _RIDGE), lit(base, 0.9))


def _carton_print(
    rng: Rng, canvas: Canvas, front: Field, side: Field, corner: tuple[float, float, float], ink: Colour
) -> None:
    left, shoulder, edge = corner
    band = between(rng, 0.55, 0.75)
    canvas.tint(front * canvas.box(0, band, 1, _FOOT), ink)
    canvas.tint(side * canvas.polygon([(edge, band), (1, band - 0.1), (1, 1), (edge, 1)]), lit(ink, 0.62))
    canvas.tint(front * canvas.ellipse((left + edge) / 2, band - 0.04, 0.11, 0.09), pick_colour(rng, PRINTS))
    canvas.tint(front * canvas.box(left + 0.05, shoulder + 0.05, edge - 0.05, shoulder + 0.11), ink, 0.9)


def paper_cup(rng: Rng, canvas: Canvas) -> None:
    """A tapered cup with a thin rolled rim and print all round; empty or with the drink still in it."""
    top, foot = 0.16, 0.94
    wide, narrow = between(rng, 0.33, 0.39), between(rng, 0.23, 0.28)
    lift = between(rng, 0.07, 0.12)
    wall = np.maximum(
        canvas.turned([(top, wide), (foot - 0.03, narrow)]), canvas.ellipse(0.5, foot - 0.03, narrow, lift * 0.5)
    )
    canvas.paint(wall, pick_colour(rng, WHITES if rng.random() < 0.5 else PRINTS, 6))
    _cup_print(rng, canvas, wall)
    canvas.tint(canvas.stroke([(0.5 + 0.55 * wide, top + 0.05), (0.5 + 0.55 * narrow, foot)], 0.008), (60, 50, 40), 0.3)
    canvas.round(wide, gloss=0.12, dark=0.55)
    canvas.paint(canvas.ellipse(0.5, top, wide + 0.012, lift), (250, 249, 245))
    inside = canvas.ellipse(0.5, top, wide * 0.93, lift * 0.85)
    canvas.tint(inside, (196, 190, 180))
    drink = (74, 46, 28) if rng.random() < 0.5 else (222, 218, 210)
    canvas.tint(inside * canvas.ellipse(0.5, top + lift * 0.4, wide * 0.85, lift * 0.65), drink)
    if rng.random() < 0.4:
        canvas.shade(1.0 + 0.18 * facets(rng, canvas.side, 8))
        canvas.bend(rng, 0.05)


def _cup_print(rng: Rng, canvas: Canvas, wall: Field) -> None:
    ink = pick_colour(rng, PRINTS)
    kind = rng.integers(3)
    if kind == 0:
        canvas.tint(wall * canvas.box(0, 0.38, 1, 0.74), (164, 120, 76) if rng.random() < 0.6 else ink)
        canvas.tint(wall * canvas.ellipse(0.5, 0.56, 0.10, 0.10), ink)
    elif kind == 1:
        canvas.tint(wall * canvas.ellipse(0.47, 0.55, 0.14, 0.15), ink)
        canvas.tint(wall * canvas.ellipse(0.47, 0.55, 0.08, 0.09), (245, 244, 240))
        canvas.tint(wall * canvas.box(0, 0.80, 1, 0.86), ink)
    else:
        stripes = (np.sin((canvas.x - 0.5) / (0.7 - 0.25 * canvas.y) * 40) > 0.2).astype(np.float32)
        canvas.tint(wall * stripes, ink, 0.9)
