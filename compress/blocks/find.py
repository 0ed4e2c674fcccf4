"""Find the blocks that can be taken out of a network: what comes in could go out as it is."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from compress.blocks.watch import Call, watch
from training.measure.macs import MacsReport, count_macs
from training.model.edits.apply import apply_edits
from training.model.edits.remove import removed

Units = Literal["residual", "any"]
UNITS = get_args(Units)
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A block that can be removed.

    Attributes:
        path: Of the module.
        type_name: Its class.
        macs: What it costs for one image.
    """

    path: str
    type_name: str
    macs: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found.

    Attributes:
        units: By path, in the order of the modules.
        skipped: Path of each block that has to stay → why.
        macs: Of the whole network.
    """

    units: Mapping[str, Unit]
    skipped: Mapping[str, str]
    macs: int


def find_units(model: nn.Module, size: int, units: Units = "residual") -> Found:
    """Find what can be removed, whatever its class is called: the network is run and watched.

    Args:
        model: On the CPU; it is left as it is.
        size: Side of the images, px.
        units: `residual` takes modules that add their input to what they compute, the outermost of nested ones; `any`
            every module that costs something and keeps the shape, stages and their parts alike.

    Raises:
        UncountableError: The meter refuses the network.
    """
    cost = count_macs(model, size)
    twin = copy.deepcopy(model).eval()
    calls = watch(twin, size)
    modules = dict(twin.named_modules())
    prices = {path: _macs(cost, path) for path in calls}
    residual = _residual(calls)
    wanted = residual if units == "residual" else _shape_preserving(calls, prices, residual, modules)
    shared = _shared(twin)
    skipped = {path: reason for path in wanted if (reason := _obstacle(path, calls[path], prices[path], shared))}
    skipped |= _cannot_go(twin, [path for path in wanted if path not in skipped], size)
    free = {path for path in wanted if path not in skipped}
    kept = {
        path: Unit(path=path, type_name=type(module).__name__, macs=prices[path])
        for path, module in modules.items()
        if path in free
    }
    return Found(units=kept, skipped=skipped | _others(calls, prices, modules, (*kept, *skipped)), macs=cost.macs)


def inside(path: str, outer: str) -> bool:
    """Whether a module lies within another one."""
    return path.startswith(f"{outer}.")


@contextmanager
def bypassed(model: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """Let modules return what they are given, without running them, while this lasts."""
    modules = [model.get_submodule(path) for path in paths]
    bypass(modules)
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def bypass(modules: Iterable[nn.Module]) -> None:
    """Let modules return what they are given."""
    for module in modules:
        module.forward = _give_back  # found before that of the class


def _give_back(images: Tensor) -> Tensor:
    return images


def _residual(calls: Mapping[str, Call]) -> list[str]:
    found = [path for path, call in calls.items() if call.residual and call.keeps_shape]
    return [path for path in found if not any(inside(path, other) for other in found)]


def _shape_preserving(
    calls: Mapping[str, Call], prices: Mapping[str, int], residual: list[str], modules: Mapping[str, nn.Module]
) -> list[str]:
    """All that keep the shape and cost something; of those that cost the same, one within the other, only one."""
    found = [path for path, call in calls.items() if call.keeps_shape and prices[path] and path in modules]

    def stands_for(path: str) -> str:
        alike = [p for p in found if prices[p] == prices[path] and (p == path or inside(p, path) or inside(path, p))]
        units = [p for p in alike if p in residual]
        return min(units or alike, key=len)

    return [path for path in found if stands_for(path) == path and not _only_of_units(path, prices, residual)]


def _only_of_units(path: str, prices: Mapping[str, int], residual: list[str]) -> bool:
    """Whether a stage is nothing but units that can be removed one by one."""
    units = [unit for unit in residual if inside(unit, path)]
    return bool(units) and sum(prices[unit] for unit in units) == prices[path]


def _macs(cost: MacsReport, path: str) -> int:
    return sum(layer.macs for layer in cost.layers if layer.path == path or inside(layer.path, path))


def _shared(model: nn.Module) -> dict[str, str]:
    """Path of each module that stands in several places → another one of them."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if id(module) in first:
            shared[first[id(module)]] = path
        first.setdefault(id(module), path)
    return shared


def _obstacle(path: str, call: Call, macs: int, shared: Mapping[str, str]) -> str:
    """Why a block has to stay; empty if nothing is known against removing it."""
    if path in shared:
        return f"is the same module as {shared[path]}"
    if call.count > 1:
        return f"runs {call.count} times for one image"
    if call.outside:
        return "parts of it run without it"
    return "" if macs else "costs no multiply-accumulates"


def _cannot_go(model: nn.Module, paths: list[str], size: int) -> dict[str, str]:
    """Try each: a network that reads a block's attributes runs no more, or runs otherwise, once the block is gone."""
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    reasons: dict[str, str] = {}
    for path in paths:
        with torch.inference_mode(), bypassed(model, [path]):
            expected = model(images)
        without = copy.deepcopy(model)
        apply_edits(without, [removed(path)], path)
        try:
            with torch.inference_mode():
                answers = without(images)
        except Exception as error:  # whatever a network does with what is no longer there
            reasons[path] = f"the network reads it besides running it ({error})"
            continue
        if not torch.allclose(answers, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            reasons[path] = "the network uses it besides running it"
    return reasons


def _others(
    calls: Mapping[str, Call], prices: Mapping[str, int], modules: Mapping[str, nn.Module], known: tuple[str, ...]
) -> dict[str, str]:
    """The outermost blocks that cost something, with no unit in them, nor in one; and why they are none."""
    reasons: dict[str, str] = {}
    nearly = [path for path in modules if path in calls and calls[path].adds]  # more telling than what they stand in
    for path in (*nearly, *modules):
        module = modules[path]
        if not prices.get(path) or not calls[path].count or _is_stage(module) or not list(module.children()):
            continue
        if not any(other == path or inside(other, path) or inside(path, other) for other in (*known, *reasons)):
            reasons[path] = _why_not(calls[path])
    return reasons


def _is_stage(module: nn.Module) -> bool:
    """Whether what is to be said of a module is to be said of the blocks in it."""
    return isinstance(module, nn.Sequential) and all(list(child.children()) for child in module)


def _why_not(call: Call) -> str:
    if call.input is None or call.output is None:
        return "does not take one tensor and give one"
    if call.input != call.output:
        return f"makes {_shape(call.output)} of {_shape(call.input)}"
    return "does not add its input to what comes out" if not call.adds else "goes on after adding its input"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[1:]))
