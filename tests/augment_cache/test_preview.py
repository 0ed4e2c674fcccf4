"""Contact sheets: the right pictures in the right places."""

import io

import numpy as np
import pytest
from PIL import Image

from augment_cache.format.source import CacheSource
from augment_cache.preview import PreviewConfig, cache_rows, op_rows, preview, table
from augment_cache.sheets.contact_sheet import LINE_HEIGHT, MARGIN, Tile, draw_sheet
from pipelines.augmentations import OPS
from pipelines.decode import decode
from pipelines.errors import UsageError

CLASSES = ["Glass bottle", "Métal", "Paper"]


@pytest.fixture(scope="module")
def image(tmp_path_factory, jpeg):
    """One photo."""
    path = tmp_path_factory.mktemp("image") / "photo.jpg"
    path.write_bytes(jpeg(1))
    return path


def opened(path):
    with Image.open(path) as sheet:
        sheet.load()
        assert (sheet.format, sheet.mode) == ("PNG", "RGB")
        return sheet


@pytest.mark.parametrize("rows", [1, 3, 7, 12])
def test_a_sheet_of_a_cache(cache, tmp_path, rows):
    out = tmp_path / "new" / "sheet.png"
    report = preview(PreviewConfig(cache=cache, out=out, rows=rows, tile=32))
    assert report["tiles"] == rows * 3
    assert report["rows"] == -(-rows // 3), "three samples of three versions side by side"
    assert report["bytes"] == out.stat().st_size
    width, height = opened(out).size
    assert width == min(rows, 3) * 3 * (32 + MARGIN) + MARGIN
    assert height > report["rows"] * 32
    assert str(out) in table(report)


def test_the_same_seed_draws_the_same_sheet(cache, tmp_path):
    sheets = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        preview(PreviewConfig(cache=cache, out=tmp_path / name, rows=6, tile=32, seed=seed))
        sheets.append((tmp_path / name).read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


@pytest.mark.parametrize("seed", range(5))
def test_each_class_gets_its_turn(cache, seed):
    first = [row[0].caption[0] for row in cache_rows(cache, "train", 9, seed)]
    assert [sorted(first[start : start + 3]) for start in (0, 3, 6)] == [CLASSES] * 3


def test_no_more_samples_than_there_are(cache):
    for split in ("train", "val"):
        rows = cache_rows(cache, split, 1000, 0)
        originals = CacheSource(cache, split, copies=0)
        assert len(rows) == len(originals.labels)
        assert {len(row) for row in rows} == ({3} if split == "train" else {1})


def test_a_row_is_an_original_and_its_copies(cache, raw_cache):
    for folder in (cache, raw_cache):
        source = CacheSource(folder, "train")
        images = source.fetch(np.arange(len(source.labels)))
        pixels = [image if image.ndim == 3 else decode(image) for image in images]
        records = [source.record(row) for row in range(len(images))]
        for tiles in cache_rows(folder, "train", 4, 0):
            found = [next(n for n, p in enumerate(pixels) if np.array_equal(p, tile.pixels)) for tile in tiles]
            assert len({records[number].sample_id for number in found}) == 1
            first = records[found[0]]
            assert tiles[0].caption == (source.classes[first.label], first.source.split("/")[-1])
            for copy, tile in enumerate(tiles[1:], 1):
                record = next(r for r in records if (r.sample_id, r.copy) == (first.sample_id, copy))
                assert tile.caption[0] == record.op[0]


def test_tiles_lie_where_they_belong(cache):
    rows = cache_rows(cache, "train", 2, 0)
    sheet = np.asarray(Image.open(io.BytesIO(draw_sheet(rows, tile=32, title="words"))))
    top = LINE_HEIGHT + 2 * MARGIN
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            left, upper = MARGIN + x * (32 + MARGIN), top + y * (32 + 2 * LINE_HEIGHT + MARGIN)
            assert np.array_equal(sheet[upper : upper + 32, left : left + 32], tile.pixels)


def test_small_pictures_are_enlarged_pixel_by_pixel():
    tile = Tile(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], np.uint8))
    sheet = np.asarray(Image.open(io.BytesIO(draw_sheet([[tile]], tile=32))))
    part = sheet[MARGIN : MARGIN + 32, MARGIN : MARGIN + 32]
    assert np.array_equal(part, tile.pixels.repeat(16, 0).repeat(16, 1))


def test_every_op_from_weak_to_strong(image, tmp_path):
    report = preview(PreviewConfig(image=image, out=tmp_path / "ops.png", size=32, tile=32))
    rows = op_rows(image, 32, "cpu")
    assert report["rows"] == len(rows) == len(OPS) - 1
    assert report["tiles"] == sum(len(row) for row in rows)
    opened(tmp_path / "ops.png")
    for op, row in zip(OPS[1:], rows, strict=True):
        assert row[0].caption == ("original",)
        assert {tile.caption[0] for tile in row[1:]} == {op.name}
        assert len(row) == 1 + (1 if not op.has_value else 8 if op.signed else 3 if op.even else 4)
        strongest = row[min(4, len(row) - 1)]
        assert not np.array_equal(strongest.pixels, row[0].pixels), f"{op.name} shows nothing"
        assert len({tile.caption for tile in row}) == len(row)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache": "x", "image": "y"},
        {"cache": "x", "rows": 0},
        {"cache": "x", "tile": 15},
        {"cache": "x", "seed": -1},
    ],
    ids=str,
)
def test_options_that_make_no_sense(options):
    with pytest.raises(UsageError, match="--"):
        PreviewConfig(**options)


@pytest.mark.parametrize("size", [0, 3, 5000])
def test_a_size_that_makes_no_sense(command, image, tmp_path, size):
    status, _, err = command("preview", "--image", image, "--size", size, "--out", tmp_path / "sheet.png")
    assert status == 2
    assert "--size" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "truncated"])
def test_an_image_that_is_none(command, image, tmp_path, kind):
    path = tmp_path / "bad.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        data = image.read_bytes()
        path.write_bytes({"empty": b"", "text": b"text" * 50, "truncated": data[: len(data) // 2]}[kind])
    status, out, err = command("preview", "--image", path, "--size", 32, "--out", tmp_path / "sheet.png")
    assert (status, out) == (2, "")
    assert str(path) in err
    assert err.count("\n") == 1
    assert not (tmp_path / "sheet.png").exists()
