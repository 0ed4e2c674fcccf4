"""How much each channel matters: one number for everything that would go with it."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.channel_map.channel_map import ChannelMap, Layer
from compress.channel_map.unions import Ids
from pipelines.errors import UsageError

Importance = Literal["magnitude", "bn_scale", "lamp", "taylor", "random"]
Scores = NDArray[np.float64]


def importance(
    name: Importance,
    model: nn.Module,
    channels: ChannelMap,
    *,
    gradients: Sequence[Mapping[str, Tensor]] = (),
    seed: int = 0,
) -> dict[int, float]:
    """How much each channel that can go matters; comparable over the whole network, larger matters more.

    - `magnitude`: root of the sum of the squares of all weights that would go with it (Li et al. 2017, arXiv
      1608.08710; grouped as in DepGraph, Fang et al. 2023, arXiv 2301.12900), divided by the mean of its family.
    - `bn_scale`: mean |gamma| of its batch normalisations (Liu et al. 2017, arXiv 1708.06519), divided likewise; a
      family without any is as important as the mean.
    - `lamp`: its squared magnitude as a share of those in its family that are not smaller (Lee et al. 2021, arXiv
      2010.07611).
    - `taylor`: (sum of gradient · weight over all that reads it)², which is the change of the loss to first order if
      nobody listened to it any more, squared for each batch and averaged (Molchanov et al. 2019, arXiv 1906.10771);
      comparable as it is.
    - `random`: drawn, for comparison.

    Args:
        name: Which.
        model: The network.
        channels: Its channels.
        gradients: For `taylor`: of each batch, parameter path → gradient of its mean loss.
        seed: For `random`.

    Raises:
        UsageError: Weights of the network are no numbers.
    """
    found = _scores(name, model, channels, gradients, seed)
    if not all(math.isfinite(score) for score in found.values()):
        raise UsageError(
            "weights of the network are no finite numbers, so that nothing can be ranked by them; train again"
        )
    return found


def _scores(
    name: Importance, model: nn.Module, channels: ChannelMap, gradients: Sequence[Mapping[str, Tensor]], seed: int
) -> dict[int, float]:
    if name == "random":
        drawn = np.random.Generator(np.random.Philox(seed))
        members = np.concatenate(channels.families) if channels.families else np.zeros(0, np.int64)
        return dict(zip(members.tolist(), drawn.random(len(members)).tolist(), strict=True))
    if name == "taylor":
        return _taylor(model, channels, gradients)
    if name == "bn_scale":
        return _relative(channels, _scales(model, channels))
    squares = _sums(model, channels, lambda _, weight: weight.detach().square())
    if name == "magnitude":
        return _relative(channels, {channel: value**0.5 for channel, value in squares.items()})
    return _lamp(channels, squares)


def _taylor(model: nn.Module, channels: ChannelMap, gradients: Sequence[Mapping[str, Tensor]]) -> dict[int, float]:
    if not gradients:
        raise ValueError("taylor needs gradients")
    found = {channel: 0.0 for family in channels.families for channel in family.tolist()}
    for batch in gradients:
        changes: dict[int, float] = {}
        for path, layer in channels.layers.items():
            if layer.kind in ("convolution", "linear"):
                weight = model.get_parameter(f"{path}.weight").detach()
                _add(changes, layer.inputs, _by_input(weight * batch[f"{path}.weight"], layer))
        for channel in found:
            found[channel] += changes.get(channel, 0.0) ** 2 / len(gradients)
    return found


def _add(totals: dict[int, float], ids: Ids, values: Tensor) -> None:
    for channel, share in zip(ids.tolist(), values.double().tolist(), strict=True):
        totals[channel] = totals.get(channel, 0.0) + share


def _relative(channels: ChannelMap, values: Mapping[int, float]) -> dict[int, float]:
    """Each as a multiple of the mean of its family."""
    found: dict[int, float] = {}
    for family in channels.families:
        mine = {channel: values[channel] for channel in family.tolist() if channel in values}
        mean = sum(mine.values()) / len(mine) if mine else 0.0
        found |= {channel: mine.get(channel, mean) / mean if mean else 1.0 for channel in family.tolist()}
    return found


def _lamp(channels: ChannelMap, squares: Mapping[int, float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for family in channels.families:
        ranked = sorted(family.tolist(), key=lambda channel: squares.get(channel, 0.0))
        rest = sum(squares.get(channel, 0.0) for channel in ranked)
        for channel in ranked:
            own = squares.get(channel, 0.0)
            found[channel] = own / rest if rest > 0 else 0.0
            rest -= own
    return found


def _scales(model: nn.Module, channels: ChannelMap) -> dict[int, float]:
    """Mean |gamma| over the batch normalisations that a channel passes."""
    values: dict[int, list[float]] = {}
    for path, layer in channels.layers.items():
        module = model.get_submodule(path)
        if isinstance(module, _BatchNorm) and module.weight is not None:
            for channel, scale in zip(layer.outputs.tolist(), module.weight.detach().abs().tolist(), strict=True):
                values.setdefault(channel, []).append(scale)
    return {channel: float(np.mean(found)) for channel, found in values.items()}


def _sums(model: nn.Module, channels: ChannelMap, value: Callable[[str, Tensor], Tensor]) -> dict[int, float]:
    """Something of each weight, summed over the weights that would go with a channel."""
    totals: dict[int, float] = {}
    add = partial(_add, totals)
    for path, layer in channels.layers.items():
        module = model.get_submodule(path)
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        of_weight = value(f"{path}.weight", weight)
        add(layer.outputs, of_weight.flatten(1).sum(1) if of_weight.ndim > 1 else of_weight)
        if layer.kind in ("convolution", "linear"):
            add(layer.inputs, _by_input(of_weight, layer))
        if getattr(module, "bias", None) is not None:
            add(layer.outputs, value(f"{path}.bias", model.get_parameter(f"{path}.bias")))
    for name, (axis, ids) in channels.parameters.items():
        parameter = model.get_parameter(name)
        add(ids, value(name, parameter).movedim(axis, 0).reshape(len(ids), -1).sum(1))
    return totals


def _by_input(of_weight: Tensor, layer: Layer) -> Tensor:
    """Sums over the rows of each input channel: [out, in / groups, …] → [in]."""
    return torch.cat([part.transpose(0, 1).flatten(1).sum(1) for part in of_weight.chunk(layer.groups)])
