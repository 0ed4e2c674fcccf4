"""A tiny cache that a network can learn in seconds: three colours of texture."""

import numpy as np
import pytest
from PIL import Image

from augment_cache.build import BuildConfig, build
from tests.pipelines.pictures import textured

COLOURS = {"blue": (0, 0, 90), "green": (0, 90, 0), "red": (90, 0, 0)}


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(30):
            pixels = textured(40, 50, number) // 2 + np.array(colour, np.uint8)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:03d}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def cache(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("caches") / "colours"
    build(BuildConfig(data=photos, out=out, size=32, copies=1, engine="cpu"))
    return out
