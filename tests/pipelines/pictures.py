"""Small pictures for tests: textured, so that every op shows."""

import io

import numpy as np
from PIL import Image


def textured(height, width, seed):
    """uint8 [height, width, 3]: smooth colours, edges and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(4, 15) + rng.uniform(0, 6)) + np.cos(y / rng.uniform(4, 15)) for _ in range(3)]
    picture = 120 + 45 * np.stack(waves, axis=2) + rng.normal(0, 6, (height, width, 3))
    picture[height // 4 : height // 2, width // 3 : width // 2] += rng.uniform(-80, 80, 3)
    return picture.clip(0, 255).astype(np.uint8)


def encoded(pixels, *, kind="JPEG", mode="RGB", exif=None, quality=92):
    """The picture as a file, uint8 [bytes]."""
    file = io.BytesIO()
    options = {"quality": quality}
    if exif:
        tags = Image.Exif()
        tags[0x0112] = exif
        options["exif"] = tags
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return np.frombuffer(file.getvalue(), np.uint8)
