"""Remove a block: what comes in goes out."""

from torch import nn

from training.model.edits.base import Edit, module_at
from training.model.replace import replace_module

KIND = "remove"


def removed(path: str) -> Edit:
    """The edit that takes a block away.

    Args:
        path: Of a module whose output has the shape of its input.
    """
    return {"kind": KIND, "module": path}


def remove(model: nn.Module, edit: Edit) -> None:
    """Carry out `removed`."""
    module_at(model, edit["module"])
    replace_module(model, edit["module"], nn.Identity())
