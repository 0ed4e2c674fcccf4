"""How the cost of a model grows with the size of its images: in steps, and the best sizes sit right before one."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from pipelines.errors import UsageError
from training.measure.macs import UncountableError, count_macs
from training.model.replace import replace_module

_FREE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)
"""Modules that count 0 and leave the shape as it is."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One image size.

    Args:
        size: Side, px.
        macs: Multiply-accumulates; None where the model cannot take the size.
        growth: How much more the next size costs, as a share of this one; None where one of the two is unknown.
        best: Whether the next size costs so much more that this one is a good choice.
    """

    size: int
    macs: int | None
    growth: float | None
    best: bool


def staircase(
    model: nn.Module, sizes: Sequence[int], threshold: float, done: Callable[[int], object] = lambda count: None
) -> tuple[Step, ...]:
    """Count a model at a range of image sizes.

    Args:
        model: Left as it is; it is counted without its weights.
        sizes: Sides in px, rising one by one; one more than the last is counted too, to see the step behind it.
        threshold: Growth from one size to the next above which the smaller one is a good choice.
        done: Called with 1 for each size that was counted.

    Raises:
        UsageError: The model takes none of the sizes.
    """
    weightless = _weightless(model, sizes)
    costs: list[int | None] = []
    for size in (*sizes, sizes[-1] + 1):
        costs.append(_cost(weightless, size))
        done(1)
    if not any(costs):
        count_macs(model, sizes[-1])  # its own error, if nothing can be counted at all
        raise UsageError(f"the model takes no image of {sizes[0]} to {sizes[-1]} px; choose larger sizes")
    return tuple(make_steps(sizes, costs, threshold))


def make_steps(sizes: Sequence[int], costs: Sequence[int | None], threshold: float) -> list[Step]:
    """Say which sizes stand right before a step.

    Args:
        sizes: Sides in px, rising one by one.
        costs: MACs at each size and at one more; None where the model cannot take it.
        threshold: Growth above which a size is good.
    """
    steps = []
    for size, macs, after in zip(sizes, costs, costs[1:], strict=False):
        growth = None if not macs or after is None else after / macs - 1
        steps.append(Step(size=size, macs=macs, growth=growth, best=growth is not None and growth > threshold))
    return steps


def _cost(model: nn.Module, size: int) -> int | None:
    try:
        return count_macs(model, size).macs
    except UncountableError:
        return None


def _weightless(model: nn.Module, sizes: Sequence[int]) -> nn.Module:
    """A twin that is counted faster and costs the same, which is tried out at the largest size.

    Without data nothing is computed, and without what counts 0 more than half of the operators are gone.
    """
    light = copy.deepcopy(model).to("meta")
    for path, module in list(light.named_modules()):
        if isinstance(module, _FREE):
            replace_module(light, path, nn.Identity())
    return light if _cost(light, sizes[-1]) == _cost(model, sizes[-1]) else model
