"""Training from a cache with flipped bytes: named and fatal, or left out and reported."""

from contextlib import suppress

import pyarrow as pa
import pytest
import torch

from augment_cache.format.source import CacheSource
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.engines.dali_compat import dali_version
from pipelines.errors import CorruptSampleError
from pipelines.plan import View
from tests.augment_cache.test_bad_cache import flip, place
from tests.pipelines.small_sources import loaders, pixels_by_row, rows_of, steps

pytestmark = pytest.mark.timeout(600)
needs_dali = [pytest.mark.dali, pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")]
KINDS = {"jpeg": "own_cache", "raw": "own_raw_cache"}
ROW = 2


@pytest.fixture(scope="module", params=["cpu", pytest.param("dali", marks=needs_dali)])
def engine(request):
    made = make_engine(request.param, RenderSpec(32), device="cpu", threads=2)
    yield made
    made.close()


@pytest.fixture(params=sorted(KINDS))
def folder(request):
    return request.getfixturevalue(KINDS[request.param])


def first_shard(folder):
    return sorted(folder.glob("train/*.arrow"))[0]


def flip_in_image(folder, row, part=0.5):
    source = CacheSource(folder, "train")
    image, path = source.image(row).tobytes(), first_shard(folder)
    data = path.read_bytes()
    assert data.count(image) == 1
    flip(path, data.index(image) + int(part * len(image)))


def read(folder, engine, world=1, *, check=True, **options):
    ranks = loaders(
        CacheSource(folder, "train", check=check),
        engine,
        world,
        **{"batch_size": 8, "train": False, "view": View(flip=True, min_area=0.5)} | options,
    )
    return ranks, steps(ranks)


@pytest.mark.parametrize("world", [1, 2])
def test_a_damaged_image_is_left_out(folder, engine, world):
    expected = pixels_by_row(read(folder, engine)[1])
    for row in (0, ROW, 3):
        flip_in_image(folder, row)
    ranks, found = read(folder, engine, world, damaged="skip")
    seen = pixels_by_row(found)
    assert list(seen) == [row for row in expected if row not in (0, ROW, 3)]
    assert all(torch.equal(seen[row], expected[row]) for row in seen)
    skipped = [each for rank in ranks for each in rank.skipped]
    assert [each.row for each in skipped] == [0, ROW, 3]
    for each in skipped:
        assert each.where.startswith(f"{first_shard(folder)}, row {each.row} (")
        assert each.where.endswith(".jpg)"), "the photo it was made from"
        assert "damaged since it was written" in each.reason


@pytest.mark.parametrize("column", ["label", "sample_id", "copy", "checksum"])
@pytest.mark.parametrize("bits", [1, 0x80])
def test_a_damaged_number_is_left_out(folder, engine, column, bits):
    count = len(CacheSource(folder, "train").labels)
    position, width = place(first_shard(folder), column, ROW)
    flip(first_shard(folder), position + (0 if bits == 1 else width - 1), bits)
    (rank,), found = read(folder, engine, damaged="skip")
    assert rows_of(found) == [row for row in range(count) if row != ROW]
    assert [each.row for each in rank.skipped] == [ROW]


def test_raise_names_shard_and_row(folder, engine):
    flip_in_image(folder, ROW)
    with pytest.raises(CorruptSampleError) as caught:
        read(folder, engine)
    assert f"{first_shard(folder)}, row {ROW}:" in str(caught.value)
    assert "damaged since it was written" in str(caught.value)
    assert "--repair" in str(caught.value)


def test_the_cure_fits_a_cache(own_cache, engine):
    flip_in_image(own_cache, ROW)
    with pytest.raises(CorruptSampleError) as caught:
        read(own_cache, engine)
    assert str(caught.value).count(first_shard(own_cache).name) == 1
    assert "build a cache" not in str(caught.value)


def flip_end_of_name(path, row):
    """The offset in which the text of a row's source ends becomes far larger than the file."""
    whole = pa.memory_map(str(path)).read_buffer()
    offsets = pa.ipc.open_file(whole).get_batch(0).column("source").buffers()[1]
    flip(path, offsets.address - whole.address + 4 * (row + 1) + 3, 0x40)


def damage_its_name_too(folder):
    """Row ROW does not match its checksum, and nobody knows its source."""
    path = first_shard(folder)
    flip(path, place(path, "checksum", ROW)[0])
    flip_end_of_name(path, ROW)
    with pytest.raises(CorruptSampleError):
        CacheSource(folder, "train").record(ROW)


def test_a_row_that_cannot_say_where_it_comes_from_is_left_out(folder, engine):
    damage_its_name_too(folder)
    found = None
    with suppress(CorruptSampleError):  # pytest would print its traceback, and so an Arrow array with wild offsets
        (rank,), found = read(folder, engine, damaged="skip")
    assert found is not None, "CorruptSampleError"
    assert ROW not in rows_of(found)
    (skipped,) = rank.skipped
    assert f"{first_shard(folder)}, row {ROW}" in skipped.where


def test_a_row_that_cannot_say_where_it_comes_from_is_named(folder, engine):
    damage_its_name_too(folder)
    with pytest.raises(CorruptSampleError, match=rf"{first_shard(folder).name}, row {ROW}\b"):
        read(folder, engine)


def test_a_damaged_name_alone_spoils_no_training(folder, engine):
    flip_end_of_name(first_shard(folder), ROW)
    count = len(CacheSource(folder, "train").labels)
    assert rows_of(read(folder, engine)[1]) == list(range(count))


def test_a_damaged_label_does_not_take_over_a_balanced_epoch(own_raw_cache, engine):
    path = first_shard(own_raw_cache)
    flip(path, place(path, "label", ROW)[0] + 1)
    count = len(CacheSource(own_raw_cache, "train").labels)
    _, found = read(own_raw_cache, engine, train=True, order="balanced", damaged="skip", batch_size=4)
    assert len(rows_of(found)) > 0.9 * count


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_unchecked_damage_hangs_nothing(own_cache, engine, part):
    """Who reads without checking gets an error, a report or wrong pixels, but soon; and the engine still works."""
    expected = pixels_by_row(read(own_cache, engine)[1])
    good, bad = CacheSource(own_cache, "train").image(ROW).tobytes(), first_shard(own_cache)
    whole = bad.read_bytes()
    for offset in range(0, 40, 5):
        flip(bad, whole.index(good) + int(part * (len(good) - 40)) + offset, 0xFF)
    try:
        found = pixels_by_row(read(own_cache, engine, check=False, damaged="skip")[1])
        assert all(torch.equal(found[row], expected[row]) for row in found if row != ROW)
    except (RuntimeError, CorruptSampleError):
        pass
    bad.write_bytes(whole)
    again = pixels_by_row(read(own_cache, engine)[1])
    assert all(torch.equal(again[row], expected[row]) for row in expected)
