"""What is written down while a network runs: the channel at every place of every tensor."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.channel_map.channel_map import Layer
from compress.channel_map.unions import Ids, Unions

LAYERS = (nn.Conv2d, nn.Linear, _BatchNorm, nn.PReLU)


class UnknownError(Exception):
    """An operator does what no rule is known for; says what."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """An operator that has run.

    Attributes:
        name: Of the operator, without its overload.
        run: Runs it on something else.
        args: Positional arguments.
        kwargs: The others.
        out: What came out.
    """

    name: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def again(self, ids: Any) -> Any:  # noqa: ANN401 - a tensor, or a list of them
        """Do to channels what was done to the first argument."""
        return self.run(ids, *self.args[1:], **self.kwargs)


@dataclass(frozen=True, kw_only=True)
class Tie:
    """Channels that stand or fall together because code divides them into rows of equal length.

    Attributes:
        stack: Modules within which that happens.
        first: int64 [n].
        second: int64 [n]: the same as `first`.
    """

    stack: tuple[str, ...]
    first: Ids
    second: Ids


@dataclass
class Notes:
    """Everything that is known so far.

    Attributes:
        model: The network that runs.
        unions: Ids of channels.
        fixed: Ids that cannot go → why.
        layers: By module path.
        bare: Parameters that belong to no layer, by path: the channel at each place.
        balances: See `ChannelMap`.
        ties: What may have to be tied.
        stack: Modules that are running, the innermost last.
    """

    model: nn.Module
    unions: Unions = field(default_factory=Unions)
    fixed: dict[int, str] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    bare: dict[str, Ids] = field(default_factory=dict)
    balances: list[tuple[Ids, ...]] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())
        self._owners = {
            id(tensor): (path, name)
            for path, module in self.modules.items()
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        }
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._transposed: dict[int, tuple[Tensor, Tensor]] = {}

    def owner(self, tensor: object) -> tuple[str, str]:
        """(path of the module, name) of a parameter or buffer; two empty texts for another tensor."""
        return self._owners.get(id(tensor), ("", ""))

    def know(self, tensor: Tensor, ids: Tensor) -> None:
        """The channel at each place of a tensor; `ids` has its shape."""
        self._known[id(tensor)] = (tensor, ids)  # the tensor too: while it is held, nothing else gets its id

    def transposes(self, weight: Tensor, out: Tensor) -> None:
        """A weight as matrix products want it."""
        self._transposed[id(out)] = (out, weight)  # the product too, for the same reason

    def transposed(self, matrix: object) -> Tensor | None:
        """The weight that a matrix is the transposed of."""
        return self._transposed.get(id(matrix), (None, None))[1]

    def ids(self, tensor: object) -> Tensor | None:
        """The channels of a tensor; a parameter of no layer gets its own; None for a constant."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self._known:
            return self._known[id(tensor)][1]
        if not isinstance(tensor, nn.Parameter) or tensor.numel() == 1:
            return None
        path, name = self.owner(tensor)
        if not name or isinstance(self.modules[path], LAYERS):
            return self.new_fixed(tensor.shape, f"the weight of {path or 'a layer'} is used besides the layer")
        ids = self.unions.new(tensor.numel()).reshape(tensor.shape)
        self.bare[f"{path}.{name}".lstrip(".")] = ids
        self.know(tensor, torch.from_numpy(ids))
        return torch.from_numpy(ids)

    def new_fixed(self, shape: Iterable[int], reason: str) -> Tensor:
        """Channels of a tensor of which nothing more is known."""
        (channel,) = self.unions.new(1)
        self.fixed[int(channel)] = reason
        return torch.full(tuple(shape), int(channel))

    def fix(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Keep the channels of some tensors."""
        for tensor in tensors:
            ids = self.ids(tensor)
            if ids is not None:
                for channel in np.unique(ids.numpy()).tolist():
                    self.fixed.setdefault(channel, reason)

    def add(self, path: str, layer: Layer) -> None:
        """Note a layer; one that is used again has the same channels again, and works again."""
        old = self.layers.get(path)
        if old is None:
            self.layers[path] = layer
            return
        self.unions.join(old.inputs, layer.inputs)
        self.unions.join(old.outputs, layer.outputs)
        self.layers[path] = Layer(
            kind=old.kind, inputs=old.inputs, outputs=old.outputs, groups=old.groups, work=old.work + layer.work
        )


def along(ids: Tensor, axis: int) -> Ids | None:
    """The channels along a dimension, int64; None if the others matter too."""
    rows = ids.movedim(axis, 0).reshape(ids.shape[axis], -1)
    return None if not torch.equal(rows, rows[:, :1].expand(rows.shape)) else rows[:, 0].numpy().copy()


def along_one_axis(ids: Ids) -> tuple[int, Ids] | None:
    """(dimension, channels) of a parameter whose channels go along one dimension; None if there are several."""
    for axis in range(ids.ndim):
        found = along(torch.from_numpy(ids), axis)
        if found is not None:
            return axis, found
    return None


def constant_along(ids: Tensor, axis: int) -> bool:
    """Whether channels are the same all along a dimension."""
    return torch.equal(ids, ids.narrow(axis, 0, 1).expand(ids.shape))


def channels_of(ids: Tensor) -> Tensor:
    """The channels of [1, c, h, w], which must be the same at each place: int64 [c].

    Raises:
        UnknownError: They are not.
    """
    if ids.ndim != 4:
        raise UnknownError("a layer of images over a tensor of another shape")
    channels = ids[0, :, 0, 0]
    if not torch.equal(ids, channels.reshape(1, -1, 1, 1).expand(ids.shape)):
        raise UnknownError("a layer over places where channels and places are mixed")
    return channels
