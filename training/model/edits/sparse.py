"""Weights that are zero and stay zero: nothing changes in the structure, but training keeps the zeros."""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from pipelines.console.words import names_in
from pipelines.errors import UsageError
from training.model.classifier import classifier_names
from training.model.edits.base import Edit, module_at

KIND = "sparse"
Pattern = Literal["unstructured", "2:4"]
Scope = Literal["global", "layer"]

GROUP, ZEROS = 4, 2
"""Of 2:4: so many neighbouring inputs, and how many of them are zero."""


def sparse(modules: Sequence[str], pattern: Pattern, sparsity: float) -> Edit:
    """The edit that says where weights were set to zero.

    The zeros themselves are in the file's weights.

    Args:
        modules: Paths of the modules whose `weight` has zeros that are to stay.
        pattern: Where zeros are: anywhere, or two of four neighbouring inputs.
        sparsity: Share of zeros that was asked for, 0 to 1.
    """
    return {"kind": KIND, "pattern": pattern, "sparsity": sparsity, "modules": list(modules)}


def keep(model: nn.Module, edit: Edit) -> None:
    """Carry out `sparse`: see that it fits, and leave the structure as it is.

    Raises:
        ValueError: It does not fit.
    """
    if edit["pattern"] not in get_args(Pattern):
        raise ValueError(f"there is no pattern {edit['pattern']!r}")
    for path in edit["modules"]:
        if own_weight(module_at(model, path)) is None:
            raise ValueError(f"{path} has no weight of two or more dimensions")


def own_weight(module: nn.Module) -> nn.Parameter | None:
    """The `weight` of a module, at least two-dimensional; None where there is none, or others make it up."""
    weight = module._parameters.get("weight")
    return weight if weight is not None and weight.ndim >= 2 else None


def sparse_weights(model: nn.Module, edits: Iterable[Edit]) -> dict[str, nn.Parameter]:
    """The weights whose zeros are to stay.

    Args:
        model: With the edits carried out.
        edits: Of its card; those of other kinds may have taken modules away, or replaced them.

    Returns:
        Module path → weight.
    """
    listed = {path for edit in edits if edit.get("kind") == KIND for path in edit["modules"]}
    found = {path: own_weight(module) for path, module in model.named_modules() if path in listed}
    return {path: weight for path, weight in found.items() if weight is not None}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which weights may go.

    Attributes:
        pattern: `unstructured`, or `2:4`: see `training.engine.sparsity.groups_of`.
        scope: `global` compares the weights of all layers with each other, `layer` those of one.
        layers: Patterns of module paths (`blocks.*`), with commas between; empty for all.
        depthwise: Prune depthwise convolutions too.
        classifier: Prune the classifier too.
    """

    pattern: Pattern = "unstructured"
    scope: Scope = "global"
    layers: str = ""
    depthwise: bool = False
    classifier: bool = False


def check_rule(rule: Rule, prefix: str) -> None:
    """Refuse words that mean nothing.

    Args:
        rule: From options.
        prefix: Before their names, for messages.

    Raises:
        UsageError: There is no such pattern or scope.
    """
    for name, value, known in (("pattern", rule.pattern, get_args(Pattern)), ("scope", rule.scope, get_args(Scope))):
        if value not in known:
            raise UsageError(f"{prefix}{name} must be {' or '.join(known)}, got {value}")


def prunable(model: nn.Module, rule: Rule) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """The weights that a rule may prune.

    Args:
        model: Any network.
        rule: Which of them.

    Returns:
        Module path → weight; and module path → why its weight is left alone.
    """
    chosen: dict[str, nn.Parameter] = {}
    skipped: dict[str, str] = {}
    heads, seen = classifier_names(model), set[int]()
    for path, module in model.named_modules():
        weight = own_weight(module)
        if weight is None:
            if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim >= 2:
                skipped[path] = "its weights are computed from others"
        elif reason := _reason(module, path, rule, heads):
            skipped[path] = reason
        elif id(weight) in seen:
            skipped[path] = "its weights are those of a layer before it"
        else:
            chosen[path] = weight
            seen.add(id(weight))
    return chosen, skipped


def _reason(module: nn.Module, path: str, rule: Rule, heads: tuple[str, ...]) -> str:
    """Why the weight of a module is left alone; empty if it is not."""
    patterns = names_in(rule.layers)
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return f"{type(module).__name__} is neither convolution nor linear"
    if isinstance(module, StdConv2d | StdConv2dSame | ScaledStdConv2d | ScaledStdConv2dSame):
        return "it standardises its weights, so zeros would not stay zero"
    if patterns and not any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
        return "no pattern of layers names it"
    if not rule.depthwise and isinstance(module, nn.Conv2d) and module.weight.shape[1] == 1 < module.groups:
        return "depthwise: few weights, most of them needed"
    if not rule.classifier and path in heads:
        return "the classifier"
    if rule.pattern == "2:4" and module.weight.shape[1] % GROUP:
        return f"2:4 needs a multiple of {GROUP} inputs, it has {module.weight.shape[1]}"
    return ""
