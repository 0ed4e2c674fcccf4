"""Whatever an annotations file holds, each of its annotations becomes a crop or a row with a reason."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment_cache.annotations.screen import REASONS
from augment_cache.crop import crop
from tests.augment_cache.coco_builder import check_books, config, coordinates, damage, rejected_of, save_photo, usable


def linked_outside(builder):
    save_photo(builder.folder.parent / "outside.jpg", coordinates(100, 80))
    (builder.folder / "link.jpg").symlink_to(builder.folder.parent / "outside.jpg")
    builder.image(1, "link.jpg").box(1, 1)


NAN, INF = float("nan"), float("inf")
# What is added to a good data set → the reasons that this gives, in the order of rejected.csv.
BROKEN = {
    "unmapped": (lambda b: b.box(1, 1000, 3), ["unmapped"]),
    "unmapped wins": (lambda b: b.box(1, 5, 3, (0, 0, 0, 0), iscrowd=1), ["unmapped"]),
    "too small": (lambda b: b.box(1, 1000, bbox=(0, 0, 7.99, 50)).box(2, 1000, bbox=(0, 0, 50, 8)), ["too_small"]),
    "too small once clipped": (lambda b: b.box(1, 1000, bbox=(93, 0, 30, 30)), ["too_small"]),
    "no area": (lambda b: b.box(1, 1000, bbox=(5, 5, 0, 9)), ["empty_box"]),
    "negative": (lambda b: b.box(1, 1000, bbox=(50, 50, -30, 30)), ["empty_box"]),
    "not a number": (lambda b: b.box(1, 1000, bbox=(NAN, 5, 30, 30)), ["empty_box"]),
    "infinite": (lambda b: b.box(1, 1000, bbox=(5, 5, INF, 30)), ["empty_box"]),
    "outside": (lambda b: b.box(1, 1000, bbox=(100, 5, 30, 30)), ["empty_box"]),
    "crowd": (lambda b: b.box(1, 1000, iscrowd=1), ["iscrowd"]),
    "no photo": (lambda b: b.image(1, "gone.jpg").box(1, 1), ["missing_photo"]),
    "a folder": (lambda b: b.image(1, "batch_1").box(1, 1), ["missing_photo"]),
    "long name": (lambda b: b.image(1, "x" * 400 + ".jpg").box(1, 1), ["missing_photo"]),
    "damaged": (damage, ["unreadable_photo"]),
    "text": (lambda b: b.image(1, "annotations.json").box(1, 1), ["unreadable_photo"]),
    "other size": (lambda b: b.photo(1, size=(60, 50)).box(1, 1) and b.images[-1].update(width=61), ["size_mismatch"]),
    "turned": (
        lambda b: b.photo(1, size=(60, 50)).box(1, 1) and b.images[-1].update(width=50, height=60),
        ["size_mismatch"],
    ),
    "climbs out": (lambda b: b.image(1, "../data/batch_1/001000.jpg").box(1, 1), ["path_outside_root"]),
    "absolute": (lambda b: b.image(1, "/etc/hostname").box(1, 1), ["path_outside_root"]),
    "link": (linked_outside, ["path_outside_root"]),
    "same annotation id": (lambda b: b.box(1, 1000).box(1, 1001), ["duplicate_annotation_id"] * 2),
    "same image id": (lambda b: b.photo(1).image(1, "batch_1/000001.jpg").box(1, 1), ["duplicate_image_id"]),
    "no such image": (lambda b: b.box(1, 5), ["unknown_image"]),
    "no such category": (lambda b: b.box(1, 1000, 50), ["unknown_category"]),
    "image without size": (lambda b: b.image(1, "x.jpg", (0, 80)).box(1, 1), ["bad_image"]),
    "image without name": (lambda b: b.image(1, None).box(1, 1), ["bad_image"]),
    "half a letter": (lambda b: b.image(1, "\ud800.jpg").box(1, 1), ["bad_image"]),
    "no object": (lambda b: b.annotations.append("box"), ["bad_annotation"]),
    "no box": (lambda b: b.annotations.append({"id": 1, "image_id": 1000, "category_id": 1}), ["bad_annotation"]),
    "three numbers": (lambda b: b.box(1, 1000, bbox=(1, 2, 3)), ["bad_annotation"]),
    "words": (lambda b: b.box(1, 1000, bbox=("1", 2, 30, 40)), ["bad_annotation"]),
    "text ids": (lambda b: b.box("1", 1000).box(True, 1000).box(2, None), ["bad_annotation"] * 3),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_way_to_be_rejected(tmp_path, name):
    builder = usable(tmp_path)
    breaks, reasons = BROKEN[name]
    breaks(builder)
    report = crop(config(builder.write()))
    _, rows = check_books(builder, report)
    assert [row["reason"] for row in rows] == reasons
    assert report["crops"] == len(builder.annotations) - len(reasons)
    assert set(reasons) <= set(REASONS)


def test_every_reason_is_tried():
    assert {reason for _, reasons in BROKEN.values() for reason in reasons} == set(REASONS)


def test_a_damaged_photo_says_what_is_wrong_with_it_for_each_of_its_boxes(tmp_path):
    builder = usable(tmp_path)
    damage(builder)
    crop(config(builder.box(2, 1, 2).write()))
    assert [(row["annotation_id"], "damaged JPEG" in row["detail"]) for row in rejected_of(tmp_path / "crops")] == [
        ("1", True),
        ("2", True),
    ]


ids = st.one_of(st.integers(-2, 12), st.sampled_from([1000, 1001, None, "7", 1.5, True, 10**30]))
entries = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"id": ids, "image_id": ids, "category_id": st.integers(0, 4)},
        optional={
            "bbox": st.lists(st.one_of(st.floats(-20, 120), st.sampled_from([NAN, INF, None])), min_size=3, max_size=4),
            "iscrowd": st.sampled_from([0, 1]),
        },
    ),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(entries, max_size=12), st.lists(st.integers(0, 12), max_size=4))
def test_the_books_balance_whatever_the_file_holds(tmp_path_factory, annotations, image_ids):
    folder = tmp_path_factory.mktemp("any")
    builder = usable(folder, photos=3)
    builder.annotations += annotations
    for number in image_ids:
        builder.image(number, "batch_1/001000.jpg")
    check_books(builder, crop(config(builder.write())))
    shutil.rmtree(folder)
