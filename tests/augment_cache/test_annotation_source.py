"""Annotations as a source: the samples, splits and pixels of the crop job, without its files."""

import csv
import dataclasses
import inspect
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment_cache.annotations import source as module
from augment_cache.annotations.cutter import open_photo
from augment_cache.annotations.screen import Rejection, Rules
from augment_cache.annotations.source import RULES, open_annotations
from augment_cache.crop import CropConfig, crop
from pipelines.datasets import SplitOptions, open_splits
from pipelines.decode import decode
from pipelines.engines.base import RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.loader import Loader, LoaderOptions
from pipelines.sources import sample_id
from tests.augment_cache.coco_builder import config, coordinates, damage, save_photo, table_of, usable
from tests.augment_cache.test_crop_rejects import BROKEN

SMALL = dataclasses.replace(RULES, min_side=8)


def opened(builder, rules=SMALL, **options):
    return open_annotations(builder.folder, map=str(builder.map), rules=rules, **options)


def cut(builder, **options):
    """What the crop job makes of the same: split → folder source, and the rows of `rejected.csv`."""
    crop(config(builder, **options))
    out = builder.folder.parent / "crops"
    with (out / "rejected.csv").open(encoding="utf-8", newline="") as file:
        rejected = [Rejection(**row) for row in csv.DictReader(file)]
    return open_splits(out, SplitOptions(), allow_empty_classes=True), rejected


def assert_same_samples(sources, folders):
    assert list(sources) == list(folders)
    for name, folder in folders.items():
        source = sources[name]
        assert source.classes == folder.classes
        assert (source.labels.dtype, source.ids.dtype) == (np.int64, np.uint64)
        np.testing.assert_array_equal(source.ids, folder.ids)
        np.testing.assert_array_equal(source.labels, folder.labels)
        assert not source.checked


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seed": 3},
        {"val": 0.3, "test": 0.2},
        {"shape": "tight", "margin": 0.4, "min_side": 25.0},
        {"move": ("Cigarette=Paper",)},
        {"move": ("Drink can=Paper", "Cigarette=Metal"), "seed": 1},
    ],
)
def test_splits_rows_and_ids_are_those_of_the_crops(tmp_path, options):
    builder = usable(tmp_path, photos=12).box(1, 1000, 3).box(1_234_567, 1003, 1).box(-5, 1004, 2)
    builder.box(2, 1005, 3, (3, 3, 30, 26)).write()
    folders, rejected = cut(builder, **options)
    rules = {"min_side": 8.0, "shape": "square", "margin": 0.1}
    rules = Rules(**{name: options.pop(name, value) for name, value in rules.items()})
    sources = opened(builder, rules, **options)
    assert_same_samples(sources, folders)
    assert all(list(source.rejections) == rejected for source in sources.values())


@pytest.mark.parametrize("name", BROKEN)
def test_what_the_crop_job_rejects_is_left_out_for_the_same_reason(tmp_path, name):
    builder = usable(tmp_path)
    BROKEN[name][0](builder)
    folders, rejected = cut(builder.write())
    sources = opened(builder)
    assert_same_samples(sources, folders)
    assert list(sources["train"].rejections) == rejected
    assert rejected


def test_a_sample_has_the_id_of_its_crop(tmp_path):
    source = opened(usable(tmp_path).write())["train"]
    ids = [sample_id(f"{one.label}/a{one.annotation.annotation_id:06d}.jpg") for one in source.candidates]
    assert source.ids.tolist() == ids
    assert [source.classes[label] for label in source.labels] == [one.label for one in source.candidates]


def test_defaults_are_those_of_the_crop_job():
    job = {field.name: field.default for field in dataclasses.fields(CropConfig)}
    mine = {name: option.default for name, option in inspect.signature(open_annotations).parameters.items()}
    mine = {name: default for name, default in mine.items() if name not in ("data", "check")}
    mine |= dataclasses.asdict(mine.pop("rules"))
    assert mine == {name: job[name] for name in mine}


@pytest.mark.parametrize("shape", ["square", "tight"])
def test_an_item_is_the_window_of_the_photo_and_near_the_jpeg_of_the_crop_job(tmp_path, shape):
    builder = usable(tmp_path).write()
    sources = opened(builder, dataclasses.replace(SMALL, shape=shape))
    folders, _ = cut(builder, shape=shape)
    windows = {row["file"]: row["window"] for row in table_of(tmp_path / "crops")["crops"]}
    seen = 0
    for split, source in sources.items():
        rows = np.arange(len(source.labels))
        items, files = source.fetch(rows), folders[split].fetch(rows)
        assert len(items) == len(files) == len(rows)
        for row in rows.tolist():
            x, y, width, height = windows[f"{split}/{folders[split].files[row]}"]
            photo = decode(source.candidates[row].path.read_bytes())
            item = items[row]
            assert item.dtype == np.uint8
            assert item.flags.c_contiguous
            np.testing.assert_array_equal(item, photo[y : y + height, x : x + width])
            assert np.abs(item.astype(int) - decode(files[row])).mean() < 1.5
            seen += 1
    assert seen == 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photos_come_upright(tmp_path, orientation):
    builder = usable(tmp_path)
    save_photo(builder.folder / "turned.jpg", coordinates(100, 80), orientation)
    builder.image(1, "turned.jpg").box(1, 1, bbox=(10, 20, 40, 15))
    if orientation >= 5:  # drawn on the stored pixels
        x, y = {5: (20, 10), 6: (20, 50), 7: (45, 50), 8: (45, 10)}[orientation]
        builder.image(2, "./turned.jpg", (80, 100)).box(2, 2, bbox=(x, y, 15, 40))
    sources = opened(builder.write(), Rules(min_side=8, shape="tight", margin=0.0))
    found = 0
    for source in sources.values():
        for row, candidate in enumerate(source.candidates):
            if candidate.annotation.annotation_id <= 2:
                (item,) = source.fetch(np.array([row]))
                assert np.abs(item.astype(int) - coordinates(100, 80)[20:35, 10:50]).max() <= 8
                found += 1
    assert found == (2 if orientation >= 5 else 1)


def row_of(source, annotation_id):
    return [one.annotation.annotation_id for one in source.candidates].index(annotation_id)


def with_damage(tmp_path):
    builder = usable(tmp_path)
    damage(builder)
    sources = opened(builder.write(), check=False)
    (source,) = [one for one in sources.values() if 1 in [c.annotation.annotation_id for c in one.candidates]]
    return builder, source, row_of(source, 1)


def test_nothing_is_decoded_before_it_is_asked_for_and_a_damaged_photo_says_so_then(tmp_path):
    builder, source, bad = with_damage(tmp_path)
    rows = np.arange(len(source.labels))
    items = source.fetch(rows)
    with pytest.raises(CorruptSampleError, match=r"batch_1/000001\.jpg, annotation 1: .*\(damaged JPEG.*remove it"):
        items[bad]
    assert all(items[row].ndim == 3 for row in rows.tolist() if row != bad)
    assert source.describe(bad) == f"{builder.folder / 'batch_1/000001.jpg'}, annotation 1"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: save_photo(path, coordinates(60, 50)), "has 60 x 50 px, the annotations say 100 x 80"),
    ],
)
def test_a_photo_that_is_spoilt_after_opening(tmp_path, spoil, words):
    source = opened(usable(tmp_path).write())["train"]
    path = source.candidates[0].path
    spoil(path)
    with pytest.raises(CorruptSampleError, match=words) as caught:
        source.fetch(np.array([1, 0]))[1]
    assert source.describe(0) in str(caught.value)


@pytest.fixture
def decoded(monkeypatch):
    """The paths of the photos that were decoded, in order."""
    paths = []

    def counted(path):
        paths.append(path)
        return open_photo(path)

    monkeypatch.setattr(module, "open_photo", counted)
    return paths


def test_neighbours_of_one_photo_decode_it_once_and_nothing_is_kept(tmp_path, decoded):
    builder = usable(tmp_path)
    builder.box(1, 1000, 1, (40, 40, 20, 20)).box(3, 1000, 1, (70, 50, 20, 20)).write()
    whole = opened(builder, check=False)
    source = next(one for one in whole.values() if any(c.photo.image_id == 1000 for c in one.candidates))
    mine = [row for row, c in enumerate(source.candidates) if c.photo.image_id == 1000]
    other = next((row for row, c in enumerate(source.candidates) if c.photo.image_id != 1000), None)
    items = source.fetch(np.array(mine))
    forward = list(items)
    assert len(forward) == 4
    assert len(decoded) == 1
    assert not items._kept
    for row, item in zip(mine, forward, strict=True):
        np.testing.assert_array_equal(item, source.fetch(np.array([row]))[0])
    decoded.clear()
    backward = [items[-1 - index] for index in range(4)]  # asked for already: no photo waits for anybody
    assert not items._kept
    assert all((a == b).all() for a, b in zip(forward, reversed(backward), strict=True))
    if other is not None:
        decoded.clear()
        assert len(list(source.fetch(np.array([mine[0], other, mine[1]])))) == len(decoded) == 3


def test_a_damaged_photo_is_tried_once_for_all_its_neighbours(tmp_path, decoded):
    builder = usable(tmp_path)
    damage(builder)
    whole = opened(builder.box(2, 1, 1).write(), check=False)
    source = next(one for one in whole.values() if 1 in [c.annotation.annotation_id for c in one.candidates])
    items = source.fetch(np.array([row_of(source, 1), row_of(source, 2)]))
    for index in range(2):
        with pytest.raises(CorruptSampleError, match=f"annotation {index + 1}:"):
            items[index]
    assert len(decoded) == 1


def test_many_threads_get_the_right_items(tmp_path):
    source = opened(usable(tmp_path).write())["train"]
    rows = np.tile(np.repeat(np.arange(len(source.labels)), 3), 4)
    expected = list(source.fetch(rows))
    items = source.fetch(rows)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(items.__getitem__, range(len(rows))))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not items._kept


def test_positions_beyond_the_end(tmp_path):
    source = opened(usable(tmp_path).write())["val"]
    with pytest.raises(IndexError):
        source.fetch(np.array([0]))[1]
    assert len(source.fetch(np.zeros(0, np.int64))) == 0


def test_subset(tmp_path):
    source = opened(usable(tmp_path).write())["train"]
    rows = np.array([5, 0, 7])
    part = source.subset(rows)
    assert part.classes == source.classes
    np.testing.assert_array_equal(part.labels, source.labels[rows])
    np.testing.assert_array_equal(part.ids, source.ids[rows])
    assert [part.describe(row) for row in range(3)] == [source.describe(row) for row in rows.tolist()]
    for mine, its in zip(part.fetch(np.arange(3)), source.fetch(rows), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert part.fingerprint != source.fingerprint
    assert part.fingerprint != source.subset(rows[::-1]).fingerprint


def test_the_fingerprint_follows_annotations_options_and_photos_but_not_the_place(tmp_path):
    builder = usable(tmp_path).write()

    def mark(**options):
        return opened(builder, **options)["train"].fingerprint

    first = mark()
    assert mark() == mark(rules=dataclasses.replace(SMALL, min_side=8.0), check=False, threads=3) == first
    changed = [
        mark(seed=1),
        mark(val=0.2),
        mark(rules=dataclasses.replace(SMALL, margin=0.2)),
        mark(rules=dataclasses.replace(SMALL, min_side=9)),
        mark(move=("Cigarette=Paper",)),
        opened(builder)["val"].fingerprint,
    ]
    shutil.copytree(builder.folder, tmp_path / "elsewhere")  # keeps times
    assert open_annotations(tmp_path / "elsewhere", map=str(builder.map), rules=SMALL)["train"].fingerprint == first
    path = opened(builder)["train"].candidates[0].path
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1000))
    changed.append(mark())
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    changed.append(mark(check=False))
    builder.annotations[0]["note"] = "same boxes"
    builder.write()
    changed.append(mark())
    assert len({first, *changed}) == len(changed) + 1
    source = opened(builder)["train"]
    source.candidates[0].path.unlink()
    with pytest.raises(CorruptSampleError, match="cannot be read: No such file"):
        assert source.fingerprint


def test_a_loader_renders_it_as_it_renders_the_crops(tmp_path):
    builder = usable(tmp_path).write()
    sources, (folders, _) = opened(builder), cut(builder)
    engine = CpuEngine(RenderSpec(24), threads=2)
    try:
        for train in (True, False):
            options = LoaderOptions(batch_size=4, train=train, seed=5)
            mine_all, theirs_all = (list(Loader(one["train"], engine, options)) for one in (sources, folders))
            assert len(mine_all) == 3
            for mine, theirs in zip(mine_all, theirs_all, strict=True):
                assert mine.rows.tolist() == theirs.rows.tolist()
                assert mine.labels.tolist() == theirs.labels.tolist()
                assert (mine.images.float() - theirs.images.float()).abs().mean() < 1.5
    finally:
        engine.close()


def test_a_loader_names_the_damaged_photo(tmp_path):
    _, source, _ = with_damage(tmp_path)
    engine = CpuEngine(RenderSpec(24), threads=2)
    try:
        with pytest.raises(CorruptSampleError, match=r"000001\.jpg, annotation 1: .*damaged JPEG"):
            list(Loader(source, engine, LoaderOptions(batch_size=2, train=False)))
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rules": dataclasses.replace(RULES, min_side=0)}, "min_side 0 is"),
        ({"rules": dataclasses.replace(RULES, min_side=float("nan"))}, "min_side nan is"),
        ({"rules": dataclasses.replace(RULES, min_side=75)}, "no sample for the train split; lower min_side"),
        ({"rules": dataclasses.replace(RULES, margin=-1)}, "margin -1 is"),
        ({"rules": dataclasses.replace(RULES, shape="round")}, "shape 'round' is none of square, tight"),
        ({"val": 0.0}, "val 0.0 and test 0.15"),
        ({"val": 0.9, "test": 0.1}, "leave something"),
        ({"test": float("nan")}, "test nan"),
        ({"threads": -1}, "threads -1"),
        ({"map": "taco7"}, "taco7"),
        ({"move": ["Cigarete=Paper"]}, "the closest are 'Cigarette'"),
        ({"data": "nowhere"}, "nowhere is not a folder"),
        ({"annotations": "nowhere.json"}, "no annotations file"),
    ],
)
def test_wrong_use_says_what_is_wrong(tmp_path, options, words):
    builder = usable(tmp_path).write()
    paths = {name: tmp_path / options.pop(name) for name in ("data", "annotations") if name in options}
    call = {"data": builder.folder, "map": str(builder.map), "rules": SMALL} | options | paths
    with pytest.raises(UsageError, match=words):
        open_annotations(**call)


def test_photos_somewhere_else(tmp_path):
    builder = usable(tmp_path).write()
    shutil.rmtree(builder.folder / "batch_1")
    with pytest.raises(UsageError, match="none of the 8 photos"):
        opened(builder)


def test_empty_splits_and_classes(tmp_path):
    builder = usable(tmp_path, photos=1).write()
    with pytest.raises(UsageError, match=r"has no sample for the (val|test) split"):
        opened(builder)
    (tmp_path / "more").mkdir()
    builder = usable(tmp_path / "more")
    builder.map.write_text("classes:\n  Butts: [Cigarette]\n  Metal: [Drink can]\n")
    with pytest.raises(UsageError, match="no sample of 'Butts' to train on"):
        opened(builder.write())
    source = opened(builder, allow_empty_classes=True)["train"]
    assert source.classes == ("Butts", "Metal")
    assert set(source.labels.tolist()) == {1}


boxes = st.tuples(st.floats(-40, 140), st.floats(-40, 120), st.floats(0, 200), st.floats(0, 200))
rule_sets = st.builds(
    Rules, min_side=st.floats(1, 20), shape=st.sampled_from(["square", "tight"]), margin=st.floats(0, 3)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(boxes, max_size=6), rule_sets)
def test_windows_never_leave_the_photo(tmp_path_factory, drawn, rules):
    folder = tmp_path_factory.mktemp("any")
    builder = usable(folder, photos=4)
    for number, box in enumerate(drawn):
        builder.box(number, 1000 + number % 4, 1 + number % 2, box)
    sources = opened(builder.write(), rules)
    photo = decode((builder.folder / "batch_1/001000.jpg").read_bytes())
    assert sum(len(one.labels) for one in sources.values()) + len(sources["val"].rejections) == len(builder.annotations)
    for source in sources.values():
        for candidate, item in zip(source.candidates, source.fetch(np.arange(len(source.labels))), strict=True):
            x, y, width, height = candidate.window
            assert x >= 0
            assert y >= 0
            assert x + width <= 100
            assert y + height <= 80
            assert item.shape == (height, width, 3)
            np.testing.assert_array_equal(item, photo[y : y + height, x : x + width])
    shutil.rmtree(folder)


@pytest.mark.real
def test_real_taco(taco_folder, tmp_path):
    report = crop(CropConfig(data=taco_folder, out=tmp_path / "crops"))
    sources = open_annotations(taco_folder)
    folders = open_splits(tmp_path / "crops", SplitOptions())
    assert_same_samples(sources, folders)
    assert sum(len(source.ids) for source in sources.values()) == report["crops"]
    rows = np.arange(0, len(folders["test"].ids), 20)
    for mine, file in zip(sources["test"].fetch(rows), folders["test"].fetch(rows), strict=True):
        assert np.abs(mine.astype(int) - decode(file)).mean() < 3
