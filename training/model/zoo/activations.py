"""Activations by name: those of torch.nn first, then the names that older definitions use."""

import inspect
from functools import lru_cache

from torch import nn
from torch.nn.modules import activation as torch_activation

_OTHER_NAMES: dict[str, type[nn.Module]] = {
    "HardSwish": nn.Hardswish,
    "HardSigmoid": nn.Hardsigmoid,
    "Swish": nn.SiLU,
}
"""Spellings of the first definitions; none is an autograd.Function of its own, which could be neither scripted nor
exported."""

_SHAPE_CHANGING = {"GLU", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax", "Threshold"}
"""Members of torch.nn's activations that halve channels, need arguments, or compare across an axis."""


@lru_cache(maxsize=1)
def _known() -> dict[str, type[nn.Module]]:
    names = [name for name in torch_activation.__all__ if name not in _SHAPE_CHANGING]
    return _OTHER_NAMES | {name: getattr(nn, name) for name in names}


def activation_names() -> tuple[str, ...]:
    """Every name that `make_activation` knows."""
    return tuple(sorted(_known()))


def is_activation(name: object) -> bool:
    """Whether a definition may name it; None means no activation."""
    return name is None or (isinstance(name, str) and name in _known())


def activation_class(name: str | None) -> type[nn.Module]:
    """The class of an activation; `nn.Identity` for None."""
    return nn.Identity if name is None else _known()[name]


def make_activation(name: str | None) -> nn.Module:
    """A fresh activation, in place where it can be, which saves memory in training."""
    made = activation_class(name)
    return made(inplace=True) if "inplace" in inspect.signature(made).parameters else made()
