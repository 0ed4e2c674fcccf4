"""What is known of the channels of a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from compress.channel_map.unions import Ids

Kind = Literal["convolution", "depthwise", "linear", "per-channel"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that has channels.

    Attributes:
        kind: A depthwise convolution, a normalisation and a PReLU (`per-channel`) have the channels that they get.
        inputs: The channel at each of its inputs; int64 [in].
        outputs: At each of its outputs; int64 [out].
        groups: Of a convolution.
        work: Multiply-accumulates for one pair of an input and an output channel; of a depthwise convolution, for one
            output channel.
    """

    kind: Kind
    inputs: Ids
    outputs: Ids
    groups: int = 1
    work: int = 0

    def macs(self, inputs: int, outputs: int) -> int:
        """Multiply-accumulates with so many channels left."""
        if self.kind == "depthwise":
            return self.work * outputs
        return self.work * inputs * outputs // self.groups


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """A module that only puts channels into another order.

    Attributes:
        inputs: The channel at each of its inputs; int64 [n].
        order: For each output, which input it is.
    """

    inputs: Ids
    order: Ids


@dataclass(frozen=True, kw_only=True)
class ChannelMap:
    """The channels of a network. A channel is a number; what has the same number lives and goes together.

    Attributes:
        layers: By module path.
        parameters: Of modules that are no layers, by path: (dimension, the channel at each place).
        shuffles: By module path.
        balances: Parts of which as much has to be left of one as of the other: the groups of a convolution, the pieces
            that a tensor is cut into.
        fixed: Channels that cannot go → why.
    """

    layers: Mapping[str, Layer]
    parameters: Mapping[str, tuple[int, Ids]]
    shuffles: Mapping[str, Shuffle]
    balances: Sequence[tuple[Ids, ...]]
    fixed: Mapping[int, str]

    @cached_property
    def families(self) -> tuple[Ids, ...]:
        """Channels that can go, those that one layer puts out side by side (or one that shares some with it) together.

        Each family is sorted; they come in the order of the network.
        """
        owner: dict[int, int] = {}
        members: dict[int, set[int]] = {}
        for layer in self.layers.values():
            if layer.kind not in ("convolution", "linear"):
                continue
            mine = [channel for channel in np.unique(layer.outputs).tolist() if channel not in self.fixed]
            if not mine:
                continue
            touched = sorted({owner[channel] for channel in mine if channel in owner})
            home = touched[0] if touched else mine[0]
            whole = members.setdefault(home, set())
            for other in touched[1:]:
                whole |= members.pop(other)
            whole |= set(mine)
            owner.update(dict.fromkeys(whole, home))
        return tuple(np.array(sorted(family), np.int64) for family in members.values())

    def alive(self, kept: Ids) -> Ids:
        """What is left if these channels are kept: they, and those that cannot go."""
        return np.concatenate([kept, np.array(list(self.fixed), np.int64)])

    def macs(self, kept: Ids) -> int:
        """Multiply-accumulates of all layers if these channels, and the fixed ones, are kept."""
        alive = np.zeros(1 + max(int(ids.max()) for _, ids in self._sides), bool)
        staying = self.alive(kept)
        alive[staying[staying < len(alive)]] = True
        counts = [int(alive[ids].sum()) for _, ids in self._sides]
        pairs = zip(self._sides[::2], counts[::2], counts[1::2], strict=True)
        return sum(layer.macs(inputs, outputs) for (layer, _), inputs, outputs in pairs)

    @cached_property
    def _sides(self) -> list[tuple[Layer, Ids]]:
        return [(layer, ids) for layer in self.layers.values() for ids in (layer.inputs, layer.outputs)]
