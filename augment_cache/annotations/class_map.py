"""Which category becomes which class: YAML maps, shipped or the user's own, and moves of single categories.

A map is a YAML file with a `description` and `classes`: class name -> list of categories, a text being a category's
name exactly as in the annotations file and a whole number its id.
"""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from augment_cache.format.strict_yaml import load_yaml
from pipelines.errors import UsageError

MAPS_FOLDER = Path(__file__).parent.parent / "maps"
DROP = "drop"
"""Where `--move CATEGORY=drop` sends a category: to no class."""

Category = str | int
"""A category's name or its id."""


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """Classes and the categories that make each of them up."""

    name: str
    """`taco6`, or the path of the user's file: what messages call it."""
    description: str
    classes: Mapping[str, tuple[Category, ...]]
    shipped: bool
    """A shipped map may name categories that an annotations file, often a part of TACO, does not have."""


def shipped_maps() -> list[str]:
    """Names of the maps that come with the package."""
    return sorted(path.stem for path in MAPS_FOLDER.glob("*.yaml"))


def load_class_map(name: str) -> ClassMap:
    """Load a shipped map by its name or any map by its path.

    Raises:
        UsageError: There is no such map, it is not a map, a class has no category or an impossible name, or a
            category is listed twice.
    """
    shipped = name in shipped_maps()
    path = MAPS_FOLDER / f"{name}.yaml" if shipped else Path(name)
    if not path.is_file():
        raise UsageError(f"--map {name}: no such file; give {' or '.join(shipped_maps())}, or the path of a YAML map")
    try:
        value = load_yaml(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"--map {name} is not YAML that can be read: {error}") from error
    return ClassMap(
        name=name, description=_description(name, value), classes=_classes(name, value["classes"]), shipped=shipped
    )


def _description(name: str, value: object) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("classes"), dict) or not value["classes"]:
        raise UsageError(f"--map {name} has no 'classes:' that lists categories under class names; see maps/taco6.yaml")
    if extra := sorted(map(str, value.keys() - {"description", "classes"})):
        raise UsageError(
            f"--map {name} has the unknown key '{extra[0]}'; only 'description' and 'classes' belong there"
        )
    return str(value.get("description") or "")


def _classes(name: str, value: Mapping[Any, Any]) -> dict[str, tuple[Category, ...]]:
    classes: dict[str, tuple[Category, ...]] = {}
    seen: dict[Category, str] = {}
    folded: dict[str, str] = {}
    for class_name, categories in value.items():
        _check_class_name(name, class_name)
        if (twin := folded.setdefault(class_name.casefold(), class_name)) != class_name:
            raise UsageError(f"--map {name}: '{twin}' and '{class_name}' are one folder on some disks; rename one")
        if not isinstance(categories, list) or not categories:
            raise UsageError(f"--map {name}: class {class_name} has no categories; list some under it or remove it")
        for category in categories:
            _check_category(name, class_name, category)
            if category in seen:
                raise UsageError(
                    f"--map {name}: category {category} is listed twice, under {seen[category]} and {class_name}; "
                    "keep one of them"
                )
            seen[category] = class_name
        classes[class_name] = tuple(categories)
    return dict(sorted(classes.items()))


def _check_class_name(name: str, class_name: object) -> None:
    if not isinstance(class_name, str) or not class_name.isprintable() or class_name != class_name.strip():
        raise UsageError(f"--map {name}: class name {class_name!r} is not a plain text; put it in quotes or rename it")
    if class_name == DROP or not class_name or class_name.startswith(".") or set(class_name) & set('/\\=<>:"|?*'):
        raise UsageError(f"--map {name}: '{class_name}' cannot be the name of a class and its folder; rename it")


def _check_category(name: str, class_name: str, category: object) -> None:
    if isinstance(category, bool) or not isinstance(category, (str, int)):
        raise UsageError(
            f"--map {name}: {category!r} under {class_name} is neither a category's name nor its id; put it in quotes"
        )


def move_categories(class_map: ClassMap, moves: Sequence[str], categories: Mapping[int, str]) -> ClassMap:
    """Carry out `--move CATEGORY=CLASS` and `--move CATEGORY=drop`.

    Args:
        class_map: The map to change; itself left as it is.
        moves: Each `CATEGORY=CLASS`; CATEGORY is a name or, where no category has that name, an id.
        categories: Name of each category id of the annotations file.

    Raises:
        UsageError: A move has another form, names a category or class that does not exist, names a category twice, or
            leaves a class without categories.
    """
    classes = {name: list(listed) for name, listed in class_map.classes.items()}
    moved: set[Category] = set()
    for move in moves:
        aliases, category, target = _parse_move(move, class_map, categories)
        if moved & aliases:
            raise UsageError(f"--move names the category '{category}' twice; keep one of them")
        moved |= aliases
        for listed in classes.values():
            listed[:] = [other for other in listed if other not in aliases]
        if target != DROP:
            classes[target].append(category)
    for class_name, listed in classes.items():
        if not listed:
            raise UsageError(
                f"--move leaves class {class_name} of {class_map.name} without categories; use an own --map"
            )
    return replace(class_map, classes={name: tuple(listed) for name, listed in classes.items()})


def _parse_move(move: str, class_map: ClassMap, categories: Mapping[int, str]) -> tuple[set[Category], Category, str]:
    """Every way a map may write the category, the way the move writes it, and the class it goes to."""
    wanted, equals, target = (part.strip() for part in move.rpartition("="))
    if not equals or not wanted or not target:
        raise UsageError(f"--move '{move}' is not CATEGORY=CLASS; for example --move 'Paper cup=Paper'")
    if target != DROP and target not in class_map.classes:
        raise UsageError(
            f"--move '{move}': {class_map.name} has no class '{target}'{_closest(target, class_map.classes)}"
        )
    aliases = _aliases(wanted, class_map, categories)
    if not aliases:
        known = {*categories.values(), *(category for _, category in _pairs(class_map) if isinstance(category, str))}
        raise UsageError(f"--move '{move}': there is no category '{wanted}'{_closest(wanted, known)}")
    return aliases, wanted if wanted in aliases else int(wanted), target


def _aliases(wanted: str, class_map: ClassMap, categories: Mapping[int, str]) -> set[Category]:
    listed = {category for _, category in _pairs(class_map)}
    if wanted in categories.values() or wanted in listed:
        return {wanted, *(number for number, name in categories.items() if name == wanted)}
    if wanted.isdecimal() and (int(wanted) in categories or int(wanted) in listed):
        name = categories.get(int(wanted))
        return {int(wanted)} if name is None else {int(wanted), name}
    return set()


def class_of_category(class_map: ClassMap, categories: Mapping[int, str]) -> dict[int, str]:
    """Class of each category id that the map covers.

    Args:
        class_map: The map, moves carried out.
        categories: Name of each category id of the annotations file.

    Raises:
        UsageError: An own map names a category that the annotations file lacks, a shipped map shares none with it, a
            category is listed by name and by id, or a listed name belongs to several ids.
    """
    ids_of: dict[str, list[int]] = defaultdict(list)
    for number, name in categories.items():
        ids_of[name].append(number)
    result: dict[int, str] = {}
    for class_name, category in _pairs(class_map):
        found = ids_of.get(category, []) if isinstance(category, str) else [category] if category in categories else []
        if len(found) > 1:
            raise UsageError(
                f"category name '{category}' belongs to the ids {found}; list ids in --map {class_map.name}"
            )
        if not found and not class_map.shipped:
            raise UsageError(
                f"--map {class_map.name}: the annotations file has no category '{category}' (under {class_name})"
                + _closest(str(category), categories.values())
            )
        for number in found:
            if number in result:
                raise UsageError(
                    f"--map {class_map.name}: category {number} ({categories[number]}) is listed twice, by name and by "
                    f"id, under {result[number]} and {class_name}; keep one of them"
                )
            result[number] = class_name
    if not result:
        raise UsageError(
            f"none of the categories of --map {class_map.name} is in the annotations file; write an own map"
        )
    return result


def _pairs(class_map: ClassMap) -> Iterable[tuple[str, Category]]:
    return ((class_name, category) for class_name, listed in class_map.classes.items() for category in listed)


def _closest(wanted: str, names: Iterable[str]) -> str:
    """The ending of a message about an unknown name: the names most like it, or how to find one."""
    by_fold = {name.casefold(): name for name in sorted(names)}
    near = difflib.get_close_matches(wanted.casefold(), by_fold, n=3, cutoff=0.5)
    if not near:
        return f"; it has {', '.join(sorted(by_fold.values())[:12])}{' and more' if len(by_fold) > 12 else ''}"
    return f"; the closest are {', '.join(repr(by_fold[name]) for name in near)}"
