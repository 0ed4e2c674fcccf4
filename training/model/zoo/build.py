"""From a definition to a network."""

import difflib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.errors import UsageError
from training.model.zoo.arguments import bind
from training.model.zoo.modules import convolutions, inverted, mobile, plain
from training.model.zoo.modules.residual import set_drop_path
from training.model.zoo.piece import Form, Piece, values_of_repeat
from training.model.zoo.scaling import scaled_repeat
from training.model.zoo.schema import Definition, Line, parse_definition

REGISTRY: dict[str, Piece] = plain.PIECES | convolutions.PIECES | inverted.PIECES | mobile.PIECES
"""Every module that a definition may name."""

_WITHOUT_WEIGHTS = ("GlobalAvgPool", "AvgPool", "MaxPool", "Flatten", "Dropout", "SpaceToChannel")
_AS_PEOPLE_SAY: dict[Form, str] = {
    "map": "a feature map whose size depends on the image",
    "pooled": "a pooled feature map",
    "vector": "a flat vector",
}


class ZooModel(nn.Sequential):
    """A network from a definition: child number i is line number i of the backbone.

    Args:
        layers: The lines, by number.
        num_classes: Outputs.
        written_classes: Outputs that the definition names; those of the data win where they differ.
        input_size: Side of the images that the definition was made for, px; None if it does not say.
    """

    def __init__(
        self, layers: "OrderedDict[str, nn.Module]", *, num_classes: int, written_classes: int, input_size: int | None
    ) -> None:
        super().__init__(layers)
        self.num_classes, self.written_classes = num_classes, written_classes
        self.input_size = input_size

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: float [n, 3, h, w].

        Returns:
            Logits, float [n, classes], also where the last layer is a convolution.
        """
        return torch.flatten(super().forward(x), 1)  # type: ignore[no-untyped-call]


def build_model(
    value: object, num_classes: int, *, source: str, drop_rate: float = 0.0, drop_path: float = 0.0
) -> ZooModel:
    """Build the network of a definition.

    The last line with weights must be Linear or FixedConv and is the classifier. If it names another number of outputs
    than the data has classes, the classes win; `written_classes` of the result keeps what was written.

    Args:
        value: What the YAML or the model file holds.
        num_classes: Outputs.
        source: Where it comes from, for messages.
        drop_rate: Dropout before the classifier. A Dropout line in the definition keeps its place and takes this rate;
            0 leaves the definition as it is.
        drop_path: Stochastic depth of the last shortcut, growing from the first; needs a block with a shortcut.

    Raises:
        UsageError: The definition is wrong; the message names the line and the cure.
    """
    definition = parse_definition(value, source)
    head = _classifier(definition)
    written = int(head.args[0])
    lines = list(definition.lines)
    lines[head.index] = replace(head, args=(num_classes, *head.args[1:]))
    layers = _Chain(definition).run(lines)
    if drop_rate:
        layers = _with_dropout(layers, lines, head.index, drop_rate)
    model = ZooModel(layers, num_classes=num_classes, written_classes=written, input_size=definition.input_size)
    if drop_path and not set_drop_path(model, drop_path):
        raise UsageError(f"{source} has no block with a shortcut, so no path can be dropped; leave drop_path at 0")
    return model


def written_classes(value: object, source: str) -> int:
    """How many outputs a definition names.

    Raises:
        UsageError: The definition is wrong.
    """
    return int(_classifier(parse_definition(value, source)).args[0])


def _piece(definition: Definition, line: Line) -> Piece:
    if line.module not in REGISTRY:
        near = difflib.get_close_matches(line.module, REGISTRY, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(REGISTRY))}"
        raise definition.error(line, f"is no module of the zoo; {hint}")
    return REGISTRY[line.module]


def _classifier(definition: Definition) -> Line:
    """The last line with weights, checked."""
    weighted = [line for line in definition.lines if line.module not in _WITHOUT_WEIGHTS]
    if not weighted:
        raise UsageError(f"{definition.source}: no line of the backbone has weights; end with [1, Linear, [classes]]")
    last = weighted[-1]
    piece = _piece(definition, last)
    if not piece.classifier or last.repeat != 1:
        raise definition.error(last, "the last line with weights must be Linear or FixedConv, once: the classifier")
    _bind(definition, last, piece)
    return last


def _bind(definition: Definition, line: Line, piece: Piece) -> dict[str, Any]:
    try:
        return bind(piece.arguments, line.args)
    except ValueError as error:
        raise definition.error(line, str(error)) from error


@dataclass
class _Chain:
    """Builds line after line, and knows what flows between them.

    Args:
        definition: What is built.
        channels: Channels after the last line that was built.
        form: What they are.
    """

    definition: Definition
    channels: int = 3
    form: Form = "map"

    def run(self, lines: list[Line]) -> "OrderedDict[str, nn.Module]":
        """Build all lines, by number."""
        layers = OrderedDict((str(line.index), self._layer(line)) for line in lines)
        if self.form == "map":
            raise self.definition.error(lines[-1], "the logits are still a map; add [1, GlobalAvgPool, []] at the end")
        return layers

    def _layer(self, line: Line) -> nn.Module:
        piece = _piece(self.definition, line)
        values = _bind(self.definition, line, piece)
        if self.form not in piece.takes:
            cure = "put [1, GlobalAvgPool, []] before it" if self.form == "map" else _CURES.get(line.module, _EARLIER)
            raise self.definition.error(line, f"cannot follow {_AS_PEOPLE_SAY[self.form]}; {cure}")
        repeats = scaled_repeat(line.repeat, self.definition.depth)
        units = [self._unit(line, piece, values, index, repeats) for index in range(repeats)]
        self.form = piece.gives or self.form
        return units[0] if repeats == 1 else nn.Sequential(*units)

    def _unit(self, line: Line, piece: Piece, values: dict[str, Any], index: int, repeats: int) -> nn.Module:
        own = values_of_repeat(piece, values, index, repeats)
        try:
            module, self.channels = piece.make(own, self.channels, self.definition.width)
        except ValueError as error:
            raise self.definition.error(line, str(error)) from error
        return module


_CURES = {"Linear": "put [1, Flatten, []] before it"}
_EARLIER = "move it before Flatten"


def _with_dropout(
    layers: "OrderedDict[str, nn.Module]", lines: list[Line], head: int, rate: float
) -> "OrderedDict[str, nn.Module]":
    """Dropout before the classifier: the definition's own with another rate, or one more layer, without weights."""
    own = [line.index for line in lines[:head] if line.module == "Dropout"]
    if own:
        layers[str(own[-1])] = nn.Dropout(rate)
        return layers
    items = list(layers.items())
    return OrderedDict([*items[:head], ("dropout", nn.Dropout(rate)), *items[head:]])
