"""The resize without torch gives torch's levels, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engines import antialias, cpu_render

SIDES = st.integers(1, 150)


def by_torch(pixels, height, width):
    planes = torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def noise(seed, height, width, *, hard=False):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(levels > 127, np.uint8(255), np.uint8(0)) if hard else levels


@settings(max_examples=150, deadline=None)
@given(height=SIDES, width=SIDES, rows=SIDES, columns=SIDES, seed=st.integers(0, 1000), hard=st.booleans())
def test_equals_torch_bit_for_bit(height, width, rows, columns, seed, hard):
    pixels = noise(seed, height, width, hard=hard)
    out = np.empty((rows, columns, 3), np.uint8)
    antialias.shrink(pixels, out)
    np.testing.assert_array_equal(out, by_torch(pixels, rows, columns))


@pytest.mark.parametrize("shape", [(3000, 50, 10, 4), (20, 5000, 4, 4), (1, 1, 64, 64), (384, 512, 80, 60)])
def test_equals_torch_at_the_extremes(shape):
    height, width, rows, columns = shape
    pixels = noise(1, height, width, hard=True)
    out = np.empty((rows, columns, 3), np.uint8)
    antialias.shrink(pixels, out)
    np.testing.assert_array_equal(out, by_torch(pixels, rows, columns))


def test_products_are_small_enough_for_one_thread(monkeypatch):
    matmul, sizes = np.matmul, []
    monkeypatch.setattr(np, "matmul", lambda a, b, out: (sizes.append(a.size * b.shape[1]), matmul(a, b, out=out)))
    antialias.shrink(noise(4, 700, 900), np.empty((80, 80, 3), np.uint8))
    assert max(sizes) <= antialias.MOST_PRODUCTS


def test_writes_into_a_part_of_an_image():
    pixels, square = noise(2, 90, 70), np.full((80, 80, 3), 128, np.uint8)
    antialias.shrink(pixels, square[10:70, :])
    np.testing.assert_array_equal(square[10:70], by_torch(pixels, 60, 80))
    assert (square[:10] == 128).all()
    assert (square[70:] == 128).all()


def test_the_engine_takes_it_where_torch_is_not_loaded(monkeypatch):
    pixels = noise(3, 100, 131)
    with_torch, without = np.empty((64, 64, 3), np.uint8), np.empty((64, 64, 3), np.uint8)
    cpu_render.resize(pixels, with_torch)
    called = []
    monkeypatch.setattr(cpu_render.antialias, "shrink", lambda *args: (called.append(1), shrink(*args)))
    monkeypatch.delitem(cpu_render.sys.modules, "torch")
    cpu_render.resize(pixels, without)
    assert called
    np.testing.assert_array_equal(with_torch, without)


shrink = antialias.shrink
