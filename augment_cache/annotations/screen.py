"""Decide for every annotation whether it becomes a crop, before any photo is decoded.

Each annotation ends as a `Candidate` or as a `Rejection`, never as both and never as neither: the first reason that
holds is the one that is listed. Nothing here depends on the order of the file.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from augment_cache.annotations.coco import Annotation, CocoFile, Fault, Photo, index_photos, parse_annotation, short
from augment_cache.annotations.window import Shape, Window, clip_box, crop_window
from pipelines.console.files import inside
from pipelines.errors import UsageError

REASONS = {
    "unmapped": "the category is in no class of the map",
    "too_small": "the shorter side of the box is below --min_side",
    "empty_box": "the box has no area inside the photo, or is not a number",
    "iscrowd": "the box is around a crowd of objects",
    "bad_annotation": "the entry lacks a key or has nonsense in it",
    "bad_image": "the entry of its image lacks a key or has nonsense in it",
    "duplicate_annotation_id": "several annotations have this id",
    "duplicate_image_id": "several images have the id of its image",
    "unknown_image": "there is no image with its image_id",
    "unknown_category": "there is no category with its category_id",
    "path_outside_root": "the photo's path leads out of the data folder",
    "missing_photo": "the photo is not there",
    "unreadable_photo": "the photo is damaged or no picture",
    "size_mismatch": "the photo has another size than the annotations say",
}
"""Every reason that `rejected.csv` can hold, and what it means."""


class Rejection(NamedTuple):
    """A row of `rejected.csv`. Ids are texts, because a broken entry can hold anything."""

    annotation_id: str
    image_id: str
    photo: str
    category: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An annotation that becomes a crop if its photo can be decoded."""

    annotation: Annotation
    photo: Photo
    path: Path
    category: str
    label: str
    """Name of its class."""
    window: Window
    """What to cut, in the annotated frame."""

    def rejected(self, fault: Fault) -> Rejection:
        """The row to list when its photo turns out to be bad."""
        ids = self.annotation.annotation_id, self.annotation.image_id
        return Rejection(str(ids[0]), str(ids[1]), self.photo.name, self.category, *fault)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What makes a box a crop."""

    min_side: float
    shape: Shape
    margin: float


def screen(
    coco: CocoFile, class_of: Mapping[int, str], folder: Path, rules: Rules
) -> tuple[list[Candidate], list[Rejection]]:
    """Judge every annotation.

    Args:
        coco: The file.
        class_of: Class of each mapped category id.
        folder: The data folder that photos are looked for in.
        rules: Smallest side, shape and margin.

    Returns:
        Candidates sorted by annotation id, and rejections in the order of the file; together as many as annotations.

    Raises:
        UsageError: Not one of the photos is in the folder, so it must be the wrong folder.
    """
    parsed = [parse_annotation(entry) for entry in coco.annotations]
    desk = _Desk.set_up(coco, class_of, folder, rules, parsed)
    _check_folder(coco, folder, desk)
    candidates: list[Candidate] = []
    rejections: list[Rejection] = []
    for raw, entry in zip(coco.annotations, parsed, strict=True):
        verdict = desk.judge(entry) if isinstance(entry, Annotation) else entry
        if isinstance(verdict, Candidate):
            candidates.append(verdict)
        else:
            rejections.append(desk.reject(raw, verdict))
    return sorted(candidates, key=lambda candidate: candidate.annotation.annotation_id), rejections


def _check_folder(coco: CocoFile, folder: Path, desk: "_Desk") -> None:
    inner = sorted(name for name, path in desk.paths.items() if path is not None)
    if inner and not desk.present:
        raise UsageError(
            f"none of the {len(inner):,} photos of {coco.path} is in {folder}; give the folder in which "
            f"'{inner[0]}' can be found as --data"
        )


@dataclass(frozen=True, kw_only=True)
class _Desk:
    """What a single annotation is judged by."""

    categories: Mapping[int, str]
    class_of: Mapping[int, str]
    photos: Mapping[int, Photo]
    bad_images: Mapping[int, Fault]
    times: Mapping[int, int]
    """How often each annotation id occurs."""
    paths: Mapping[str, Path | None]
    """Where each photo must be; None when its name leads out of the folder."""
    present: frozenset[str]
    """Names of the photos that are there."""
    rules: Rules

    @staticmethod
    def set_up(
        coco: CocoFile, class_of: Mapping[int, str], folder: Path, rules: Rules, parsed: Sequence[Annotation | Fault]
    ) -> "_Desk":
        photos, bad_images = index_photos(coco.images)
        paths = {photo.name: _locate(folder, photo.name) for photo in photos.values()}
        return _Desk(
            categories=coco.categories,
            class_of=class_of,
            photos=photos,
            bad_images=bad_images,
            times=Counter(entry.annotation_id for entry in parsed if isinstance(entry, Annotation)),
            paths=paths,
            present=frozenset(name for name, path in paths.items() if path is not None and _is_there(path)),
            rules=rules,
        )

    def judge(self, entry: Annotation) -> Candidate | Fault:
        photo = self.photos.get(entry.image_id)
        category = self.categories.get(entry.category_id)
        if category is None:
            return Fault("unknown_category", f"no category has the id {entry.category_id}")
        if entry.category_id not in self.class_of:
            return Fault("unmapped", "")
        if self.times[entry.annotation_id] > 1:
            return Fault("duplicate_annotation_id", f"{self.times[entry.annotation_id]} annotations have this id")
        if photo is None:
            unknown = Fault("unknown_image", f"no image has the id {entry.image_id}")
            return self.bad_images.get(entry.image_id, unknown)
        if entry.crowd:
            return Fault("iscrowd", "")
        path = self.paths[photo.name]
        if path is None:
            return Fault("path_outside_root", "the path is absolute, climbs out, or is a link to somewhere else")
        box = clip_box(entry.box, photo.width, photo.height)
        if box is None:
            return Fault("empty_box", f"{list(entry.box)} in a frame of {photo.width} x {photo.height} px")
        if box.side < self.rules.min_side:
            return Fault("too_small", f"{box.side:.2f} px")
        if photo.name not in self.present:
            return Fault("missing_photo", "")
        window = crop_window(box, photo.width, photo.height, shape=self.rules.shape, margin=self.rules.margin)
        label = self.class_of[entry.category_id]
        return Candidate(annotation=entry, photo=photo, path=path, category=category, label=label, window=window)

    def reject(self, raw: object, fault: Fault) -> Rejection:
        """The row of an entry that may be broken: what can be known of it is written down."""
        entry = raw if isinstance(raw, dict) else {}
        annotation_id, image_id, category_id = (entry.get(key) for key in ("id", "image_id", "category_id"))
        photo = self.photos.get(image_id) if type(image_id) is int else None  # a JSON true is no 1 here
        category = self.categories.get(category_id, "") if type(category_id) is int else ""
        ids = ["" if number is None else short(number) for number in (annotation_id, image_id)]
        return Rejection(ids[0], ids[1], photo.name if photo else "", category, *fault)


def _locate(folder: Path, name: str) -> Path | None:
    try:
        return inside(folder, name)
    except (OSError, RuntimeError):  # a loop of symbolic links
        return None


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # for example a name that is too long for the file system
        return False
