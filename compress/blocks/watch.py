"""One forward pass, watched: what each module takes and gives, and whether it adds its input to what it computes."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

IMAGES = 2
"""So that what is added to all images alike (a position embedding, a bias) has another shape than they have."""

_Operator = OpOverload | HigherOrderOperator
_aten = torch.ops.aten
_ADDITIONS = (_aten.add, _aten.add_, _aten.addcmul, _aten.addcmul_)


@dataclass
class Call:
    """What is known of a module after the pass.

    Attributes:
        count: How often it ran.
        input: Shape of its only input; None where it is not one tensor.
        output: Likewise.
        adds: It added its input to something of the same shape.
        residual: What comes out is such a sum, perhaps behind an activation or a normalisation.
        outside: A part of it ran while it did not: somebody reaches into it.
    """

    count: int = 0
    input: tuple[int, ...] | None = None
    output: tuple[int, ...] | None = None
    adds: bool = False
    residual: bool = False
    outside: bool = False

    @property
    def keeps_shape(self) -> bool:
        """One tensor comes in, and one of its shape goes out."""
        return self.input is not None and self.input == self.output


@dataclass
class _Frame:
    """A module that is running. `sums` holds tensors that contain its input as a summand."""

    path: str
    input: Tensor | None
    sums: list[Tensor] = field(default_factory=list)


def watch(model: nn.Module, size: int) -> dict[str, Call]:
    """Run a network once, in evaluation mode.

    Args:
        model: On the CPU; takes float [n, 3, size, size]. Gets hooks for the time of the pass and is put into
            evaluation mode: give a copy.
        size: Side of the images, px.

    Returns:
        Path → what happened, for all modules that ran but the network itself. A module that stands in several places
        is found under the first.
    """
    watcher = _Watcher(model)
    images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    handles = watcher.hooks(model.eval())
    try:
        with torch.inference_mode(False), torch.no_grad(), watcher:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return watcher.calls


class _Watcher(TorchDispatchMode):
    """Sees every operator, and by its hooks which modules are running."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, Call] = {}
        self._stack: list[_Frame] = []
        places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        self._shared = {number for number, count in places.items() if count > 1}

    def hooks(self, model: nn.Module) -> list[Any]:
        """Watch all modules of a network; the handles remove the hooks."""
        handles: list[Any] = []
        for path, module in model.named_modules():
            if path:
                enter, leave = partial(self._enter, path), partial(self._leave, path)
                handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
                handles.append(module.register_forward_hook(leave))
        return handles

    def _enter(self, path: str, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        running = {frame.path for frame in self._stack}
        if id(module) not in self._shared:
            for parent in _parents(path):
                if parent not in running:
                    self.calls.setdefault(parent, Call()).outside = True
        only = args[0] if len(args) == 1 and not kwargs else None
        frame = _Frame(path, only if isinstance(only, Tensor) else None)
        call = self.calls.setdefault(path, Call())
        call.count += 1
        call.input = None if frame.input is None else tuple(frame.input.shape)
        self._stack.append(frame)

    def _leave(self, path: str, _module: nn.Module, _args: object, output: object) -> None:
        while (frame := self._stack.pop()).path != path:  # a network may catch what a part of it raises
            pass
        call = self.calls[path]
        call.adds |= bool(frame.sums)
        call.output = tuple(output.shape) if isinstance(output, Tensor) else None
        call.residual = isinstance(output, Tensor) and _is_one_of(output, frame.sums)

    def __torch_dispatch__(
        self, func: _Operator, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", func)
        if packet in _ADDITIONS:
            self._note_addition(args, result)
        if packet not in flop_registry:  # a convolution of the sum holds no summand any more
            self._pass_on(args, result)
        return result

    def _note_addition(self, args: tuple[Any, ...], result: Tensor) -> None:
        """The sum belongs to the innermost module whose own input is a summand."""
        first, second = args[:2]
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return
        for frame in reversed(self._stack):
            if frame.input is None:
                continue
            same = [_same_memory(term, frame.input) for term in (first, second)]
            if same[0] != same[1] and result.numel() == frame.input.numel() == first.numel() == _size(args, second):
                frame.sums.append(result)
            if any(same):
                return

    def _pass_on(self, args: tuple[Any, ...], result: object) -> None:
        """What an activation, a normalisation or another addition makes of a sum still holds the input."""
        taken = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for frame in self._stack:
            if frame.sums and any(_is_one_of(tensor, frame.sums) for tensor in taken):
                frame.sums += [tensor for tensor in given if not _is_one_of(tensor, frame.sums)]


def _size(args: tuple[Any, ...], second: Tensor) -> int:
    """Elements of what is added: `addcmul` adds a product, whose factors may be one per channel."""
    return max([second.numel(), *(arg.numel() for arg in args[2:] if isinstance(arg, Tensor))])


def _same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether one is the other, all of it: as a view, or because something worked in place."""
    return a.numel() == b.numel() and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _is_one_of(tensor: Tensor, others: list[Tensor]) -> bool:
    return any(_same_memory(tensor, other) for other in others)


def _parents(path: str) -> list[str]:
    """`a.b.c` → `a`, `a.b`."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
