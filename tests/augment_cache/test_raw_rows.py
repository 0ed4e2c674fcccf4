"""Rows of a raw cache, many at a time: the same as one by one, mirrored where asked, damaged ones named."""

import numpy as np
import pytest

from augment_cache.format.source import CacheSource
from pipelines.engines.base import SMALL_BYTES
from pipelines.errors import CorruptSampleError
from tests.augment_cache.test_bad_cache import flip

SIZES = {32: True, 112: False}
"""Size in px → whether one thread copies them."""


@pytest.fixture(scope="module", params=sorted(SIZES))
def folder(request, photos, build_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("raw_rows") / "cache"
    build_cache(photos, out, encoding="raw", size=request.param, shard_mib=0.1)
    assert len(list(out.glob("train/*.arrow"))) > 1
    return out


def test_many_rows_are_each_row(folder):
    source = CacheSource(folder, "train")
    size, random = source.image_size, np.random.default_rng(0)
    rows = random.integers(0, len(source.labels), 60)
    mirrored = random.random(60) < 0.5
    stack, out = source.fetch(rows), np.empty((50, size, size, 3), np.uint8)
    assert stack.one_thread == SIZES[size] == (3 * size**2 < SMALL_BYTES)
    assert stack.copy_to(10, mirrored[10:], out) == {}
    for image, row, turned in zip(out, rows[10:].tolist(), mirrored[10:].tolist(), strict=True):
        assert np.array_equal(image, source.image(row)[:, ::-1] if turned else source.image(row))


@pytest.mark.parametrize("check", [True, False])
def test_damaged_rows_are_named(folder, check):
    clean = CacheSource(folder, "train")
    row, image = 3, clean.image(3).tobytes()
    (path,) = (each for each in folder.glob("train/*.arrow") if image in each.read_bytes())
    data = path.read_bytes()
    flip(path, data.index(image) + len(image) // 2)
    try:
        source = CacheSource(folder, "train", check=check)
        rows = np.array([5, row, 1, row])
        out = np.empty((4, *source.fetch(rows).side, 3), np.uint8)
        errors = source.fetch(rows).copy_to(0, np.zeros(4, np.bool_), out)
        if not check:
            assert errors == {}
            return
        with pytest.raises(CorruptSampleError) as caught:
            source.image(row)
        assert errors == {1: str(caught.value), 3: str(caught.value)}
        assert np.array_equal(out[0], source.image(5))
        assert np.array_equal(out[2], source.image(1))
    finally:
        path.write_bytes(data)
