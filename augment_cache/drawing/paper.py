"""Paper: sheets with lines of text, crumpled balls, paper bags. Flat facets with sharp creases, no gloss."""

import numpy as np

from augment_cache.drawing.canvas import PRINTS, WHITES, Canvas, Colour, lump, pick_colour, zigzag
from augment_cache.drawing.noise import Rng, between, facets, layered

_SHEETS: tuple[Colour, ...] = (*WHITES, (235, 220, 140), (190, 214, 232), (226, 190, 196), (206, 196, 176))
_KRAFT: tuple[Colour, ...] = ((176, 134, 88), (190, 152, 104), (156, 116, 74), (228, 222, 208))


def normal_paper(rng: Rng, canvas: Canvas) -> None:
    """A printed sheet, creased and dog-eared, or a sheet crumpled into a ball."""
    if rng.random() < 0.35:
        _ball(rng, canvas)
    else:
        _sheet(rng, canvas)


def _sheet(rng: Rng, canvas: Canvas) -> None:
    half = between(rng, 0.30, 0.40)
    jitter = rng.uniform(-0.035, 0.035, (4, 2))
    corners = np.array([(0.5 - half, 0.04), (0.5 + half, 0.04), (0.5 + half, 0.96), (0.5 - half, 0.96)]) + jitter
    canvas.paint(canvas.polygon([(float(x), float(y)) for x, y in corners]), pick_colour(rng, _SHEETS, 5))
    _text(rng, canvas, 0.5 - half + 0.06, 0.5 + half - 0.06)
    creases = facets(rng, canvas.side, int(rng.integers(5, 16)))
    canvas.shade(0.93 + between(rng, 0.06, 0.16) * creases)
    if rng.random() < 0.5:
        corner = between(rng, 0.12, 0.25)
        canvas.erase(canvas.polygon([(0.5 + half - corner, 0.0), (1.0, 0.0), (1.0, corner + 0.04)]))
        ear = [(0.5 + half - corner, 0.03), (0.5 + half, 0.04 + corner), (0.5 + half - corner, 0.04 + corner)]
        canvas.tint(canvas.polygon(ear), (205, 204, 200))
    canvas.bend(rng, 0.035)


def _text(rng: Rng, canvas: Canvas, left: float, right: float) -> None:
    ink: Colour = (70, 70, 78) if rng.random() < 0.8 else (40, 60, 130)
    top = 0.12
    if rng.random() < 0.6:
        canvas.tint(canvas.box(left, top, left + (right - left) * between(rng, 0.4, 0.9), top + 0.05), ink, 0.85)
        top += 0.11
    if rng.random() < 0.3:
        canvas.tint(canvas.box(left, top, right, top + 0.2), pick_colour(rng, PRINTS), 0.8)
        top += 0.25
    step = between(rng, 0.045, 0.07)
    for line in np.arange(top, 0.88, step):
        if rng.random() < 0.9:
            end = right if rng.random() < 0.7 else left + (right - left) * between(rng, 0.3, 0.9)
            canvas.tint(canvas.stroke([(left, float(line)), (end, float(line))], 0.012), ink, 0.6)


def _ball(rng: Rng, canvas: Canvas) -> None:
    canvas.paint(canvas.polygon(lump(rng, 0.48, 0.28, 15, between(rng, 0.75, 1.0))), pick_colour(rng, _SHEETS, 5))
    if rng.random() < 0.5:
        _text(rng, canvas, 0.15, 0.85)
        canvas.bend(rng, 0.06, 0.2)
    canvas.shade(0.82 + 0.26 * facets(rng, canvas.side, 26))
    canvas.shade(1.12 - 0.9 * ((canvas.x - 0.4) ** 2 + (canvas.y - 0.4) ** 2))


def paper_bag(rng: Rng, canvas: Canvas) -> None:
    """A bag of kraft or white paper: saw-tooth mouth, a folded gusset, a block bottom, sometimes a stamp."""
    half = between(rng, 0.28, 0.36)
    left, right = 0.5 - half, 0.5 + half
    mouth = zigzag(left, right, 0.05, 0.022, 15)
    canvas.paint(canvas.polygon([*mouth, (right, 0.95), (left, 0.95)]), pick_colour(rng, _KRAFT, 8))
    fibres = layered(rng, canvas.side, canvas.side, canvas.side / 10, 3, stretch=0.3)
    canvas.shade(1.0 + 0.05 * fibres)
    gusset = left + 2 * half * 0.26
    canvas.shade(1.0 - 0.20 * canvas.box(left, 0.0, gusset, 1.0))
    canvas.tint(canvas.stroke([(gusset, 0.05), (gusset, 0.95)], 0.010), (70, 50, 30), 0.45)
    canvas.tint(canvas.stroke([(left, 0.78), (gusset, 0.70), (right, 0.70)], 0.010), (70, 50, 30), 0.40)
    middle = (gusset + right) / 2
    if rng.random() < 0.55:
        canvas.tint(canvas.ellipse(middle, 0.42, half * 0.45, 0.13), pick_colour(rng, PRINTS), 0.8)
    if rng.random() < 0.4:
        canvas.paint(
            canvas.stroke([(middle - 0.1, 0.07), (middle - 0.1, 0.0), (middle + 0.1, 0.0)], 0.02), (150, 112, 70)
        )
    canvas.shade(0.95 + 0.15 * facets(rng, canvas.side, int(rng.integers(8, 20))))
    canvas.bend(rng, 0.03)
