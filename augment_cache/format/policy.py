"""Policies as YAML: which ops a copy may get, in which turn, how strongly, and which classes get more copies.

A policy file is a mapping with these keys; `ops`, `then` or both must be there:
    description: what it is, for people.
    ops_per_copy: turns over `ops`, one op after the other, drawn anew each time; 1 when absent.
    ops: what each of these turns chooses from, evenly. An op listed twice comes twice as often.
    level, levels: one strength for all of `ops`, as in RandAugment: every op without a `range` of its own gets exactly
        low + level / levels * (high - low), signed ops still either way. Level 0 is the weakest effect; without `level`
        the strength is drawn from the op's whole range. `levels` is 31 when absent.
    then: a turn for each op listed here, after those of `ops`, in this order.
    class_copies: class -> augmented copies of each of its samples, in place of the build's --copies.
`ops` and `then` list mappings of
    op: its name.
    range: [weakest, strongest] in the op's unit; the op's whole range when absent.
    probability: share of the copies that get the op once its turn has chosen it; 1 when absent.
"""

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from augment_cache.format.strict_yaml import load_yaml
from pipelines.augmentations import CODES, MOST_TURNS, OPS, Choice, Policy
from pipelines.errors import UsageError

POLICY_KEYS = ("description", "ops_per_copy", "ops", "level", "levels", "then", "class_copies")
OP_KEYS = ("op", "range", "probability")
LEVELS = 31
MOST_COPIES = 1000
_RANDAUGMENT = re.compile(r"randaugment-n(\d{1,3})-m(\d{1,3})", re.ASCII)
_FOLDER = resources.files("augment_cache") / "policies"
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


@dataclass(frozen=True)
class PolicyFile:
    """What a policy file says.

    Attributes:
        policy: What may happen to a copy.
        class_copies: Copies of the samples of a class, by its name, sorted; other classes get as many as the build
            says.
    """

    policy: Policy
    class_copies: Mapping[str, int] = field(default_factory=dict)


def shipped_policies() -> list[str]:
    """Names of the policies that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))


def load_policy(name: str) -> Policy:
    """What may happen to a copy; see `read_policy`."""
    return read_policy(name).policy


def read_policy(name: str) -> PolicyFile:
    """Read a policy.

    Args:
        name: Name of a shipped policy; `randaugment-nN-mM` for RandAugment with N ops per copy at level M of 31; or
            path of a YAML file.

    Raises:
        UsageError: No such policy, or it says something that no policy can mean.
    """
    if name in shipped_policies():
        return parse_policy(name, _shipped_text(name), where=f"policy {name}")
    if match := _RANDAUGMENT.fullmatch(name):
        turns, level = (int(digits) for digits in match.groups())
        # The shipped file's own text, so that the ops can never differ from it.
        values = {**load_yaml(_shipped_text("randaugment")), "ops_per_copy": turns, "level": level}
        return _policy_file(f"randaugment-n{turns}-m{level}", values, f"policy {name}")
    path = Path(name)
    try:
        if not path.is_file():
            raise UsageError(
                f"policy {name!r} is neither a file nor one of the shipped policies ({', '.join(shipped_policies())}), "
                f"nor randaugment-nN-mM (N ops per copy, 1 to {MOST_TURNS}, at level M, 0 to {LEVELS})"
            )
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"policy {name!r} cannot be read: {error.strerror}; give the path of a YAML file") from error
    return parse_policy(path.stem, text, where=str(path))


def _shipped_text(name: str) -> str:
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def parse_policy(name: str, text: str, *, where: str) -> PolicyFile:
    """Parse the YAML of a policy.

    Args:
        name: Name that the policy gets.
        text: The YAML.
        where: For error messages: what is being read.

    Raises:
        UsageError: Names the place and what is wrong there.
    """
    try:
        value = load_yaml(text)
    except ValueError as error:
        raise UsageError(f"{where}: not YAML that can be read: {error}") from error
    return _policy_file(name, value, where)


def _policy_file(name: str, value: Any, where: str) -> PolicyFile:  # noqa: ANN401 - whatever YAML holds
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a mapping with a list `ops`, a list `then` or both, got {_shown(value)}")
    _refuse_unknown(value, POLICY_KEYS, where)
    for key in ("ops", "then"):
        if key in value and not isinstance(value[key], list):
            wrong = f"`{key}` is {_shown(value[key])}"
            raise UsageError(f"{where}: expected a mapping with a list `ops`, a list `then` or both, but {wrong}")
    if not isinstance(value.get("description", ""), str):
        raise UsageError(f"{where}: description must be a text, got {_shown(value['description'])}; put it in quotes")
    turns = _common_turns(value, where) + _own_turns(value, where)
    try:
        return PolicyFile(Policy(name, turns), _class_copies(value, where))
    except ValueError as error:
        raise UsageError(f"{where}: {error}; shorten `then` or lower ops_per_copy") from error


def _common_turns(value: dict[str, Any], where: str) -> tuple[tuple[Choice, ...], ...]:
    """The turns over `ops`."""
    if "ops" not in value:
        for key in ("ops_per_copy", "level", "levels"):
            if key in value:
                raise UsageError(
                    f"{where}: expected a mapping with a list `ops`, since {key} is about it; add it or leave {key} out"
                )
        return ()
    if not value["ops"]:
        raise UsageError(f"{where}: ops offers no op; list some there or leave the key out")
    turns = _whole(value.get("ops_per_copy", 1), 1, MOST_TURNS, f"{where}: ops_per_copy")
    strength = _strength(value, where)
    choices = tuple(_choice(entry, f"{where}: ops[{index}]", strength) for index, entry in enumerate(value["ops"]))
    return (choices,) * turns


def _own_turns(value: dict[str, Any], where: str) -> tuple[tuple[Choice, ...], ...]:
    """The turns of `then`."""
    if "then" not in value and "ops" not in value:
        raise UsageError(f"{where}: expected a mapping with a list `ops`, a list `then` or both, but neither is there")
    entries = value.get("then", [])
    if "then" in value and not entries:
        raise UsageError(f"{where}: then offers no op; list some there or leave the key out")
    return tuple((_choice(entry, f"{where}: then[{index}]", None),) for index, entry in enumerate(entries))


def _strength(value: dict[str, Any], where: str) -> float | None:
    """The common strength as a share of each op's range; None if it is drawn."""
    if "level" not in value:
        if "levels" in value:
            raise UsageError(f"{where}: levels says what level is counted in, but level is missing; add it")
        return None
    levels = _number(value.get("levels", LEVELS), f"{where}: levels")
    if not levels > 0.0:
        raise UsageError(f"{where}: levels must be more than 0, got {levels:g}; RandAugment has {LEVELS}")
    if value["level"] is None:
        raise UsageError(
            f"{where}: level must be a number, got null; write 0 for the weakest effect, or leave level out so that "
            "strengths are drawn"
        )
    level = _number(value["level"], f"{where}: level")
    if not 0.0 <= level <= levels:
        raise UsageError(f"{where}: level must be 0 (weakest) to {levels:g} (strongest), got {level:g}")
    return level / levels


def _choice(entry: Any, where: str, strength: float | None) -> Choice:  # noqa: ANN401 - whatever YAML holds
    if not isinstance(entry, dict) or "op" not in entry:
        raise UsageError(f"{where}: expected a mapping with a key `op`, got {_shown(entry)}")
    _refuse_unknown(entry, OP_KEYS, where)
    name = entry["op"]
    if not isinstance(name, str) or name not in CODES:
        raise UsageError(f"{where}: unknown op {_shown(name)}; the ops are {', '.join(CODES)}")
    op = OPS[CODES[name]]
    low, high = op.low, op.high
    if "range" in entry:
        low, high = _range(entry["range"], f"{where}: {name}: range")
    elif strength is not None:
        low = high = op.low + strength * (op.high - op.low)
    probability = _number(entry.get("probability", 1.0), f"{where}: {name}: probability must be in [0, 1] and")
    try:
        return Choice(name, low, high, probability)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _range(value: Any, where: str) -> tuple[float, float]:  # noqa: ANN401 - whatever YAML holds
    if not isinstance(value, list) or len(value) != 2:
        raise UsageError(f"{where} must be two numbers, [weakest, strongest], got {_shown(value)}")
    low, high = (_number(number, f"{where}[{index}]") for index, number in enumerate(value))
    return low, high


def _number(value: Any, where: str) -> float:  # noqa: ANN401 - whatever YAML holds
    """A finite number."""
    if isinstance(value, str) and _is_number(value):  # quoted, or 1e-3: YAML's own numbers have a point
        raise UsageError(
            f"{where} must be a number, got the text {_shown(value)}; write it without quotes and, if it has an "
            "exponent, with a point and a sign, such as 1.0e-3"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{where} must be a number, got {_shown(value)}; write one, such as 0.5")
    if not abs(value) < 1e300 or not math.isfinite(value):
        raise UsageError(f"{where} must be a finite number, got {_shown(value)}; write one, such as 0.5")
    return float(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _whole(value: Any, least: int, most: int, where: str) -> int:  # noqa: ANN401 - whatever YAML holds
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{where} must be {least} to {most}, got {_shown(value)}; write a whole number of that range")
    return value


def _class_copies(value: dict[str, Any], where: str) -> dict[str, int]:
    entries = value.get("class_copies", {})
    if not isinstance(entries, dict):
        raise UsageError(f"{where}: class_copies must be a mapping of classes to copies, got {_shown(entries)}")
    for name in entries:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise UsageError(f"{where}: class_copies: {_shown(name)} is no name of a class; put the name in quotes")
    copies = {
        name: _whole(number, 0, MOST_COPIES, f"{where}: class_copies: {name}") for name, number in entries.items()
    }
    return dict(sorted(copies.items()))


def _refuse_unknown(value: dict[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in value:
        if key not in known:
            raise UsageError(f"{where}: unknown key {_shown(key)}; the keys are {', '.join(known)}")


def _shown(value: Any) -> str:  # noqa: ANN401 - whatever YAML holds
    """A value as Python would write it, cut short: a YAML file of a few lines can hold one of gigabytes."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python refuses to write out whole numbers of thousands of digits
        return "a number of thousands of digits"


def policy_as_dict(policy: Policy) -> dict[str, Any]:
    """A policy as plain values, with every default written out: what a manifest keeps and a fingerprint covers.

    Returns:
        Keys: `name`; `turns`, a list with a list for each turn of what it chooses from: `op`, `range` [weakest,
        strongest], `probability`.
    """
    return {"name": policy.name, "turns": [[_as_dict(choice) for choice in turn] for turn in policy.turns]}


def policy_from_dict(value: dict[str, Any]) -> Policy:
    """The inverse of `policy_as_dict`.

    Raises:
        KeyError, TypeError, ValueError: It is not what `policy_as_dict` returns.
    """
    turns = [
        [Choice(e["op"], float(e["range"][0]), float(e["range"][1]), float(e["probability"])) for e in turn]
        for turn in value["turns"]
    ]
    return Policy(str(value["name"]), tuple(tuple(turn) for turn in turns))


def _as_dict(choice: Choice) -> dict[str, Any]:
    return {
        "op": choice.op,
        "range": [float(choice.low), float(choice.high)],
        "probability": float(choice.probability),
    }


def write_policy(policy_file: PolicyFile, description: str) -> str:
    """A policy as YAML, with every default written out.

    Args:
        policy_file: What to write. Its policy's name is not written: a policy is called as its file is.
        description: What it is, for people.

    Returns:
        YAML that `read_policy` reads as an equal `PolicyFile`, from a file of the policy's name.

    Raises:
        UsageError: No file can say this: two turns offer several ops each and not the same ones, a turn of several
            comes after one of a single op, or a class's name or copies are impossible.
    """
    policy = policy_file.policy
    first = policy.turns[0]
    common = list(takewhile(lambda turn: len(first) > 1 and turn == first, policy.turns))
    own = policy.turns[len(common) :]
    values: dict[str, Any] = {"description": description}
    if common:
        values |= {"ops_per_copy": len(common), "ops": [_as_dict(choice) for choice in first]}
    if own:
        values["then"] = [_as_dict(choice) for turn in own for choice in turn]
    if policy_file.class_copies:
        values["class_copies"] = {
            name: int(policy_file.class_copies[name]) for name in sorted(policy_file.class_copies)
        }
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    if parse_policy(policy.name, text, where=f"policy {policy.name}") != policy_file:
        raise UsageError(
            f"policy {policy.name!r} cannot be written as a file: its turns must first all choose from the same ops, "
            "then have one op each; reorder or split the others"
        )
    return text
