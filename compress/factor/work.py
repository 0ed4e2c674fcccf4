"""What a layer costs in a network, and what its factors would cost: exact, with strides and edges."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from training.measure.macs import MacsReport, count_watched
from training.model.edits.factor import Layer, sides


@dataclass(frozen=True, kw_only=True)
class Positions:
    """At how many places one forward pass applies a layer, over all its calls.

    Attributes:
        before: Positions (height x width; rows for a fully connected layer) of what comes in.
        between: Height of what goes out, width of what comes in.
        after: Positions of what goes out.
    """

    before: int
    between: int
    after: int

    def __add__(self, other: "Positions") -> "Positions":
        return Positions(
            before=self.before + other.before, between=self.between + other.between, after=self.after + other.after
        )


def measure_work(model: nn.Module, size: int) -> tuple[MacsReport, dict[str, Positions]]:
    """Count a network's multiply-accumulates, and where its layers are applied.

    Args:
        model: The network.
        size: Side of the image, px.

    Returns:
        The count, and module path → positions, in the order in which the layers first run.
    """
    found: dict[str, Positions] = {}

    def watch(path: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(module, Layer) and inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            seen = _positions(module, inputs[0], output)
            found[path] = found[path] + seen if path in found else seen

    return count_watched(model, size, watch), found


def _positions(layer: Layer, came: Tensor, went: Tensor) -> Positions:
    if isinstance(layer, nn.Linear):
        rows = came.numel() // layer.in_features
        return Positions(before=rows, between=rows, after=rows)
    images = came.numel() // math.prod(came.shape[-3:])
    (height, width), (out_height, out_width) = came.shape[-2:], went.shape[-2:]
    return Positions(
        before=images * height * width, between=images * out_height * width, after=images * out_height * out_width
    )


def factored_macs(layer: Layer, form: str, ranks: Sequence[int], at: Positions) -> int:
    """What the factors of a layer cost.

    Args:
        layer: The layer.
        form: One of `training.model.edits.factor.FORMS`.
        ranks: Of the form.
        at: Where the layer is applied.
    """
    if isinstance(layer, nn.Linear):
        return at.after * ranks[0] * (layer.in_features + layer.out_features)
    inputs, outputs, (height, width) = layer.in_channels, layer.out_channels, sides(layer)
    if form == "svd":
        return at.after * ranks[0] * (inputs + outputs)
    if form == "tucker2":
        first, second = ranks
        core = first * second * height * width
        return at.before * inputs * first + at.after * (core + second * outputs)
    if form == "cp":
        (rank,) = ranks
        return rank * (at.before * inputs + at.between * height + at.after * (width + outputs))
    if form == "spatial":
        return outputs * (at.between * height + at.after * width)
    if form == "separable":
        (rank,) = ranks
        return rank * (at.between * inputs * height + at.after * outputs * width)
    return at.after * outputs * (inputs // ranks[0]) * height * width


def own_macs(report: MacsReport) -> Mapping[str, int]:
    """Module path → multiply-accumulates of its own."""
    return {layer.path: layer.macs for layer in report.layers}
