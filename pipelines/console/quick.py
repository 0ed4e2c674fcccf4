"""Plain options without the full parser, which takes longer to load than a small job takes to run.

Whatever is not plain (`--help`, a config file, nested options, wrong or missing values) is left to the full parser,
which then explains it; both give the same config.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")

_WORD = re.compile(r"[A-Za-z0-9_./][\w./+@-]*")
_NUMBER_LIKE = re.compile(r"[\d._eE+-]+|null|true|false|yes|no|on|off|~|none", re.IGNORECASE)
"""Words that YAML takes for something other than text."""
_INT, _FLOAT = re.compile(r"\d{1,15}"), re.compile(r"\d{1,9}(\.\d{1,9})?")


class _Unclear(Exception):
    """The full parser has to look at this."""


def plain_config(config_class: type[Config], argv: Sequence[str]) -> tuple[Config, bool] | None:
    """Read `--option value` pairs into a config.

    Args:
        config_class: A dataclass.
        argv: Words of the command line.

    Returns:
        The config and whether `--json` was given; None where the full parser has to look.
    """
    try:
        values, as_json = _values(config_class, list(argv))
    except _Unclear:
        return None
    return config_class(**values), as_json


def _values(config_class: type, words: list[str]) -> tuple[dict[str, Any], bool]:
    hints = typing.get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    values: dict[str, Any] = {}
    as_json = False
    while words:
        name, equals, text = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise _Unclear
        name = name[2:].replace("-", "_")
        if name == "json" and not equals:
            as_json = True
            continue
        if name not in fields or name in values:
            raise _Unclear
        if not equals:
            text = _next_word(words, is_switch=hints[name] is bool)
        values[name] = _value(hints[name], text)
    required = {name for name, field in fields.items() if _has_no_default(field)}
    if required - set(values):
        raise _Unclear
    return values, as_json


def _next_word(words: list[str], *, is_switch: bool) -> str:
    if words and not words[0].startswith("-"):
        return words.pop(0)
    if not is_switch:
        raise _Unclear
    return "true"


def _has_no_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, text: str) -> Any:  # noqa: ANN401 - a type in, one of its values out
    """A scalar of a type from its text."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        if len(arms) != 1:
            raise _Unclear
        (hint,) = arms
    if typing.get_origin(hint) is typing.Literal and text in typing.get_args(hint):
        return text
    if hint is bool and text in ("true", "false"):
        return text == "true"
    if hint is int and _INT.fullmatch(text):
        return int(text)
    if hint is float and _FLOAT.fullmatch(text):
        return float(text)
    if hint in (str, Path) and _WORD.fullmatch(text) and not _NUMBER_LIKE.fullmatch(text):
        return hint(text)
    raise _Unclear
