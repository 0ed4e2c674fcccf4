"""What a build writes down before its first shard, so that whoever goes on with it does the same thing.

`build.json` says which cache the folder holds, finished or not. `splits.csv` says which file went to which split, where
the build itself cut a folder of class folders: files keep their split when others are added.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augment_cache.building.shard_plan import ShardTask
from augment_cache.building.worker import Recipe
from augment_cache.format.manifest import BUILD_NAME, MANIFEST_NAME, is_foreign, read_manifest
from augment_cache.format.shards import read_metadata
from pipelines.console.files import write_csv, write_json
from pipelines.errors import UsageError

SPLITS_NAME = "splits.csv"
FORMAT = "tacopress-build"


@dataclass(frozen=True)
class Identity:
    """Which cache a folder holds.

    Attributes:
        recipe: Everything that decides the bytes, apart from the sources, as the manifest has it.
        classes: Class names in index order.
        made_with: Versions of the libraries that move the pixels.
    """

    recipe: dict[str, Any]
    classes: tuple[str, ...]
    made_with: dict[str, str]

    def write(self, out: Path) -> None:
        """Write `build.json`."""
        value = {"format": FORMAT, "recipe": self.recipe, "classes": self.classes, "made_with": self.made_with}
        write_json(out / BUILD_NAME, value)

    def difference(self, wanted: "Identity") -> str:
        """The first thing in which another cache differs, in words; "" if it is the same but for the versions."""
        for key in sorted(set(self.recipe) | set(wanted.recipe)):
            old, new = self.recipe.get(key), wanted.recipe.get(key)
            if old != new:
                return f"another {key}" if isinstance(old or new, dict) else f"{key} {old} there, {new} asked for"
        return "" if self.classes == wanted.classes else f"classes {', '.join(self.classes)}"


def identity_of(recipe: Recipe) -> Identity:
    """The identity of the cache that a recipe makes, with plain JSON values."""
    return Identity(json.loads(json.dumps(recipe.values)), recipe.classes, recipe.made_with)


def read_identity(out: Path) -> Identity | None:
    """Which cache a folder holds; None if it says so nowhere.

    Reads `build.json` or, where that is damaged or missing, the manifest or a shard, which does not know the versions.
    """
    try:
        value = json.loads((out / BUILD_NAME).read_text(encoding="utf-8"))
        if value["format"] == FORMAT:
            return Identity(dict(value["recipe"]), tuple(value["classes"]), dict(value["made_with"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    try:
        manifest = read_manifest(out)
        return Identity(manifest.recipe, manifest.classes, manifest.made_with)
    except UsageError:
        pass
    for path in sorted(out.glob("*/shard-*.arrow")):
        found = read_metadata(path) or {}
        if "recipe" in found and "classes" in found:
            return Identity(found["recipe"], tuple(found["classes"]), {})
    return None


def is_foreign_state(path: Path) -> bool:
    """Whether a file with one of our names is readable as something else; a damaged one may well be ours."""
    if path.name == MANIFEST_NAME:
        return is_foreign(path)
    if path.name != BUILD_NAME:
        return False
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return not isinstance(value, dict) or value.get("format") != FORMAT


def write_splits(out: Path, tasks: list[ShardTask]) -> None:
    """Write `splits.csv`: source, split; sorted by source."""
    rows = sorted((file, task.split) for task in tasks for file in task.files)
    write_csv(out / SPLITS_NAME, ("source", "split"), rows)


def read_splits(out: Path) -> dict[str, str]:
    """File → split, as the last build cut them; empty if there is nothing to read."""
    try:
        with (out / SPLITS_NAME).open(encoding="utf-8", newline="") as file:
            return {row[0]: row[1] for row in csv.reader(file) if len(row) == 2 and row != ["source", "split"]}
    except (OSError, ValueError, csv.Error):
        return {}
