"""What comes out of each module of a network."""

from functools import partial

import torch
from torch import Tensor, nn


def output_shapes(model: nn.Module, size: int) -> dict[str, tuple[int, ...] | None]:
    """Send an image through a network, and note what its modules put out.

    Args:
        model: Takes float [n, 3, size, size]. It comes back in the mode it was in.
        size: Side of the image in px.

    Returns:
        Path of each module that runs (`""` for the network itself) -> shape without the batch, None where it is no
        tensor; in the order in which they finish, those that run several times where they finish last.
    """
    shapes: dict[str, tuple[int, ...] | None] = {}
    handles = [
        module.register_forward_hook(partial(_note_shape, shapes, path)) for path, module in model.named_modules()
    ]
    parameter = next(model.parameters(), torch.zeros(1))
    was_training = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return shapes


def _note_shape(
    shapes: dict[str, tuple[int, ...] | None], path: str, _module: nn.Module, _inputs: object, output: object
) -> None:
    shapes.pop(path, None)
    shapes[path] = tuple(output.shape[1:]) if isinstance(output, Tensor) else None
