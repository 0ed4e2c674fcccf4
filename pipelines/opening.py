"""From a path to its sources, whatever it holds. Other packages add kinds by an entry point."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

from pipelines.datasets import SplitOptions, open_splits
from pipelines.errors import UsageError
from pipelines.sources import Source

GROUP = "tacopress.sources"
"""Entry points: functions (path, OpenOptions) → {split: Source}, or None for what they do not know."""


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How a data set is opened.

    Attributes:
        split: How a folder of class folders, or annotated photos, are cut.
        copies: Augmented copies of training images that are used; None uses all that a cache has.
        allow_empty_classes: Accept classes without images.
        check: Hold every row of a cache against its checksum when it is read.
        splits: All that is wanted, so that nothing else need be there; None for every split.
    """

    split: SplitOptions = field(default_factory=SplitOptions)
    copies: int | None = None
    allow_empty_classes: bool = False
    check: bool = True
    splits: tuple[str, ...] | None = None


Opener = Callable[[Path, OpenOptions], dict[str, Source] | None]


def open_with(path: Path, options: OpenOptions, openers: list[Opener]) -> dict[str, Source]:
    """Open what a path holds: the first opener that knows it does, or else it is a folder of images.

    Args:
        path: A folder.
        options: How to read it.
        openers: Who else knows kinds of data.

    Raises:
        UsageError: There is nothing, or nothing that anybody knows.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a cache, a folder of images, or photos with annotations.json")
    for opener in openers:
        found = opener(path, options)
        if found is not None:
            return found
    return dict(open_splits(path, options.split, allow_empty_classes=options.allow_empty_classes))


def open_anything(path: Path, options: OpenOptions) -> dict[str, Source]:
    """`open_with` the openers of all packages that are installed."""
    return open_with(path, options, [entry.load() for entry in entry_points(group=GROUP)])


def wanted_splits(path: Path, sources: dict[str, Source], names: tuple[str, ...]) -> list[Source]:
    """Some of the splits.

    Raises:
        UsageError: One of them is not there.
    """
    missing = [name for name in names if name not in sources]
    if missing:
        raise UsageError(f"{path} has no split {missing[0]!r}; it has {', '.join(sources)}")
    return [sources[name] for name in names]
