"""Plastic: clear bottle, opaque bottle, lid, straw. Smooth, round and glossy; the clear ones let the ground through."""

import numpy as np

from augment_cache.drawing.canvas import PRINTS, WHITES, Canvas, Colour, pick_colour, ring
from augment_cache.drawing.noise import Rng, between, folds

_CLEAR: tuple[Colour, ...] = ((222, 232, 236), (196, 222, 240), (190, 226, 200), (232, 232, 226))


def clear_bottle(rng: Rng, canvas: Canvas) -> None:
    """A transparent bottle: dark edges, ribs, long highlights; coloured cap and label more often than not."""
    radius = between(rng, 0.145, 0.19)
    neck, shoulder = radius * 0.38, between(rng, 0.24, 0.32)
    body = canvas.turned(
        [(0.07, neck), (0.13, neck), (0.18, radius * 0.6), (shoulder, radius), (0.50, radius * 0.95), (0.56, radius),
         (0.94, radius), (0.975, radius * 0.85)]
    )  # fmt: skip
    canvas.paint(body, pick_colour(rng, _CLEAR, 5), between(rng, 0.20, 0.45))
    across = np.clip(np.abs(canvas.x - 0.5) / radius, 0, 1)
    canvas.tint(across**6, (64, 78, 84), 0.65)
    ribs = np.clip(np.sin(canvas.y * 2 * np.pi / 0.052), 0, 1) * (canvas.y > shoulder + 0.04)
    canvas.tint(ribs, (250, 252, 255), 0.28)
    if rng.random() < 0.65:
        top = between(rng, 0.38, 0.50)
        label = body * canvas.box(0, top, 1, top + between(rng, 0.14, 0.26))
        canvas.tint(label, pick_colour(rng, PRINTS), 0.95)
        canvas.tint(label * canvas.box(0, top + 0.05, 1, top + 0.09), pick_colour(rng, PRINTS), 0.9)
    for place, width, strength in ((-0.45, 0.10, 0.85), (0.55, 0.06, 0.55)):
        light = np.exp(-((((canvas.x - 0.5) / radius - place) / width) ** 2))
        canvas.tint(light, (255, 255, 255), strength)
    if rng.random() < 0.75:
        canvas.paint(canvas.turned([(0.02, neck * 1.2), (0.085, neck * 1.2)]), pick_colour(rng, PRINTS))
    if rng.random() < 0.45:
        canvas.tint(folds(rng, canvas.side, 0.16), (255, 255, 255), 0.5)
        canvas.bend(rng, 0.05)


def other_bottle(rng: Rng, canvas: Canvas) -> None:
    """An opaque bottle of shampoo or cleaner: one smooth colour, broad shoulders, flip or spray top, a small label."""
    radius = between(rng, 0.19, 0.25)
    colour = pick_colour(rng, PRINTS)
    squat = between(rng, 0.22, 0.30)
    body = canvas.turned(
        [(0.16, radius * 0.4), (squat - 0.02, radius * 0.55), (squat + 0.06, radius * 0.95), (0.5, radius),
         (0.92, radius * 0.92), (0.97, radius * 0.8)]
    )  # fmt: skip
    canvas.paint(body, colour)
    label = (
        canvas.ellipse(0.5, 0.62, radius * 0.72, 0.19)
        if rng.random() < 0.5
        else canvas.box(0.5 - radius * 0.75, 0.45, 0.5 + radius * 0.75, 0.80)
    )
    canvas.tint(label, pick_colour(rng, WHITES), 0.95)
    canvas.tint(label * canvas.box(0, 0.53, 1, 0.60), pick_colour(rng, PRINTS))
    if rng.random() < 0.35:
        canvas.erase(canvas.ellipse(0.5 + radius * 0.62, 0.40, radius * 0.20, 0.085))
    canvas.round(radius, gloss=0.45, dark=0.5)
    cap = pick_colour(rng, PRINTS)
    if rng.random() < 0.3:
        canvas.paint(
            canvas.polygon(
                [(0.36, 0.03), (0.58, 0.03), (0.60, 0.10), (0.54, 0.17), (0.46, 0.17), (0.45, 0.10), (0.36, 0.09)]
            ),
            cap,
        )
    else:
        canvas.paint(canvas.turned([(0.03, radius * 0.40), (0.17, radius * 0.48)]), cap)
    canvas.tint(canvas.box(0.47, 0.03, 0.49, 0.17), (255, 255, 255), 0.4)
    if rng.random() < 0.3:
        canvas.bend(rng, 0.04)


def lid(rng: Rng, canvas: Canvas) -> None:
    """A lid of a cup or tub: concentric steps, a shiny rim, the cross cut or sip hole of drinks, sometimes clear."""
    clear = rng.random() < 0.35
    colour = pick_colour(rng, _CLEAR if clear else (*WHITES, *PRINTS), 8)
    canvas.paint(canvas.ellipse(0.5, 0.5, 0.47, 0.47), colour, 0.45 if clear else 1.0)
    across, down = canvas.x - 0.5, canvas.y - 0.5
    slope = (across + down) / np.maximum(np.hypot(across, down), 1e-3) / 1.42
    for outer, inner, strength in ((0.47, 0.42, -0.45), (0.42, 0.38, 0.45), (0.28, 0.255, -0.35)):
        band = canvas.ellipse(0.5, 0.5, outer, outer) - canvas.ellipse(0.5, 0.5, inner, inner)
        canvas.shade(1.0 + strength * slope * band)
        canvas.tint(band * np.clip(-slope * np.sign(-strength), 0, 1), (255, 255, 255), 0.35)
    for radius in (0.42, 0.27):
        canvas.tint(canvas.stroke(ring(0.5, 0.5, radius, radius), 0.012, closed=True), (40, 40, 44), 0.35)
    if rng.random() < 0.5:
        for line in ([(0.44, 0.5), (0.56, 0.5)], [(0.5, 0.44), (0.5, 0.56)]):
            canvas.tint(canvas.stroke(line, 0.02), (30, 30, 32), 0.85)
    else:
        canvas.tint(canvas.ellipse(0.5, 0.17, 0.06, 0.03), (24, 24, 26), 0.9)
    shine = np.exp(-(((across + 0.15) / 0.16) ** 2) - ((down + 0.14) / 0.05) ** 2)
    canvas.tint(shine, (255, 255, 255), 0.6)
    if rng.random() < 0.3:
        canvas.bend(rng, 0.03)


def straw(rng: Rng, canvas: Canvas) -> None:
    """A thin tube, straight or with its bellows bent; plain or with stripes along it."""
    thick = between(rng, 0.045, 0.075)
    colour = pick_colour(rng, (*WHITES, *PRINTS))
    angle = float(rng.choice([0.0, rng.uniform(0.5, 1.3)]))
    elbow = (0.5, 0.30 if angle else 0.5)
    tip = (0.5 + 0.27 * float(np.sin(angle)), elbow[1] - (0.27 * float(np.cos(angle)) if angle else 0.47))
    path = [(0.5, 0.97), elbow, tip]
    canvas.paint(canvas.stroke(path, thick), colour, 0.92)
    canvas.tint(canvas.stroke([(x + thick * 0.32, y) for x, y in path], thick * 0.35), (20, 20, 24), 0.35)
    canvas.tint(canvas.stroke([(x - thick * 0.22, y) for x, y in path], thick * 0.22), (255, 255, 255), 0.7)
    if rng.random() < 0.4:
        canvas.tint(canvas.stroke([(x + thick * 0.1, y) for x, y in path], thick * 0.25), pick_colour(rng, PRINTS), 0.9)
    if angle:
        bellows = (np.sin(canvas.y * 2 * np.pi / 0.025) > 0) & (np.abs(canvas.y - elbow[1] - 0.03) < 0.06)
        canvas.tint(bellows.astype(np.float32), (40, 40, 44), 0.45)
    canvas.bend(rng, 0.02, 0.6)
