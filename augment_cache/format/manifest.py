"""The manifest: what a cache holds and how it was made. It is written last, so a cache with a manifest is whole."""

import json
import re
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from pipelines.console.files import inside, write_json
from pipelines.errors import UsageError
from pipelines.fit import Fit

FORMAT = "tacopress-cache"
VERSION = 2
MANIFEST_NAME = "manifest.json"
BUILD_NAME = "build.json"
REJECTED_NAME = "rejected.csv"
SHARD_NAME = re.compile(r"^\.?shard-\d{5,}-of-\d{5,}\.arrow(\.partial-[0-9a-f-]+)?$")
"""A shard, or what a killed build was writing beside its name."""


@dataclass(frozen=True)
class ShardEntry:
    """One file.

    Attributes:
        file: Path relative to the cache.
        rows: Number of rows.
        bytes: Size of the file.
        sha256: Of the file, hexadecimal.
        fingerprint: Of the recipe and the sources that it was made from.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    fingerprint: str


@dataclass(frozen=True)
class SplitEntry:
    """One split.

    Attributes:
        samples: Number of originals.
        rows: Originals and copies.
        classes: Rows per class.
        shards: The files.
    """

    samples: int
    rows: int
    classes: dict[str, int]
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class Manifest:
    """A whole cache.

    Attributes:
        classes: Class names in index order.
        recipe: Everything that decides the bytes: size, fit, encoding, quality, copies, seed, policy, split, engine.
        fingerprint: Checksum over the fingerprints of all shards: recipe, names and contents of all sources.
        splits: Name → entry.
        rejected: Number of sources that could not be read; `rejected.csv` lists them.
        made_with: Versions of the libraries that moved the pixels.
        files: SHA-256 of each file beside the shards, hexadecimal.
    """

    classes: tuple[str, ...]
    recipe: dict[str, Any]
    fingerprint: str
    splits: dict[str, SplitEntry]
    rejected: int
    made_with: dict[str, str]
    files: dict[str, str]

    @property
    def shards(self) -> dict[str, ShardEntry]:
        """All shards by their path."""
        return {shard.file: shard for entry in self.splits.values() for shard in entry.shards}

    @property
    def size(self) -> int:
        """Side of the images in px."""
        return int(self.recipe["size"])

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into the cache."""
        value = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_json(folder / MANIFEST_NAME, {**value, "checksum": _checksum(value)})


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a cache.

    Raises:
        UsageError: The folder is no cache, or one of another version, or its manifest is damaged.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UsageError(
            f"{folder} is no cache: it has no {MANIFEST_NAME}; make one with python -m augment_cache.build"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.get("format") != FORMAT:
            raise UsageError(f"{path} is not the manifest of a Tacopress cache; give the folder that build wrote")
        if value.get("version") != VERSION:
            raise UsageError(
                f"{path}: format version {value.get('version')}, this Tacopress reads {VERSION}; rebuild it"
            )
        if value.pop("checksum", None) != _checksum(value):
            raise ValueError("it does not match its checksum")
        return Manifest(
            classes=tuple(value["classes"]),
            recipe=_recipe(value["recipe"]),
            fingerprint=value["fingerprint"],
            splits={name: _split(folder, entry) for name, entry in value["splits"].items()},
            rejected=int(value["rejected"]),
            made_with=value["made_with"],
            files=value["files"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({error}); mend it with python -m augment_cache.verify --cache {folder} --repair"
        ) from error


def _checksum(value: dict[str, Any]) -> str:
    """SHA-256 of a manifest's values, hexadecimal."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def is_foreign(path: Path) -> bool:
    """Whether a manifest is readable as that of something else; a damaged one may well be ours."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return not isinstance(value, dict) or value.get("format") != FORMAT


def _recipe(value: dict[str, Any]) -> dict[str, Any]:
    """The recipe, if readers find in it what they need."""
    known = value["encoding"] in ("jpeg", "raw") and value["fit"] in get_args(Fit)
    if not known or not 4 <= int(value["size"]) <= 4096:
        raise ValueError(f"size {value['size']!r}, encoding {value['encoding']!r}, fit {value['fit']!r}")
    return value


def _split(folder: Path, entry: dict[str, Any]) -> SplitEntry:
    shards = tuple(ShardEntry(**shard) for shard in entry["shards"])
    if not shards:
        raise ValueError("a split without shards")
    for shard in shards:
        if inside(folder, shard.file) is None:
            raise UsageError(
                f"{folder / MANIFEST_NAME} names a shard outside of its folder: {shard.file!r}; do not trust it"
            )
    return SplitEntry(int(entry["samples"]), int(entry["rows"]), dict(entry["classes"]), shards)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shard_file(split: str, index: int, count: int) -> str:
    """Path of a shard relative to the cache."""
    return f"{split}/shard-{index:05d}-of-{count:05d}.arrow"
