"""Put another module in the place of one."""

from torch import nn


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module where another one stands; the order of the modules stays.

    Args:
        model: Is changed.
        path: Dotted path of the module that goes.
        module: The one that comes.
    """
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
