"""The rendered sample: same seed, same bytes; annotations that fit the pixels; every class present."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from augment_cache import sample as job
from augment_cache.drawing import photo as photo_module
from augment_cache.drawing.canvas import Canvas
from augment_cache.drawing.catalogue import DECK_PHOTOS, KINDS, OBJECTS_PER_PHOTO, deal
from augment_cache.drawing.ground import GROUNDS
from augment_cache.drawing.noise import generator
from augment_cache.drawing.photo import SEEN, draw_object, outline, render_photo
from augment_cache.sample import SampleConfig, coco, file_name, sample, table
from pipelines.errors import UsageError

# TACO's own table, for the categories that are drawn: id → (name, litter class of the six).
TACO = {
    4: ("Other plastic bottle", "Plastic"),
    5: ("Clear plastic bottle", "Plastic"),
    8: ("Metal bottle cap", "Metal"),
    10: ("Food Can", "Metal"),
    12: ("Drink can", "Metal"),
    16: ("Drink carton", "Paperpack"),
    20: ("Paper cup", "Paperpack"),
    22: ("Foam cup", "Styrofoam"),
    27: ("Plastic lid", "Plastic"),
    33: ("Normal paper", "Paper"),
    34: ("Paper bag", "Paper"),
    36: ("Plastic film", "Plasticbag"),
    40: ("Single-use carrier bag", "Plasticbag"),
    42: ("Crisp packet", "Plasticbag"),
    46: ("Foam food container", "Styrofoam"),
    55: ("Plastic straw", "Plastic"),
    57: ("Styrofoam piece", "Styrofoam"),
    58: ("Unlabeled litter", None),
    59: ("Cigarette", None),
}


def everything_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    out = tmp_path_factory.mktemp("sample") / "ten"
    report = sample(SampleConfig(out=out, photos=10, seed=3))
    return out, report, json.loads((out / "annotations.json").read_text(encoding="utf-8"))


def test_categories_carry_tacos_ids_and_names():
    assert {kind.id: (kind.name, kind.litter) for kind in KINDS} == TACO


def test_300_photos_hold_every_class_in_about_tacos_shares():
    counts = Counter(kind.litter for index in range(300) for kind in deal(0, index))
    mapped = sum(count for litter, count in counts.items() if litter)
    shares = {litter: count / mapped for litter, count in counts.items() if litter}
    taco = {"Plastic": 0.34, "Plasticbag": 0.27, "Metal": 0.14, "Paper": 0.13, "Styrofoam": 0.06, "Paperpack": 0.06}
    assert shares == pytest.approx(taco, abs=0.01)
    assert min(counts[litter] for litter in taco) >= 40
    assert 0 < counts[None] < 30


@given(seed=st.integers(0, 2**64 - 1), block=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_deck_is_dealt_out_whole(seed, block):
    hands = [deal(seed, block * DECK_PHOTOS + place) for place in range(DECK_PHOTOS)]
    assert Counter(kind.id for hand in hands for kind in hand) == {kind.id: kind.cards for kind in KINDS}
    assert sorted(map(len, hands)) == sorted(OBJECTS_PER_PHOTO)


def test_other_seeds_and_other_photos_differ():
    jpegs = {render_photo(seed, index, width=160, height=160).jpeg for seed in (0, 1) for index in (0, 1)}
    assert len(jpegs) == 4


def test_same_seed_same_bytes_whatever_the_threads(tmp_path, monkeypatch):
    runs = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(job, "usable_cores", lambda threads=threads: threads)
        sample(SampleConfig(out=tmp_path / str(threads), photos=9, seed=11, width=240, height=200))
        runs.append(everything_in(tmp_path / str(threads)))
    assert len(runs[0]) == 10
    assert runs[0] == runs[1] == runs[2]


def test_fewer_photos_are_the_first_of_more(tmp_path):
    for count in (4, 7):
        sample(SampleConfig(out=tmp_path / str(count), photos=count, width=200, height=160))
    few, many = everything_in(tmp_path / "4"), everything_in(tmp_path / "7")
    small, large = json.loads(few.pop("annotations.json")), json.loads(many["annotations.json"])
    assert few == {name: many[name] for name in few}
    assert small["annotations"] == large["annotations"][: len(small["annotations"])]


def test_report_agrees_with_the_folder(rendered):
    out, report, data = rendered
    assert list(report) == ["out", "photos", "annotations", "classes", "unmapped", "bytes", "seconds"]
    files = everything_in(out)
    assert report["bytes"] == sum(map(len, files.values()))
    assert report["annotations"] == len(data["annotations"]) == sum(report["classes"].values()) + report["unmapped"]
    assert report["photos"] == len(data["images"]) == len(files) - 1
    assert list(report["classes"]) == ["Metal", "Paper", "Paperpack", "Plastic", "Plasticbag", "Styrofoam"]
    litter = Counter(TACO[entry["category_id"]][1] for entry in data["annotations"])
    assert {**report["classes"], None: report["unmapped"]} == {
        name: litter[name] for name in (*report["classes"], None)
    }
    assert "not photographs" in table(report)
    assert "Plasticbag" in table(report)


def test_the_file_says_what_it_is(rendered):
    data = rendered[2]
    assert data["info"]["seed"] == 3
    for word in ("Rendered sample", "not photographs", "Seed 3"):
        assert word in data["info"]["description"]


def test_photos_are_where_and_what_the_file_says(rendered):
    out, _, data = rendered
    assert data["images"][0]["file_name"] == "batch_1/000001.jpg" == file_name(0)
    for image in data["images"]:
        pixels = simplejpeg.decode_jpeg((out / image["file_name"]).read_bytes(), strict=True)
        assert pixels.shape == (image["height"], image["width"], 3) == (480, 640, 3)
        assert pixels.std() > 5
        assert image["license"] is None


def test_annotations_lie_in_their_frames(rendered):
    data = rendered[2]
    assert [entry["id"] for entry in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
    assert {entry["image_id"] for entry in data["annotations"]} == {image["id"] for image in data["images"]}
    assert {entry["category_id"] for entry in data["annotations"]} <= {kind["id"] for kind in data["categories"]}
    for entry in data["annotations"]:
        x, y, width, height = entry["bbox"]
        assert all(isinstance(value, float) for value in entry["bbox"])
        assert min(x, y) >= 0
        assert x + width <= 640
        assert y + height <= 480
        assert 16 <= max(width, height) <= 202
        assert 0 < entry["area"] <= width * height
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in entry["segmentation"]])
        assert points.min(axis=0) == pytest.approx((x, y), abs=1.5)
        assert points.max(axis=0) == pytest.approx((x + width, y + height), abs=1.5)
        assert entry["iscrowd"] == 0


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_outline_is_the_tight_box_of_the_mask(data):
    bits = data.draw(st.lists(st.booleans(), min_size=54, max_size=54).filter(any))
    mask = np.array(bits).reshape(6, 9)
    seen = outline(mask, 5)
    x, y, width, height = (int(value) for value in seen.bbox)
    inside = np.zeros_like(mask)
    inside[y : y + height, x : x + width] = True
    assert not (mask & ~inside).any()
    assert all(edge.any() for edge in (mask[y], mask[y + height - 1], mask[:, x], mask[:, x + width - 1]))
    assert seen.area == mask.sum()
    assert seen.polygons
    assert all(len(polygon) >= 6 for polygon in seen.polygons)


def test_polygons_cover_what_the_mask_covers():
    mask = cv2.ellipse(np.zeros((90, 120), np.uint8), (60, 45), (40, 22), 30, 0, 360, 1, -1) > 0
    seen = outline(mask, 5)
    again = np.zeros(mask.shape, np.uint8)
    for polygon in seen.polygons:
        cv2.fillPoly(again, [np.floor(np.reshape(polygon, (-1, 2))).astype(np.int32)], 1)
    assert np.logical_xor(again > 0, mask).sum() < 0.03 * mask.sum()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_fills_its_box(kind):
    for seed in range(3):
        sprite = draw_object(generator(seed, kind.id), kind, 480)
        rows, columns = np.nonzero(sprite.cover > 0.5)
        longest = max(np.ptp(rows), np.ptp(columns)) + 1
        assert kind.smallest - 3 <= longest <= kind.largest + 3
        assert sprite.rgb.shape == (*sprite.alpha.shape, 3) == (*sprite.cover.shape, 3)
        assert sprite.alpha.min() >= 0
        assert sprite.cover.max() <= 1.001
        assert np.all(sprite.alpha <= sprite.cover + 0.01)  # also says that there is no NaN
        assert np.all(sprite.rgb <= 275 * sprite.alpha[..., None] + 1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_objects_of_a_kind_vary(kind):
    drawn = []
    for seed in (1, 2):
        canvas = Canvas(96)
        kind.draw(generator(seed, 0), canvas)
        drawn.append(canvas.rgb)
    assert np.abs(drawn[0] - drawn[1]).mean() > 1


@pytest.mark.parametrize("ground", GROUNDS, ids=lambda ground: ground.__name__)
def test_grounds_are_textured(ground):
    picture = ground(generator(4, 4), 120, 160)
    assert picture.shape == (120, 160, 3)
    assert picture.dtype == np.float32
    assert picture.std() > 4
    assert 20 < picture.mean() < 230


def test_crowded_photos_keep_every_object_in_sight(monkeypatch):
    totals = []
    whole = photo_module.draw_object

    def counted(*args):
        sprite = whole(*args)
        totals.append(int((sprite.cover > 0.5).sum()))
        return sprite

    monkeypatch.setattr(photo_module, "draw_object", counted)
    for index in (place for place in range(DECK_PHOTOS) if len(deal(0, place)) >= 4):
        totals.clear()
        photo = render_photo(0, index, width=320, height=240)
        assert len(photo.objects) == len(totals)
        assert all(seen.area >= SEEN * total for seen, total in zip(photo.objects, totals, strict=True))


@given(height=st.integers(1, 40), width=st.integers(1, 40), top=st.integers(-60, 60), left=st.integers(-60, 60))
def test_windows_of_frame_and_sprite_match(height, width, top, left):
    frame = np.arange(30 * 20).reshape(30, 20)
    under, mine = photo_module._windows(frame.shape, (height, width), top, left)
    sprite = np.array([[(y + top) * 20 + x + left for x in range(width)] for y in range(height)])
    assert np.array_equal(frame[under], sprite[mine])
    rows, columns = len(range(max(top, 0), min(top + height, 30))), len(range(max(left, 0), min(left + width, 20)))
    assert frame[under].size == rows * columns


def test_image_ids_follow_file_names():
    data = coco(SampleConfig(photos=3), [(), (), ()])
    assert [image["id"] for image in data["images"]] == [1, 2, 3]
    assert all(first["file_name"] < second["file_name"] for first, second in pairwise(data["images"]))
    assert data["annotations"] == []


def test_a_folder_in_the_way_is_left_alone(tmp_path):
    precious = tmp_path / "notes.txt"
    precious.write_text("mine")
    with pytest.raises(UsageError, match="overwrite"):
        sample(SampleConfig(out=tmp_path, photos=1, width=160, height=160))
    with pytest.raises(UsageError, match="no rendered sample"):
        sample(SampleConfig(out=tmp_path, photos=1, width=160, height=160, overwrite=True))
    assert precious.read_text() == "mine"


def test_overwrite_replaces_a_rendered_sample(tmp_path):
    sample(SampleConfig(out=tmp_path / "out", photos=2, width=160, height=160))
    sample(SampleConfig(out=tmp_path / "out", photos=1, width=160, height=160, overwrite=True))
    assert set(everything_in(tmp_path / "out")) == {"annotations.json", "batch_1/000001.jpg"}


# Once a bug: crops that had been cut into the sample's folder went with the sample.
def test_overwrite_never_deletes_what_was_put_beside_the_sample(tmp_path):
    sample(SampleConfig(out=tmp_path / "out", photos=1, width=160, height=160))
    (tmp_path / "out" / "crops").mkdir()
    with pytest.raises(UsageError, match="holds 'crops'"):
        sample(SampleConfig(out=tmp_path / "out", photos=2, width=160, height=160, overwrite=True))
    assert set(everything_in(tmp_path / "out")) == {"annotations.json", "batch_1/000001.jpg"}
    assert (tmp_path / "out" / "crops").is_dir()


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(seed, index, **size):
        if index == 3:
            raise OSError(28, "No space left on device")
        return render_photo(seed, index, **size)

    monkeypatch.setattr(job, "render_photo", broken)
    with pytest.raises(OSError, match="No space"):
        sample(SampleConfig(out=tmp_path / "out", photos=8, width=160, height=160))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"photos": 0}, "--photos 0"),
        ({"photos": 1_000_000}, "--photos 1000000"),
        ({"seed": -1}, "--seed -1"),
        ({"width": 100}, "--width 100"),
        ({"height": 5000}, "--height 5000"),
    ],
)
def test_wrong_options_are_named(options, word):
    with pytest.raises(UsageError, match=word):
        SampleConfig(**options)


@pytest.mark.parametrize(("photos", "status"), [("2", 0), ("0", 2)])
def test_command_line(tmp_path, monkeypatch, capsys, photos, status):
    out = str(tmp_path / "out")
    monkeypatch.setattr(
        "sys.argv", ["sample", "--out", out, "--photos", photos, "--width", "160", "--height", "160", "--json"]
    )
    with pytest.raises(SystemExit) as stop:
        job.main()
    assert stop.value.code == status
    printed = capsys.readouterr()
    if status:
        assert "--photos 0" in printed.err
        assert not Path(out).exists()
    else:
        assert json.loads(printed.out)["photos"] == 2
