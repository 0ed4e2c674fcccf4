"""A folder of images as train, val and test: the splits that it has, or a seeded, stratified cut made here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import UsageError
from pipelines.sources import SPLITS, FolderSource, open_folder
from pipelines.splits import stratified_split

SPLIT_LIKE = {"train", "training", "val", "valid", "validation", "test", "testing"}
"""Folder names that are no classes, however they are capitalised."""


@dataclass(frozen=True)
class SplitOptions:
    """How a folder without splits is cut.

    Attributes:
        val: Share of the samples for validation.
        test: Share of the samples for the test.
        seed: Which of the possible cuts.
    """

    val: float = 0.15
    test: float = 0.15
    seed: int = 0

    @property
    def fractions(self) -> dict[str, float]:
        """Split → share; splits with no share are left out."""
        shares = {"train": 1.0 - self.val - self.test, "val": self.val, "test": self.test}
        return {name: share for name, share in shares.items() if share > 1e-9}


def open_splits(
    root: Path,
    options: SplitOptions,
    *,
    allow_empty_classes: bool = False,
    known: Mapping[str, str] | None = None,
) -> dict[str, FolderSource]:
    """Open a folder of crops or a folder of class folders.

    Args:
        root: Either holds `train/`, `val/`, `test/` with class folders in each (what the crop job writes), or the class
            folders themselves.
        options: How to cut the latter.
        allow_empty_classes: Accept classes without images.
        known: File → split of an earlier cut of the latter: those files stay where they were, only new ones are cut.

    Returns:
        Split name → source, in the order train, val, test; all with the same classes.

    Raises:
        UsageError: Nothing to open, a class without training images, or shares that make no sense.
    """
    if not root.is_dir():
        raise UsageError(
            f"{root} is no folder; give a folder of crops (from python -m augment_cache.crop) or class folders"
        )
    if has_splits(root):
        names = _folders(root)
        if not ("train" in names and names <= set(SPLITS)):
            found = ", ".join(sorted(names))
            raise UsageError(
                f"{root} holds {found}: split folders must be named train, val and test, with no other beside"
            )
        return _open_cut(root, [name for name in SPLITS if name in names], allow_empty_classes=allow_empty_classes)
    source = open_folder(root, allow_empty_classes=allow_empty_classes)
    return _cut(source, options, known or {}, allow_empty_classes=allow_empty_classes)


def has_splits(root: Path) -> bool:
    """Whether a folder holds split folders instead of class folders."""
    return any(name.casefold() in SPLIT_LIKE for name in _folders(root))


def _folders(root: Path) -> set[str]:
    return {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def _open_cut(root: Path, splits: list[str], *, allow_empty_classes: bool) -> dict[str, FolderSource]:
    classes = sorted(
        {
            entry.name
            for split in splits
            for entry in (root / split).iterdir()
            if entry.is_dir() and entry.name[0] != "."
        }
    )
    if not classes:
        raise UsageError(f"{root / 'train'} holds no class folders; expected {root}/train/CLASS/IMAGE.jpg")
    # Small classes may be missing from val or test, but a class without training images can never be learned.
    return {
        split: open_folder(root / split, classes, allow_empty_classes=allow_empty_classes or split != "train")
        for split in splits
    }


def _cut(
    source: FolderSource, options: SplitOptions, known: Mapping[str, str], *, allow_empty_classes: bool
) -> dict[str, FolderSource]:
    if not (options.val >= 0 and options.test >= 0 and "train" in options.fractions):
        raise UsageError(f"val {options.val} and test {options.test} must be shares that leave something to train on")
    fractions = options.fractions
    if len(fractions) == 1:
        return {"train": source}
    split_of = stratified_split(source.files, source.labels, fractions, options.seed, known)
    splits = {name: source.subset(np.flatnonzero(split_of == index)) for index, name in enumerate(fractions)}
    for name, part in splits.items():
        if not part.files:
            raise UsageError(
                f"{source.root}: {len(source.files)} images leave none for the {name} split with val {options.val} "
                f"and test {options.test}; add images or change the shares (0 leaves a split out)"
            )
    missing = sorted(set(range(len(source.classes))) - set(splits["train"].labels.tolist()))
    if missing and not allow_empty_classes:
        raise UsageError(
            f"class {source.classes[missing[0]]!r} of {source.root} has too few images to leave one for training; "
            f"add some, lower val {options.val} and test {options.test}, or set allow_empty_classes to true"
        )
    return splits
