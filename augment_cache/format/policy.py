"""Policies as YAML: which ops a copy may get."""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pipelines.augmentations import CODES, OPS, Choice, Policy
from pipelines.errors import UsageError

POLICY_KEYS = {"description", "ops_per_copy", "ops"}
OP_KEYS = {"op", "range", "probability"}


def shipped_policies() -> list[str]:
    """Names of the policies that come with the package."""
    folder = resources.files("augment_cache") / "policies"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_policy(name: str) -> Policy:
    """Read a policy.

    Args:
        name: Name of a shipped policy, or path of a YAML file.

    Raises:
        UsageError: No such policy, or it says something that no policy can mean.
    """
    if name in shipped_policies():
        text = (resources.files("augment_cache") / "policies" / f"{name}.yaml").read_text(encoding="utf-8")
        return parse_policy(name, text, where=f"policy {name}")
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"policy {name!r} is neither a file nor one of the shipped policies ({', '.join(shipped_policies())})"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return parse_policy(path.stem, text, where=str(path))


def parse_policy(name: str, text: str, *, where: str) -> Policy:
    """Parse the YAML of a policy.

    Args:
        name: Name that the policy gets.
        text: The YAML.
        where: For error messages: what is being read.

    Raises:
        UsageError: Names the place and what is wrong there.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or not isinstance(value.get("ops"), list):
        raise UsageError(f"{where}: expected a mapping with a list `ops`")
    _refuse_unknown(value, POLICY_KEYS, where)
    try:
        choices = tuple(_choice(entry, f"{where}: ops[{index}]") for index, entry in enumerate(value["ops"]))
        return Policy(name, choices, _whole(value.get("ops_per_copy", 1)))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


def _whole(value: Any) -> int:  # noqa: ANN401 - whatever YAML holds
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"ops_per_copy must be a whole number, got {value!r}")
    return value


def _choice(entry: Any, where: str) -> Choice:  # noqa: ANN401 - whatever YAML holds
    if not isinstance(entry, dict) or "op" not in entry:
        raise UsageError(f"{where}: expected a mapping with a key `op`")
    _refuse_unknown(entry, OP_KEYS, where)
    name = entry["op"]
    if name not in CODES:
        raise UsageError(f"{where}: unknown op {name!r}; the ops are {', '.join(CODES)}")
    op = OPS[CODES[name]]
    low, high = entry.get("range", (op.low, op.high))
    return Choice(name, float(low), float(high), float(entry.get("probability", 1.0)))


def _refuse_unknown(value: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(str(key) for key in set(value) - known)
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(known))}")


def policy_as_dict(policy: Policy) -> dict[str, Any]:
    """A policy as plain values, with every default written out: what a manifest keeps and a fingerprint covers."""
    return {
        "name": policy.name,
        "ops_per_copy": policy.slots,
        "ops": [{"op": c.op, "range": [c.low, c.high], "probability": c.probability} for c in policy.choices],
    }
