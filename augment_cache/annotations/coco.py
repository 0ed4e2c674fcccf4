"""Read a COCO annotations file and check every entry of it; a bad entry is described, never guessed at.

A file that is no COCO file at all is a `UsageError`. A single entry that makes no sense becomes a `Fault`, so that the
job can go on with the others and list it.

Format: https://cocodataset.org/#format-data (object detection). Only ids, sizes, file names, category names, boxes and
`iscrowd` are read; unknown keys are ignored.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard

from augment_cache.annotations.window import Box
from pipelines.errors import UsageError

LISTS = ("images", "annotations", "categories")


class Fault(NamedTuple):
    """Why an entry cannot be used: a reason to count by, and a detail to read."""

    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Photo:
    """An entry of `images`: a picture and the frame that its boxes are measured in."""

    image_id: int
    name: str
    """Path below the data folder with forward slashes, without `.` and empty parts."""
    width: int
    """Columns of the annotated frame in px."""
    height: int
    """Rows of the annotated frame in px."""
    kind: str | None
    """The entry's own `kind`, where it has one: how the picture came about."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An entry of `annotations`, checked by itself: its image and category may still be unknown."""

    annotation_id: int
    image_id: int
    category_id: int
    box: Box
    crowd: bool


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """An annotations file as it stands, its lists not yet checked entry by entry."""

    path: Path
    sha256: str
    categories: Mapping[int, str]
    images: list[Any]
    annotations: list[Any]


def read_coco(path: Path) -> CocoFile:
    """Read the file and check that it is COCO.

    Raises:
        UsageError: The file is missing, is no JSON, lacks one of the three lists, has no annotation, or two of its
            categories share an id.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no annotations file {path}; give the folder that holds it as --data, or --annotations"
        )
    data = path.read_bytes()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}); give a COCO annotations file as --annotations") from error
    for name in LISTS:
        if not isinstance(value, dict) or not isinstance(value.get(name), list):
            raise UsageError(f"{path} is not a COCO file: it has no list '{name}'; give another file as --annotations")
    if not value["annotations"]:
        raise UsageError(f"{path} has no annotation, so there is nothing to crop; give another file as --annotations")
    return CocoFile(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        categories=_categories(path, value["categories"]),
        images=value["images"],
        annotations=value["annotations"],
    )


def _categories(path: Path, entries: Iterable[Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for entry in entries:
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not _is_id(number) or not is_text(name):
            raise UsageError(
                f"{path}: category {short(entry)} needs a whole number 'id' and a text 'name'; mend the file"
            )
        if names.setdefault(number, name) != name:
            raise UsageError(f"{path}: categories '{names[number]}' and '{name}' share the id {number}; mend the file")
    return names


def index_photos(images: Iterable[Any]) -> tuple[dict[int, Photo], dict[int, Fault]]:
    """Sort `images` by id into those that can be used and those that cannot.

    An id that occurs twice is a fault, even if the entries agree: which of the two a box was drawn on is unknown.

    Returns:
        Photos by image id, and faults by image id. Entries without an id are in neither; nothing can refer to them.
    """
    entries = [entry for entry in images if isinstance(entry, dict) and _is_id(entry.get("id"))]
    times = Counter(entry["id"] for entry in entries)
    photos: dict[int, Photo] = {}
    faults: dict[int, Fault] = {}
    for entry in entries:
        image_id = entry["id"]
        if times[image_id] > 1:
            faults[image_id] = Fault("duplicate_image_id", f"{times[image_id]} images have the id {image_id}")
        elif problem := _photo_problem(entry):
            faults[image_id] = Fault("bad_image", problem)
        else:
            photos[image_id] = _photo(entry)
    return photos, faults


def _photo_problem(entry: dict[str, Any]) -> str:
    if not is_text(entry.get("file_name")):
        return f"'file_name' is {short(entry.get('file_name'))}, not a text"
    for key in ("width", "height"):
        if not _is_id(entry.get(key)) or entry[key] < 1:
            return f"'{key}' is {short(entry.get(key))}, not a whole number of px above 0"
    return ""


def _photo(entry: dict[str, Any]) -> Photo:
    kind = entry.get("kind")
    name = entry["file_name"]
    # Two spellings of one path must not become two photos, or one picture could reach two splits.
    plain = name if ".." in name or "\\" in name or "\0" in name else str(PurePosixPath(name))
    return Photo(
        image_id=entry["id"],
        name=plain,
        width=entry["width"],
        height=entry["height"],
        kind=kind if is_text(kind) else None,
    )


def parse_annotation(entry: object) -> Annotation | Fault:
    """Check an entry of `annotations` by itself.

    Returns:
        The annotation, or a fault with the reason `bad_annotation`.
    """
    if not isinstance(entry, dict):
        return Fault("bad_annotation", f"{short(entry)} is not an object")
    for key in ("id", "image_id", "category_id"):
        if not _is_id(entry.get(key)):
            return Fault("bad_annotation", f"'{key}' is {short(entry.get(key))}, not a whole number")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return Fault("bad_annotation", f"'bbox' is {short(box)}, not [x, y, width, height]")
    return Annotation(
        annotation_id=entry["id"],
        image_id=entry["image_id"],
        category_id=entry["category_id"],
        box=Box(*(float(value) for value in box)),
        crowd=bool(entry.get("iscrowd", 0)),
    )


def is_text(value: object) -> TypeGuard[str]:
    """True for a text that is not empty and can be written as UTF-8; JSON can carry half a surrogate pair."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_id(value)


def short(value: object) -> str:
    """A JSON value in one short line, in ASCII so that any of it can be written down."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
