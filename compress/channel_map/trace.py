"""Follow every channel through a network: one pass in which each tensor carries the numbers of its channels along.

What an operator does to tensors is done to the numbers: reshapes, transpositions, concatenations, slices. So a channel
shuffle, which tools that look at layers alone get wrong, is nothing special. Sums and products make two numbers one; a
convolution or a linear layer makes new ones. What no rule is known for fixes the channels that it sees.
"""

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from compress.channel_map.channel_map import ChannelMap, Layer, Shuffle
from compress.channel_map.notes import Call, Notes, UnknownError, along_one_axis
from compress.channel_map.rules import RULES
from compress.channel_map.unions import Ids
from training.model.edits.reorder import Reorder


def map_channels(model: nn.Module, size: int) -> ChannelMap:
    """Follow the channels of a network.

    Args:
        model: Takes float [n, 3, size, size]; left as it is.
        size: Side of the images, px.
    """
    twin = copy.deepcopy(model).cpu().float().eval()
    notes = Notes(model=twin)
    images = torch.zeros(1, 3, size, size)
    notes.know(images, notes.new_fixed(images.shape, "they are the colours of the image"))
    moves = _Moves(notes)
    with torch.no_grad(), _Tracer(notes):
        answers = twin(images)
    moves.stop()
    notes.fix(_tensors(answers), "they are the answers, one a class")
    return _result(notes, moves.shuffles())


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells the notes of every operator that runs.

    Args:
        notes: Are written.
    """

    def __init__(self, notes: Notes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._notes = notes

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator overload
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self._follow(Call(name=name, run=func, args=args, kwargs=kwargs or {}, out=out))
        return out

    def _follow(self, call: Call) -> None:
        rule, outputs = RULES.get(call.name), _tensors(call.out)
        try:
            if rule is None:
                raise UnknownError(call.name)
            found = rule(self._notes, call)
        except UnknownError as unknown:
            self._fix(call, outputs, str(unknown))
        else:
            if found is not None:
                self._notes.know(outputs[0], found.expand(outputs[0].shape))

    def _fix(self, call: Call, outputs: list[Tensor], what: str) -> None:
        """Keep all channels that an operator sees."""
        inputs = _tensors((call.args, call.kwargs))
        if all(self._notes.ids(tensor) is None for tensor in inputs):
            return
        self._notes.fix(inputs, f"they go into {what}, for which there is no rule")
        for tensor in outputs:
            self._notes.know(tensor, self._notes.new_fixed(tensor.shape, f"they come out of {what}"))


class _Moves:
    """Sees which modules have only put channels into another order.

    Args:
        notes: Of the network, which gets hooks.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._uses: dict[str, list[tuple[Ids, Ids]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._hooks: list[RemovableHandle] = []
        for path, module in notes.modules.items():
            self._hooks.append(module.register_forward_pre_hook(partial(self._entered, path), prepend=True))
            self._hooks.append(module.register_forward_hook(partial(self._left, path)))

    def stop(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def shuffles(self) -> dict[str, Shuffle]:
        """The modules that only reorder, by path."""
        found: dict[str, Shuffle] = {}
        for path, uses in sorted(self._uses.items()):  # a module comes before what is in it
            if len({len(before) for before, _ in uses}) > 1:
                continue
            order = _order_of(self._notes.modules[path], self._shapes[path])
            if order is None or any(not np.array_equal(before[order], after) for before, after in uses):
                continue
            if any(path.startswith(f"{outer}.") for outer in found):  # the outer one is replaced as a whole
                continue
            for before, _ in uses[1:]:
                self._notes.unions.join(uses[0][0], before)
            found[path] = Shuffle(inputs=uses[0][0], order=order)
        return found

    def _entered(self, path: str, *_: object) -> None:
        self._notes.stack.append(path)

    def _left(self, path: str, module: nn.Module, args: tuple[Any, ...], out: object) -> None:
        while self._notes.stack.pop() != path:
            pass
        if len(args) != 1 or not isinstance(out, Tensor) or any(True for _ in module.parameters()):
            return
        before, after = self._notes.ids(args[0]), self._notes.ids(out)
        if before is None or after is None or before.shape != after.shape or before.ndim != 4:
            return
        if not torch.equal(before, after):
            self._shapes[path] = tuple(before.shape)
            self._uses.setdefault(path, []).append((before[0, :, 0, 0].numpy(), after[0, :, 0, 0].numpy()))


def _order_of(module: nn.Module, shape: tuple[int, ...]) -> Ids | None:
    """For each output of a module which input it is, if it only reorders; None otherwise.

    Args:
        module: Is tried with numbers of both signs, each another, so that an activation does not go unseen.
        shape: Of what it gets, [1, c, h, w].
    """
    if isinstance(module, Reorder):
        order: Ids = module.index.numpy().copy()
        return order
    numbers = torch.arange(shape[1], dtype=torch.float32) - shape[1] / 2 + 0.25
    try:
        with torch.no_grad():
            found = module(numbers.reshape(1, -1, 1, 1).expand(shape).contiguous())
    except (RuntimeError, ValueError, TypeError, AssertionError):
        return None
    if found.shape != shape or not torch.equal(found, found[:, :, :1, :1].expand(shape)):
        return None
    moved = found[0, :, 0, 0]
    if not torch.equal(moved.sort().values, numbers):
        return None
    places: Ids = torch.searchsorted(numbers, moved.contiguous()).numpy().astype(np.int64)
    return places


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _result(notes: Notes, shuffles: dict[str, Shuffle]) -> ChannelMap:
    """What the notes say, with one number for what turned out to be one."""
    for tie in notes.ties:
        if not set(tie.stack) & set(shuffles):  # else a reordering takes the place of what ties them
            notes.unions.join(tie.first, tie.second)
    roots = notes.unions.roots
    fixed: dict[int, str] = {}
    for channel, reason in notes.fixed.items():
        fixed.setdefault(int(roots(np.array([channel]))[0]), reason)
    parameters: dict[str, tuple[int, Ids]] = {}
    for name, ids in notes.bare.items():
        found = along_one_axis(roots(ids))
        if found is None:
            fixed = dict.fromkeys(np.unique(roots(ids)).tolist(), f"{name} has them in several dimensions") | fixed
        else:
            parameters[name] = found
    return ChannelMap(
        layers={path: _with(layer, roots(layer.inputs), roots(layer.outputs)) for path, layer in notes.layers.items()},
        parameters=parameters,
        shuffles={path: Shuffle(inputs=roots(one.inputs), order=one.order) for path, one in shuffles.items()},
        balances=[tuple(roots(part) for part in parts) for parts in notes.balances],
        fixed=fixed,
    )


def _with(layer: Layer, inputs: Ids, outputs: Ids) -> Layer:
    return Layer(kind=layer.kind, inputs=inputs, outputs=outputs, groups=layer.groups, work=layer.work)
