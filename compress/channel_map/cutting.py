"""From the channels that stay to the edit that keeps them, and to the network that it has to equal."""

import copy

import numpy as np
import torch
from torch import nn

from compress.channel_map.channel_map import ChannelMap, Shuffle
from compress.channel_map.unions import Ids
from training.model.edits.base import Edit
from training.model.edits.channels import Kept, kept_channels
from training.model.edits.reorder import Reorder


def edit_that_keeps(channels: ChannelMap, kept: Ids, model: nn.Module) -> Edit:
    """The edit that leaves these channels, and those that cannot go.

    Args:
        channels: Of the network.
        kept: From `compress.channel_map.choose.choose`.
        model: The network.
    """
    alive = channels.alive(kept)
    layers: dict[str, tuple[Kept | None, Kept | None]] = {
        path: (
            np.isin(layer.inputs, alive) if layer.kind in ("convolution", "linear") else None,
            np.isin(layer.outputs, alive),
        )
        for path, layer in channels.layers.items()
    }
    parameters = {name: (axis, np.isin(ids, alive)) for name, (axis, ids) in channels.parameters.items()}
    orders = {
        path: _thinned(shuffle, alive)
        for path, shuffle in channels.shuffles.items()
        if not _still_right(model.get_submodule(path), _thinned(shuffle, alive))
    }
    return kept_channels(layers, parameters, orders)


def masked_twin(channels: ChannelMap, kept: Ids, model: nn.Module) -> nn.Module:
    """A copy of the whole network in which nobody listens to the channels that go: their columns are zero.

    Args:
        channels: Of the network.
        kept: As in `edit_that_keeps`.
        model: The network.
    """
    alive, twin = channels.alive(kept), copy.deepcopy(model)
    with torch.no_grad():
        for path, layer in channels.layers.items():
            if layer.kind not in ("convolution", "linear"):
                continue
            module = twin.get_submodule(path)
            weight: torch.Tensor = module.weight  # type: ignore[assignment]
            deaf = torch.from_numpy(~np.isin(layer.inputs, alive))
            for rows, columns in zip(weight.chunk(layer.groups), deaf.chunk(layer.groups), strict=True):
                rows[:, columns] = 0
    return twin


def _thinned(shuffle: Shuffle, alive: Ids) -> list[int]:
    """The order of a shuffle over the channels that are left."""
    stays = np.isin(shuffle.inputs, alive)
    new_place = np.cumsum(stays) - 1
    return [int(new_place[source]) for source in shuffle.order.tolist() if stays[source]]


def _still_right(module: nn.Module, order: list[int]) -> bool:
    """Whether a module that reorders gives that order by itself."""
    if isinstance(module, Reorder):
        return module.index.tolist() == order
    numbers = torch.arange(len(order), dtype=torch.float32).reshape(1, -1, 1, 1)
    try:
        with torch.no_grad():
            found = module(numbers)
    except (RuntimeError, ValueError, AssertionError):
        return False
    return isinstance(found, torch.Tensor) and found.ravel().tolist() == [float(place) for place in order]
