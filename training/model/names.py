"""What can be named: models of timm, definitions that come with Tacopress, models of pytorchcv, YAML files."""

import difflib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import timm

from pipelines.errors import UsageError
from training.model.cv_models import cv_names, is_seed_name
from training.model.summed import PREFIX
from training.model.zoo.schema import read_definition

Origin = Literal["timm", "yaml", "seed", "pytorchcv", "sum"]

DEFINITIONS = Path(__file__).parent / "definitions"
YAML_ENDINGS = (".yaml", ".yml")


@lru_cache(maxsize=1)
def timm_names() -> frozenset[str]:
    """Every architecture of the installed timm."""
    return frozenset(timm.list_models())


@lru_cache(maxsize=1)
def shipped_names() -> tuple[str, ...]:
    """Definitions that come with Tacopress."""
    return tuple(sorted(path.stem for path in DEFINITIONS.glob("*.yaml")))


def resolve(name: str) -> tuple[Origin, str]:
    """Say what a name means.

    A path that ends in .yaml or .yml is a definition. `timm:NAME`, `yaml:NAME` and `pytorchcv:NAME` say where to look;
    without that timm is asked first, then the definitions that come with Tacopress, the seed network, and pytorchcv.
    `sum:A+B` adds up the logits of two of them.

    Returns:
        Where it comes from, and the bare name or path.

    Raises:
        UsageError: Nobody knows the name.
    """
    if name.startswith(PREFIX):
        return "sum", name.removeprefix(PREFIX)
    if name.endswith(YAML_ENDINGS):
        return "yaml", name
    origin, colon, bare = name.partition(":")
    if not colon:
        origin, bare = "", name
    elif origin not in ("timm", "yaml", "pytorchcv"):
        raise UsageError(
            f"unknown model {name!r}: before the colon stands timm, yaml, pytorchcv or sum; write one of those"
        )
    if origin in ("", "timm") and bare in timm_names():
        return "timm", bare
    if origin in ("", "yaml") and bare in shipped_names():
        return "yaml", str(DEFINITIONS / f"{bare}.yaml")
    if origin in ("", "pytorchcv") and is_seed_name(bare):
        return "seed", bare
    if origin in ("", "pytorchcv") and bare in cv_names():
        return "pytorchcv", bare
    raise UsageError(f"unknown model {name!r}{_near_misses(bare)}; python -m training.models lists what can be named")


def definition_of(name: str) -> dict[str, Any] | None:
    """What a model file must hold to rebuild the model without the YAML file: plain JSON values.

    Args:
        name: As `create_model` takes it.

    Returns:
        The definition; None for a model that its name alone rebuilds.

    Raises:
        UsageError: Nobody knows the name, or the YAML is wrong.
    """
    origin, bare = resolve(name)
    return read_definition(Path(bare)) if origin == "yaml" else None


def _near_misses(name: str) -> str:
    known = [*timm_names(), *shipped_names(), *cv_names()]
    close = difflib.get_close_matches(name, sorted(set(known)), n=3)
    return f" (did you mean {', '.join(close)}?)" if close else ""
