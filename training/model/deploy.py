"""What is left of a model when training is over: heads that only training uses are no part of its size."""

from typing import NoReturn

from torch import nn
from torchvision.models import GoogLeNet, Inception3

from pipelines.errors import UsageError
from training.measure.macs import independent_copy
from training.model.replace import replace_module

_AUXILIARY: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (GoogLeNet, ("aux1", "aux2")),
    (Inception3, ("AuxLogits",)),
)
"""torchvision's networks with auxiliary classifiers, and where those are."""


class StrippedHead(nn.Module):
    """Stands where a head was that only training uses. It cannot be called: a part that runs costs what it costs.

    Args:
        path: Where the head was.
        type_name: Class of the head.
    """

    def __init__(self, path: str, type_name: str) -> None:
        super().__init__()
        self.path = path
        self.type_name = type_name

    def forward(self, *_: object, **__: object) -> NoReturn:
        """Refuse.

        Raises:
            UsageError: Always; the network is in training mode, or needs the head in evaluation.
        """
        raise UsageError(
            f"{self.path} ({self.type_name}) is marked training_only and was stripped, but the network calls it: "
            "set it to evaluation, or take the mark away"
        )


def strip_training_heads(model: nn.Module) -> nn.Module:
    """A copy without the parts that only training uses.

    These are modules with an attribute `training_only = True`, and the auxiliary classifiers of torchvision's GoogLeNet
    and Inception3. In evaluation the copy gives the same outputs, bit for bit; a network that calls a marked part there
    fails instead of giving others.

    Args:
        model: Any network; it is left as it is.

    Returns:
        The copy, or the model itself if it has no such parts.

    Raises:
        UncountableError: The model cannot be copied.
    """
    if not (_marked(model) or _with_auxiliary(model)):
        return model
    stripped = independent_copy(model)
    for network, heads in _with_auxiliary(stripped):
        for name, nothing in (("aux_logits", False), *((head, None) for head in heads)):
            setattr(network, name, nothing)
    # One at a time: a head in a head goes with it, and one that stands in two places is found again.
    while marked := _marked(stripped):
        path, head = marked[0]
        replace_module(stripped, path, StrippedHead(path, type(head).__name__))
    return stripped


def _marked(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts with the mark, by their path."""
    return [(path, module) for path, module in model.named_modules() if path and _is_training_only(module)]


def _is_training_only(module: nn.Module) -> bool:
    return getattr(module, "training_only", False) is True


def _with_auxiliary(model: nn.Module) -> list[tuple[nn.Module, tuple[str, ...]]]:
    return [
        (module, heads)
        for module in model.modules()
        for kind, heads in _AUXILIARY
        if isinstance(module, kind) and any(getattr(module, head, None) is not None for head in heads)
    ]
