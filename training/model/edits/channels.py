"""Cut channels: rows and columns of weights go, and with them everything that belongs to their channels."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.model.edits.base import Edit, module_at
from training.model.edits.bits import from_text, to_text
from training.model.edits.reorder import Reorder
from training.model.replace import replace_module

KIND = "channels"

Kept = NDArray[np.bool_]


def kept_channels(
    layers: Mapping[str, tuple[Kept | None, Kept | None]],
    parameters: Mapping[str, tuple[int, Kept]],
    orders: Mapping[str, Sequence[int]],
) -> Edit:
    """The edit that keeps some channels.

    Args:
        layers: Module path → which of its inputs and outputs are kept, bool [n]; None keeps all. Of a normalisation
            only the outputs count.
        parameters: Path of a parameter of another module → dimension, and what of it is kept.
        orders: Path of a module that only puts channels into another order → that order after the cut.
    """
    texts: list[str] = []

    def number(kept: Kept | None) -> int | None:
        if kept is None or kept.all():
            return None
        text = to_text(kept)
        if text not in texts:
            texts.append(text)
        return texts.index(text)

    numbered = {path: [number(kept) for kept in sides] for path, sides in layers.items()}
    return {
        "kind": KIND,
        "layers": {path: sides for path, sides in numbered.items() if sides != [None, None]},
        "parameters": {path: [axis, number(kept)] for path, (axis, kept) in parameters.items() if not kept.all()},
        "orders": {path: list(order) for path, order in orders.items()},
        "masks": texts,
    }


def masks_of(edit: Edit, path: str) -> tuple[Kept | None, Kept | None]:
    """Which inputs and outputs of a layer an edit keeps; None for all."""
    first, second = (
        None if number is None else from_text(edit["masks"][number]) for number in edit["layers"].get(path, [None] * 2)
    )
    return first, second


def cut(model: nn.Module, edit: Edit) -> None:
    """Carry out `kept_channels`.

    Raises:
        ValueError: It does not fit.
    """
    for path in edit["layers"]:
        inputs, outputs = masks_of(edit, path)
        module = module_at(model, path)
        if isinstance(module, nn.Conv2d):
            _cut_convolution(module, inputs, outputs)
        elif isinstance(module, nn.Linear):
            _cut_linear(module, inputs, outputs)
        elif isinstance(module, _BatchNorm | nn.PReLU) and outputs is not None:
            _cut_per_channel(module, outputs)
        else:
            raise ValueError(f"{path} is a {type(module).__name__}, whose channels cannot be cut")
    for name, (axis, number) in edit["parameters"].items():
        owner, _, leaf = name.rpartition(".")
        home = module_at(model, owner) if owner else model
        _set(home, leaf, _picked(getattr(home, leaf), axis, from_text(edit["masks"][number])))
    for path, order in edit["orders"].items():
        module_at(model, path)
        replace_module(model, path, Reorder(order))


def picked_weight(weight: Tensor, groups: int, inputs: Kept | None, outputs: Kept | None) -> Tensor:
    """Rows and columns of the weight of a convolution.

    Args:
        weight: [out, in / groups, …].
        groups: Of the convolution.
        inputs: bool [in]; of a depthwise convolution it is not looked at.
        outputs: bool [out].

    Raises:
        ValueError: The groups would become unequal.
    """
    rows = np.ones(len(weight), bool) if outputs is None else outputs
    if len(rows) != len(weight):
        raise ValueError(f"{len(rows)} channels are named of {len(weight)}")
    if inputs is None or weight.shape[1] == 1 < groups:
        return _picked(weight, 0, rows)
    if len(inputs) != weight.shape[1] * groups:
        raise ValueError(f"{len(inputs)} channels are named of {weight.shape[1] * groups}")
    parts = [
        _picked(_picked(part, 0, own), 1, columns)
        for part, own, columns in zip(
            weight.chunk(groups), np.split(rows, groups), np.split(inputs, groups), strict=True
        )
    ]
    if len({part.shape for part in parts}) > 1:
        raise ValueError("the groups of a convolution would become unequal")
    return torch.cat(parts)


def _cut_convolution(layer: nn.Conv2d, inputs: Kept | None, outputs: Kept | None) -> None:
    depthwise = layer.groups > 1 and layer.weight.shape[1] == 1
    multiplier = layer.out_channels // layer.groups
    _set(layer, "weight", picked_weight(layer.weight, layer.groups, inputs, outputs))
    if layer.bias is not None and outputs is not None:
        _set(layer, "bias", _picked(layer.bias, 0, outputs))
    layer.out_channels = len(layer.weight)
    if depthwise:
        layer.groups = layer.out_channels // multiplier
    layer.in_channels = layer.weight.shape[1] * layer.groups


def _cut_linear(layer: nn.Linear, inputs: Kept | None, outputs: Kept | None) -> None:
    _set(layer, "weight", picked_weight(layer.weight, 1, inputs, outputs))
    if layer.bias is not None and outputs is not None:
        _set(layer, "bias", _picked(layer.bias, 0, outputs))
    layer.out_features, layer.in_features = layer.weight.shape


def _cut_per_channel(layer: _BatchNorm | nn.PReLU, outputs: Kept) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, name, None) is not None:
            _set(layer, name, _picked(getattr(layer, name), 0, outputs))
    name = "num_features" if isinstance(layer, _BatchNorm) else "num_parameters"
    setattr(layer, name, int(outputs.sum()))


def _picked(tensor: Tensor, axis: int, kept: Kept) -> Tensor:
    if len(kept) != tensor.shape[axis]:
        raise ValueError(f"{len(kept)} channels are named of {tensor.shape[axis]}")
    if not kept.any():
        raise ValueError("no channel would be left")
    return tensor.detach().index_select(axis, torch.from_numpy(np.flatnonzero(kept)).to(tensor.device))


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    old = getattr(module, name)
    new = tensor.contiguous()
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)
