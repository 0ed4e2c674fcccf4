"""From the weight of a layer to those of its factors, and back. All in float64."""

import copy

import torch
from torch import Tensor, nn

from compress.factor.cp import cp_als, principal_axes
from training.model.edits.factor import Layer, sides

SWEEPS = 4
"""Of Tucker-2; more hardly change the error."""


def weight_of(layer: Layer) -> Tensor:
    """The weight as it is computed with: float64, on the CPU, its elements in order."""
    return layer.weight.detach().double().cpu().contiguous()


def fill_factors(factors: nn.Module, layer: Layer, form: str, ranks: tuple[int, ...]) -> None:
    """Give the factors of a layer the weights that come closest to it.

    Args:
        factors: What `training.model.edits.factor.factors` made of the layer; is changed.
        layer: Is left as it is.
        form: Of the factors.
        ranks: Likewise.
    """
    parts = list(factors.children()) or [factors]
    weights = factor_weights(layer, form, ranks)
    with torch.no_grad():
        for part, weight in zip(parts, weights, strict=True):
            assert isinstance(part, Layer)
            part.weight.copy_(weight.reshape(part.weight.shape))
        last = parts[-1]
        if layer.bias is not None and isinstance(last, Layer) and last.bias is not None:
            last.bias.copy_(layer.bias)


def factor_weights(layer: Layer, form: str, ranks: tuple[int, ...]) -> list[Tensor]:
    """Weights of the factors in the order in which they run, float64; their shapes are those of the factors."""
    weight = weight_of(layer)
    if form == "svd":
        return _matrix_factors(weight.flatten(1), *ranks)
    if form == "tucker2":
        return _tucker2(weight, *ranks)
    if form == "cp":
        outputs, inputs, tall, wide = cp_als(weight, *ranks)
        return [inputs.T, tall.T, wide.T, outputs]
    if form == "spatial":
        return _spatial(weight)
    if form == "separable":
        return _separable(weight, *ranks)
    return [picked_blocks(weight, getattr(layer, "groups", 1), *ranks)]


def rebuilt_weight(factors: nn.Module, layer: Layer, form: str) -> Tensor:
    """What the factors amount to: a weight for the layer, float64."""
    parts = [weight_of(part) for part in factors.children() if isinstance(part, Layer)]
    shape = layer.weight.shape
    if form == "svd":
        return (parts[1].flatten(1) @ parts[0].flatten(1)).reshape(shape)
    if form == "tucker2":
        return torch.einsum("oa,abhw,bi->oihw", parts[2].flatten(1), parts[1], parts[0].flatten(1))
    if form == "cp":
        inputs, tall, wide, outputs = (part.flatten(1) for part in parts)
        return torch.einsum("or,ri,rh,rw->oihw", outputs, inputs, tall, wide)
    if form == "spatial":
        return torch.einsum("oh,ow->ohw", parts[0].flatten(1), parts[1].flatten(1)).reshape(shape)
    if form == "separable":
        return torch.einsum("orw,rih->oihw", parts[1].squeeze(2), parts[0].squeeze(3))
    assert isinstance(factors, nn.Conv2d)
    return _spread_blocks(weight_of(factors), shape, getattr(layer, "groups", 1), factors.groups)


def factors_difference(factors: nn.Module, layer: Layer, weight: Tensor) -> float:
    """How far factors are from a layer with another weight, on noise, as a share of the largest answer.

    A look at the whole network alone may see nothing of a layer that a later one scales to zero.

    Args:
        factors: Of the layer.
        layer: Says all but the weight.
        weight: float64, of the layer's shape.
    """
    twin = copy.deepcopy(layer).double()
    twin.register_parameter("weight", nn.Parameter(weight))
    shape: tuple[int, ...] = (2, weight.shape[1])
    if isinstance(layer, nn.Conv2d):
        reach = [d * (k - 1) + 2 * s for d, k, s in zip(layer.dilation, sides(layer), layer.stride, strict=True)]
        shape = (2, layer.in_channels, reach[0] + 2, reach[1] + 3)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        expected, found = twin(noise), copy.deepcopy(factors).double()(noise)
    least = torch.finfo(torch.float64).tiny
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(least))


def separable_matrix(weight: Tensor) -> Tensor:
    """The kernel [out, in, height, width] as a matrix [in · height, out · width]."""
    return weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


def picked_blocks(weight: Tensor, groups: int, more: int) -> Tensor:
    """What is left of a kernel [out, in / groups, …] when its groups are divided: [out, in / more, …]."""
    part = more // groups
    blocks = _blocks(weight, groups, part)
    return torch.stack([blocks[:, k, :, k] for k in range(part)], 1).flatten(0, 2)


def _spread_blocks(weight: Tensor, shape: torch.Size, groups: int, more: int) -> Tensor:
    part = more // groups
    whole = weight.new_zeros(shape)
    blocks = _blocks(whole, groups, part)
    for k, block in enumerate(weight.view(groups, part, -1, *weight.shape[1:]).unbind(1)):
        blocks[:, k, :, k] = block
    return whole


def _blocks(weight: Tensor, groups: int, part: int) -> Tensor:
    """A kernel seen as [groups, part, out of a block, part, in of a block, …]."""
    outputs, inputs = weight.shape[:2]
    return weight.view(groups, part, outputs // (groups * part), part, inputs // part, *weight.shape[2:])


def _matrix_factors(matrix: Tensor, rank: int) -> list[Tensor]:
    """[n, m] → [rank, m] and [n, rank], whose product is as close as it can be; both of the same size."""
    if len(matrix) > matrix.shape[1]:
        second, first = _matrix_factors(matrix.T, rank)
        return [first.T, second.T]
    left = principal_axes(matrix)[1][:, :rank]
    right = left.T @ matrix
    scale = right.norm(dim=1, keepdim=True).sqrt().clamp_min(1e-100)
    return [right / scale, left * scale.T]


def _tucker2(weight: Tensor, rank_in: int, rank_out: int) -> list[Tensor]:
    """Start from the principal axes of both sides (HOSVD), then better each with the other held (HOOI)."""
    inputs = principal_axes(weight.transpose(0, 1).flatten(1))[1][:, :rank_in]
    outputs = principal_axes(weight.flatten(1))[1][:, :rank_out]
    for _ in range(SWEEPS):
        outputs = _turned(outputs, torch.einsum("oihw,ia->oahw", weight, inputs))
        inputs = _turned(inputs, torch.einsum("oihw,ob->ibhw", weight, outputs))
    core = torch.einsum("oihw,ob,ia->bahw", weight, outputs, inputs)
    return [inputs.T, core, outputs]


def _turned(axes: Tensor, tensor: Tensor) -> Tensor:
    """Turn axes [n, rank] of the first dimension towards the principal ones, by a step of the orthogonal iteration.

    The energy that they hold never falls; it costs a fraction of the eigenvectors themselves, which a later sweep would
    change again.
    """
    matrix = tensor.flatten(1)
    return torch.linalg.qr(matrix @ (matrix.T @ axes))[0]


def _spatial(weight: Tensor) -> list[Tensor]:
    """Each filter [height, width] as the closest product of a column and a row."""
    left, values, right = torch.linalg.svd(weight.squeeze(1), full_matrices=False)
    scale = values[:, :1].sqrt()
    return [left[:, :, 0] * scale, right[:, 0] * scale]


def _separable(weight: Tensor, rank: int) -> list[Tensor]:
    outputs, inputs, height, width = weight.shape
    across, down = _matrix_factors(separable_matrix(weight), rank)
    vertical = down.T.reshape(rank, inputs, height, 1)
    return [vertical, across.reshape(rank, outputs, width).transpose(0, 1).unsqueeze(2)]
