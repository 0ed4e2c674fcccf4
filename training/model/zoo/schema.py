"""The form of a definition: which keys, which types; read from YAML, and returned as plain JSON values."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augment_cache.format.strict_yaml import load_yaml
from pipelines.errors import UsageError

KEYS = ("input_channel", "depth_multiple", "width_multiple", "backbone", "INPUT_SIZE")
MAX_LINES, MAX_REPEAT = 1000, 256


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the backbone.

    Args:
        index: Its place, from 0.
        repeat: How often, before the depth multiple.
        module: Name of the module.
        args: Its arguments, unchecked.
    """

    index: int
    repeat: int
    module: str
    args: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A definition whose form is right; its modules and arguments are looked at when it is built.

    Args:
        source: Where it comes from, for messages.
        depth: Multiple on repeats.
        width: Multiple on channels.
        lines: The backbone.
        input_size: Side of the images it was made for, px; None if it does not say.
    """

    source: str
    depth: float
    width: float
    lines: tuple[Line, ...]
    input_size: int | None

    def error(self, line: Line, problem: str) -> UsageError:
        """What is wrong with a line, ready to raise."""
        return UsageError(f"{self.source}: backbone[{line.index}] {line.module}: {problem}")


def read_definition(path: Path) -> dict[str, Any]:
    """Read a definition from a YAML file.

    Returns:
        Plain JSON values, as written; `parse_definition` has found their form right.

    Raises:
        UsageError: The file is missing, no YAML, or no definition.
    """
    try:
        value = load_yaml(path.read_bytes())
    except OSError as error:
        raise UsageError(f"model definition {path} cannot be read ({error.strerror}); give a .yaml file") from error
    except ValueError as error:
        raise UsageError(f"model definition {path} is no YAML: {error}") from error
    parse_definition(value, str(path))
    return dict(value)


def parse_definition(value: object, source: str) -> Definition:
    """Check the form of a definition.

    Args:
        value: What the YAML or the model file holds.
        source: Where it comes from, for messages.

    Raises:
        UsageError: A key or type is wrong; the message names the place and the cure.
    """
    if not isinstance(value, dict) or "backbone" not in value:
        raise UsageError(f"{source}: a model definition is a mapping with the key backbone; see the shipped ones")
    unknown = [str(key) for key in value if key not in KEYS]
    if unknown:
        raise UsageError(f"{source}: unknown key {unknown[0]!r}; a model definition has {', '.join(KEYS)}")
    if value.get("input_channel", 3) != 3 or isinstance(value.get("input_channel"), float):
        raise UsageError(f"{source}: input_channel must be 3, the colours of an image, not {value['input_channel']!r}")
    lines = value["backbone"]
    if not isinstance(lines, list) or not 1 <= len(lines) <= MAX_LINES:
        raise UsageError(f"{source}: backbone must be a list of 1 to {MAX_LINES} lines [repeat, module, args]")
    return Definition(
        source=source,
        depth=_multiple(value, "depth_multiple", source),
        width=_multiple(value, "width_multiple", source),
        lines=tuple(_line(index, line, source) for index, line in enumerate(lines)),
        input_size=_input_size(value.get("INPUT_SIZE"), source),
    )


def _multiple(value: dict[str, Any], key: str, source: str) -> float:
    number = value.get(key, 1.0)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= 16:
        raise UsageError(f"{source}: {key} must be a number above 0 and up to 16, not {number!r}")
    return float(number)


def _input_size(value: object, source: str) -> int | None:
    side = value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value
    if side is None:
        return None
    if isinstance(side, bool) or not isinstance(side, int) or not 4 <= side <= 4096:
        raise UsageError(f"{source}: INPUT_SIZE must be a side from 4 to 4096 px (or twice the same), not {value!r}")
    return side


def _line(index: int, line: object, source: str) -> Line:
    where = f"{source}: backbone[{index}]"
    if not isinstance(line, list) or len(line) != 3:
        raise UsageError(f"{where} must be [repeat, module, args], not {line!r}")
    repeat, module, args = line
    if isinstance(repeat, bool) or not isinstance(repeat, int) or not 1 <= repeat <= MAX_REPEAT:
        raise UsageError(f"{where}: repeat must be a whole number from 1 to {MAX_REPEAT}, not {repeat!r}")
    if not isinstance(module, str):
        raise UsageError(f"{where}: the module must be a name, not {module!r}")
    if not isinstance(args, list):
        raise UsageError(f"{where} {module}: the arguments must be a list, [] for none, not {args!r}")
    if not all(_plain(value) for value in args):
        raise UsageError(f"{where} {module}: arguments are numbers, names, true, false, null or lists of numbers")
    return Line(index=index, repeat=repeat, module=module, args=tuple(args))


def _plain(value: object) -> bool:
    """Whether JSON can hold it, so that a model file can."""
    if isinstance(value, list):
        return all(_plain(item) and not isinstance(item, list) for item in value)
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
