"""A policy and its ops in words."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from pipelines.augmentations import CODES, OPS, Op, value_text

NO_STRENGTH = "-"


def known_op(name: str) -> Op | None:
    """The op of that name, if this Tacopress has it."""
    return OPS[CODES[name]] if name in CODES else None


def signed_text(name: str, value: float | None) -> str:
    """A signed magnitude in words; None is a dash."""
    op = known_op(name)
    if value is None:
        return NO_STRENGTH
    return value_text(op, value) if op is not None else f"{value:+.3g}"


def strength_text(name: str, value: float | None) -> str:
    """A mean of magnitudes without their signs, in words; None is a dash."""
    op = known_op(name)
    if value is None:
        return NO_STRENGTH
    if op is None:
        return f"{value:.3g}"
    if op.unit.endswith("factor - 1"):
        return f"times 1 ± {value:.2f}"
    if op.unit.startswith("bits"):  # whole ones, but their mean is none
        return f"{value:.1f} bits"
    return value_text(op, value).lstrip("+")


def policy_text(policy: Any) -> str:  # noqa: ANN401 - whatever a manifest holds
    """A policy as it stands in a recipe, in words.

    Args:
        policy: A mapping with `name` and `turns`, a list with a list for each turn of what it chooses from: `op`,
            `range`, `probability`. Of anything else the name is all that is told.
    """
    if not isinstance(policy, Mapping):
        return str(policy)
    name = str(policy.get("name", "without a name"))
    try:
        turns = [(text, len(list(group))) for text, group in groupby(_turn_text(turn) for turn in policy["turns"])]
    except (KeyError, TypeError, ValueError):
        return name
    return f"{name}: {'; then '.join(text if times == 1 else f'{times} times {text}' for text, times in turns)}"


def _turn_text(turn: list[dict[str, Any]]) -> str:
    choices = [_choice_text(choice) for choice in turn]
    return choices[0] if len(choices) == 1 else f"one of {len(choices)} ops: {', '.join(choices)}"


def _choice_text(choice: dict[str, Any]) -> str:
    name = str(choice["op"])
    low, high = (float(value) for value in choice["range"])
    probability = float(choice["probability"])
    chance = "" if probability == 1.0 else f" (in {probability:.0%})"
    return f"{name}{_range_text(known_op(name), low, high)}{chance}"


def _range_text(op: Op | None, low: float, high: float) -> str:
    if op is not None and not op.has_value:
        return ""
    if op is not None and op.signed:
        return f" ±{high:.3g}" if low == 0 else f" ±{low:.3g} to {high:.3g}"
    return f" {low:.3g} to {high:.3g}"
