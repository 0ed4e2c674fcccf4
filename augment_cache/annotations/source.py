"""TACO annotations with their photos as a source of samples: the crops of the crop job, cut when they are asked for.

Splits, classes, rows and sample ids are those of the folder that `augment_cache.crop` writes with the same options, so
a sample gets the same augmentation from either. Only the JPEG step in between is missing.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from augment_cache.annotations.class_map import class_of_category, load_class_map, move_categories
from augment_cache.annotations.coco import Fault, read_coco
from augment_cache.annotations.cutter import OpenPhoto, by_photo, crop_name, cut_candidate, open_photo
from augment_cache.annotations.listing import in_order
from augment_cache.annotations.screen import REASONS, Candidate, Rejection, Rules, screen
from augment_cache.annotations.window import Shape
from pipelines.console.cores import usable_cores
from pipelines.decode import Pixels
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.sources import sample_id
from pipelines.splits import stratified_split

RULES = Rules(min_side=24.0, shape="square", margin=0.1)
"""The rules that the crop job has by default."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotationSource:
    """See `pipelines.sources.Source`; rows are annotations, sorted by class and by the name of their crop.

    Attributes:
        classes: Class names, sorted.
        candidates: What each row shows: its photo and the window in it. Length n.
        labels: int64 [n].
        ids: uint64 [n]; hash of the name that the crop has below its split: `CLASS/aANNOTATION.jpg`.
        made_from: Checksum of the annotations file and of the options.
        rejections: Annotations that are in no split, and why, by annotation id; the same in all splits.
        checked: False: photos may be damaged, or become so.
    """

    classes: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    labels: NDArray[np.int64]
    ids: NDArray[np.uint64]
    made_from: str
    rejections: tuple[Rejection, ...] = ()
    checked: bool = False

    def fetch(self, rows: NDArray[np.int64]) -> Sequence[Pixels]:
        """The windows of some rows, each decoded and cut when it is asked for, in the thread that asks.

        Returns:
            For each row uint8 [height, width, 3]. Asking for one raises CorruptSampleError if its photo is gone,
            damaged, or of another size than the annotations say.
        """
        return _Windows([self.candidates[row] for row in rows.tolist()])

    @property
    def fingerprint(self) -> str:
        """Checksum over annotations, options, rows, and sizes and times of change of their photos.

        Raises:
            CorruptSampleError: A photo is gone.
        """
        digest = sha256(self.made_from.encode())
        for candidate, label in zip(self.candidates, self.labels.tolist(), strict=True):
            digest.update(repr((_name(candidate), label, tuple(candidate.window))).encode())
        for name, path in {candidate.photo.name: candidate.path for candidate in self.candidates}.items():
            try:
                facts = path.stat()
            except OSError as error:
                raise CorruptSampleError(f"{path}: cannot be read: {error.strerror or error}; put it back") from error
            digest.update(repr((name, facts.st_size, facts.st_mtime_ns)).encode())
        return digest.hexdigest()

    def describe(self, row: int) -> str:
        """Path of the photo and id of the annotation."""
        return _describe(self.candidates[row])

    def subset(self, rows: NDArray[np.int64]) -> "AnnotationSource":
        """Some of the samples, in the given order, with the same classes."""
        candidates = tuple(self.candidates[row] for row in rows.tolist())
        return replace(self, candidates=candidates, labels=self.labels[rows], ids=self.ids[rows])


class _Windows(Sequence[Pixels]):
    """Windows that are cut when they are asked for, by any threads.

    A photo is kept from one item to the next of the same photo, unless that was asked for already: nobody would come
    for it.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = candidates
        self._asked: set[int] = set()
        self._kept: dict[int, OpenPhoto | Fault] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._candidates)

    def __getitem__(self, index: int) -> Pixels:  # type: ignore[override]
        index = range(len(self))[index]
        candidate = self._candidates[index]
        with self._lock:
            self._asked.add(index)
            kept = self._kept.pop(index, None)
        photo = open_photo(candidate.path) if kept is None else kept
        self._keep(index + 1, candidate, photo)
        window = cut_candidate(candidate, photo)
        if isinstance(window, Fault):
            reason = f"{REASONS[window.reason]} ({window.detail})"
            raise CorruptSampleError(f"{_describe(candidate)}: {reason}; mend or remove it")
        return window

    def _keep(self, index: int, candidate: Candidate, photo: OpenPhoto | Fault) -> None:
        if index < len(self) and self._candidates[index].photo.name == candidate.photo.name:
            with self._lock:
                if index not in self._asked:
                    self._kept[index] = photo


def _name(candidate: Candidate) -> str:
    """Path of the crop below its split, which the sample id is made of."""
    return f"{candidate.label}/{crop_name(candidate.annotation.annotation_id)}"


def _describe(candidate: Candidate) -> str:
    return f"{candidate.path}, annotation {candidate.annotation.annotation_id}"


def open_annotations(
    data: Path,
    annotations: Path | None = None,
    *,
    map: str = "taco6",  # the crop job's name for it
    move: Sequence[str] = (),
    rules: Rules = RULES,
    val: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
    allow_empty_classes: bool = False,
    check: bool = True,
    threads: int = 0,
) -> dict[str, AnnotationSource]:
    """Open annotations as the crop job would cut them with the same options.

    Args:
        data: Folder with the photos, at the paths that the annotations file gives them.
        annotations: COCO annotations file; DATA/annotations.json when absent.
        map: Which category becomes which class: taco6, taco9, or the path of a YAML map.
        move: `CATEGORY=CLASS` or `CATEGORY=drop`, each for one category.
        rules: Which boxes are used, and what is shown around them.
        val: Share of the samples for validation.
        test: Share of the samples for testing. A photo's samples all go to the same split.
        seed: Another seed gives another split.
        allow_empty_classes: Accept classes without samples for training.
        check: Decode every photo once and leave out what is damaged, as the crop job does; splits are decided
            afterwards. Without it, such a photo is a CorruptSampleError when it is fetched, and if there is one, the
            splits may be others than those of the crop job.
        threads: Photos decoded at the same time by the check; 0 takes every core.

    Returns:
        Split name → source, in the order train, val, test; all with the same classes.

    Raises:
        UsageError: An option, the map, the annotations file or the data folder cannot be right, a split is empty, or a
            class has nothing to train on.
    """
    fractions = {"train": round(1 - val - test, 12), "val": val, "test": test}  # to the bit what the crop job has
    _check_options(data, rules, fractions, threads)
    coco = read_coco(annotations or data / "annotations.json")
    class_map = move_categories(load_class_map(map), move, coco.categories)
    candidates, rejections = screen(coco, class_of_category(class_map, coco.categories), data, rules)
    if check:
        damaged = _damaged(candidates, threads)
        candidates = [candidate for candidate in candidates if candidate.annotation.annotation_id not in damaged]
        rejections += damaged.values()
    options = (coco.sha256, sorted(class_map.classes.items()), float(rules.min_side), rules.shape, float(rules.margin))
    made_from = sha256(repr((*options, fractions, seed)).encode("utf-8", "surrogatepass")).hexdigest()
    source = _source(tuple(sorted(class_map.classes)), candidates, made_from, tuple(in_order(rejections)))
    split_of = stratified_split([one.photo.name for one in source.candidates], source.labels, fractions, seed)
    splits = {name: source.subset(np.flatnonzero(split_of == index)) for index, name in enumerate(fractions)}
    _check_splits(coco.path, splits, allow_empty_classes=allow_empty_classes)
    return splits


def _source(
    classes: tuple[str, ...], candidates: Sequence[Candidate], made_from: str, rejections: tuple[Rejection, ...]
) -> AnnotationSource:
    """All samples, in the order in which a folder of their crops lists them."""
    in_rows = tuple(sorted(candidates, key=lambda candidate: (candidate.label, _name(candidate))))
    return AnnotationSource(
        classes=classes,
        candidates=in_rows,
        labels=np.array([classes.index(candidate.label) for candidate in in_rows], np.int64),
        ids=np.array([sample_id(_name(candidate)) for candidate in in_rows], np.uint64),
        made_from=made_from,
        rejections=rejections,
    )


def _damaged(candidates: Sequence[Candidate], threads: int) -> dict[int, Rejection]:
    """Annotation id → rejection, for those whose photo turns out to be bad."""

    def judge(group: Sequence[Candidate]) -> list[Rejection]:
        photo = open_photo(group[0].path)
        return [one.rejected(fault) for one in group if isinstance(fault := cut_candidate(one, photo), Fault)]

    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        rejections = [row for rows in pool.map(judge, by_photo(candidates)) for row in rows]
    return {int(row.annotation_id): row for row in rejections}


def _check_options(data: Path, rules: Rules, fractions: Mapping[str, float], threads: int) -> None:
    if not data.is_dir():
        raise UsageError(f"{data} is not a folder; give the one that holds the photos")
    if threads < 0:
        raise UsageError(f"threads {threads} is below 0; give 0 for every core")
    if not (math.isfinite(rules.min_side) and rules.min_side >= 1):
        raise UsageError(f"min_side {rules.min_side} is not a number of px from 1 up; the crop job has 24")
    if not (math.isfinite(rules.margin) and 0 <= rules.margin <= 10):
        raise UsageError(f"margin {rules.margin} is not a share from 0 to 10; the crop job has 0.1")
    if rules.shape not in get_args(Shape):
        raise UsageError(f"shape {rules.shape!r} is none of {', '.join(get_args(Shape))}; the crop job has square")
    if not all(share > 0 for share in fractions.values()):  # NaN is not above 0 either
        raise UsageError(
            f"val {fractions['val']} and test {fractions['test']} must each be above 0 and leave something for training"
        )


def _check_splits(path: Path, splits: Mapping[str, AnnotationSource], *, allow_empty_classes: bool) -> None:
    for name, part in splits.items():
        if not part.candidates:
            raise UsageError(f"{path} has no sample for the {name} split; lower min_side, or annotate more photos")
    train = splits["train"]
    missing = sorted(set(train.classes) - {candidate.label for candidate in train.candidates})
    if missing and not allow_empty_classes:
        raise UsageError(
            f"{path} has no sample of {missing[0]!r} to train on; choose another map or set allow_empty_classes to true"
        )
