"""What must not be torn apart by cross-validation: crops of one photo, copies of one sample."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augment_cache.annotations.source import AnnotationSource
from augment_cache.crop import TABLE_FILE
from augment_cache.format.source import CacheSource
from pipelines.errors import UsageError
from pipelines.sources import FolderSource, Source
from pipelines.splits import stratified_split


def fold_of_rows(
    sources: list[Source], photos: dict[str, str], *, folds: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Deal the rows of some sources to folds: all rows of a photo to one of them, every class in proportion.

    Args:
        sources: What to deal out.
        photos: Path of a crop → its photo, see `read_photos`; where it is empty each crop is a photo of its own.
        folds: Number of folds, at least 2.
        seed: Another seed gives other folds.

    Returns:
        Fold of each row, int64 [n], in the order of the sources; and which rows are originals, bool [n].
    """
    samples = np.concatenate([getattr(source, "sample_ids", source.ids) for source in sources])
    original = np.concatenate([_copies(source) == 0 for source in sources])
    names = [name for source in sources for name in _photos(source, photos)]
    groups = {int(samples[row]): names[row] for row in np.flatnonzero(original)}
    labels = np.concatenate([source.labels for source in sources])
    chosen = np.flatnonzero(original)
    fractions = {str(number): 1.0 / folds for number in range(folds)}
    dealt = stratified_split([groups[int(samples[row])] for row in chosen], labels[chosen], fractions, seed)
    by_sample = dict(zip(samples[chosen].tolist(), dealt.tolist(), strict=True))
    return np.array([by_sample[sample] for sample in samples.tolist()], np.int64), original


def _photos(source: Source, photos: dict[str, str]) -> list[str]:
    """For each row its photo."""
    if isinstance(source, AnnotationSource):  # it knows
        return [candidate.photo.name for candidate in source.candidates]
    return [_photo(name, photos) for name in _names(source)]


def _photo(name: str, photos: dict[str, str]) -> str:
    if not photos:
        return name
    if name not in photos:
        raise UsageError(f"--data.groups does not say which photo {name} is from; give the {TABLE_FILE} of these crops")
    return photos[name]


def _copies(source: Source) -> NDArray[np.int64]:
    copies: NDArray[np.int64] = getattr(source, "copies", np.zeros(len(source.labels), np.int64))
    return copies


def _names(source: Source) -> list[str]:
    """For each row its photo, where the source knows it, or the path of the crop below its split."""
    if isinstance(source, FolderSource):
        return list(source.files)
    if isinstance(source, CacheSource):
        return [source.record(row).source for row in range(len(source.labels))]
    return [f"{sample:016x}" for sample in source.ids.tolist()]


def read_photos(path: Path | None) -> dict[str, str]:
    """Which photo each crop was cut from, by the path of the crop below its split.

    Args:
        path: `crops.json`, or the folder that holds it, from python -m augment_cache.crop; None for none.

    Raises:
        UsageError: It is no such file.
    """
    if path is None:
        return {}
    file = path / TABLE_FILE if path.is_dir() else path
    try:
        listed: list[Any] = json.loads(file.read_text(encoding="utf-8"))["crops"]
        # Without the split, which the sources' names do not have; an annotation has one crop, so names stay different.
        return {str(crop["file"]).partition("/")[2]: str(crop["photo"]) for crop in listed}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--data.groups {file} cannot be read ({error!r}); give the {TABLE_FILE} that python -m augment_cache.crop "
            "wrote"
        ) from error


def find_photos(data: Path, groups: Path | None) -> Path | None:
    """Where it stands which photo a crop is from: as asked, or beside the crops."""
    return groups or (data if (data / TABLE_FILE).is_file() else None)
