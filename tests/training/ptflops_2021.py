"""ptflops of today, told to count as in the summer of 2021."""

import copy

import ptflops
from ptflops.pytorch_ops import MODULES_MAPPING
from torch import nn

ACTIVATIONS = [nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6]


def ptflops_macs(model: nn.Module, size: int) -> int:
    """Of one image, and with subclasses taken for their bases; the model stays as it is."""
    subclasses = {
        kind: next(hook for base, hook in MODULES_MAPPING.items() if issubclass(kind, base))
        for kind in {type(module) for module in model.modules()} - {*MODULES_MAPPING, *ACTIVATIONS}
        if issubclass(kind, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AvgPool2d, nn.MaxPool2d))
    }
    macs, _ = ptflops.get_model_complexity_info(
        copy.deepcopy(model).eval(),
        (3, size, size),
        as_strings=False,
        print_per_layer_stat=False,
        verbose=False,
        backend="pytorch",
        backend_specific_config={"count_functional": False},
        ignore_modules=ACTIVATIONS,
        custom_modules_hooks=subclasses,
    )
    return macs
