"""What a crops folder says about itself: the table `crops.json` and the list `rejected.csv`.

Both are functions of the annotations, the photos and the options alone: no path of this machine, no time, no order of
threads. Running the job twice gives the same bytes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from augment_cache.annotations.class_map import ClassMap
from augment_cache.annotations.cutter import crop_name
from augment_cache.annotations.screen import Candidate, Rejection

FORMAT = "tacopress-crops"
VERSION = 1
Counts = dict[str, dict[str, int]]
"""Split -> class -> number of crops; every split and every class is there, with 0 where there are none."""


class Crop(NamedTuple):
    """A crop that was written and the split it went to."""

    candidate: Candidate
    split: str

    @property
    def file(self) -> str:
        """Path below the crops folder, with forward slashes."""
        return f"{self.split}/{self.candidate.label}/{crop_name(self.candidate.annotation.annotation_id)}"


def count_crops(crops: Iterable[Crop], splits: Iterable[str], classes: Sequence[str]) -> Counts:
    """Crops per split and class."""
    counts = {split: dict.fromkeys(classes, 0) for split in splits}
    for crop in crops:
        counts[crop.split][crop.candidate.label] += 1
    return counts


def count_reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Rejections per reason, most frequent first, then by name."""
    return _by_frequency(Counter(rejection.reason for rejection in rejections))


def count_unmapped(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Annotations per category that no class takes, most frequent first, then by name."""
    return _by_frequency(Counter(row.category for row in rejections if row.reason == "unmapped"))


def _by_frequency(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def in_order(rejections: Iterable[Rejection]) -> list[Rejection]:
    """Rejections by annotation id; those without a proper one come last. The order of the file does not matter."""

    def key(row: Rejection) -> tuple[bool, int, Rejection]:
        number = int(row.annotation_id) if row.annotation_id.removeprefix("-").isdecimal() else None
        return number is None, number or 0, row

    return sorted(rejections, key=key)


def crops_table(
    crops: Sequence[Crop],
    rejections: Sequence[Rejection],
    *,
    annotations: Mapping[str, str],
    class_map: ClassMap,
    options: Mapping[str, Any],
    split: Mapping[str, Any],
) -> dict[str, Any]:
    """The contents of `crops.json`.

    Args:
        crops: All crops, sorted by annotation id.
        rejections: All rejections.
        annotations: `file` and `sha256` of the annotations file.
        class_map: The map as it was used, moves carried out.
        options: The options that decide which crops there are and what their bytes are.
        split: `seed`, `fractions` and `unit`.
    """
    classes = sorted(class_map.classes)
    return {
        "format": FORMAT,
        "version": VERSION,
        "annotations": dict(annotations),
        "map": {
            "name": PurePath(class_map.name).name,  # not where an own map lies on this machine
            "description": class_map.description,
            "classes": {name: list(class_map.classes[name]) for name in classes},
        },
        "options": dict(options),
        "split": dict(split),
        "classes": classes,
        "counts": count_crops(crops, split["fractions"], classes),
        "unmapped": count_unmapped(rejections),
        "rejected": count_reasons(rejections),
        "crops": [_row(crop) for crop in crops],
    }


def _row(crop: Crop) -> dict[str, Any]:
    candidate = crop.candidate
    row = {
        "file": crop.file,
        "split": crop.split,
        "class": candidate.label,
        "annotation_id": candidate.annotation.annotation_id,
        "image_id": candidate.photo.image_id,
        "photo": candidate.photo.name,
        "kind": candidate.photo.kind,
        "window": list(candidate.window),
        "bbox": list(candidate.annotation.box),
        "category": candidate.category,
    }
    return {key: value for key, value in row.items() if value is not None}
