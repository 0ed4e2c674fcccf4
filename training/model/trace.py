"""What flows through a model: the shape, the multiply-accumulates and the parameters of each of its blocks."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from training.measure.macs import MacsReport, count_macs

FEWEST_ROWS = 5
"""So many blocks a trace shows at least, where the model has them and nobody asks for a depth."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One row of a trace.

    Args:
        path: Dotted module path; `""` for what the model does outside of its blocks.
        type_name: Class of the module.
        output: Shape of what comes out for one image, without the batch; None where it is no tensor.
        macs: Multiply-accumulates, of everything inside.
        parameters: Of everything inside.
    """

    path: str
    type_name: str
    output: tuple[int, ...] | None
    macs: int
    parameters: int


def trace_blocks(model: nn.Module, size: int, depth: int | None = None) -> tuple[MacsReport, tuple[Block, ...]]:
    """Send an image through a model and look at its blocks.

    Args:
        model: Takes float [n, 3, size, size]. It comes back in the mode it was in.
        size: Side of the image, px.
        depth: How many levels of modules are opened; None opens as many as it takes to show five blocks.

    Returns:
        The whole cost, and the blocks that run, in the order of the modules; their MACs and parameters add up to it.
    """
    cost = count_macs(model, size)
    shapes = _output_shapes(model, size)
    paths = _paths(model, depth)
    rows = [_block(model, path, shapes[path], cost) for path in paths if path in shapes]
    rest = _rest(model, rows, cost)
    return cost, (*rows, rest) if rest.macs or rest.parameters else tuple(rows)


def _paths(model: nn.Module, depth: int | None) -> list[str]:
    if depth is not None:
        return _paths_at(model, depth)
    levels = [_paths_at(model, level) for level in range(1, 5)]
    return next((paths for paths in levels if len(paths) >= FEWEST_ROWS), levels[-1])


def _paths_at(model: nn.Module, depth: int) -> list[str]:
    """Modules so many levels down, and those above that have nothing inside."""
    modules = [(path, path.count(".") + 1, module) for path, module in model.named_modules() if path]
    return [path for path, level, module in modules if level == depth or (level < depth and not _children(module))]


def _children(module: nn.Module) -> list[nn.Module]:
    return list(module.children())


def _output_shapes(model: nn.Module, size: int) -> dict[str, tuple[int, ...] | None]:
    """Shape per path of each module that runs."""
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
    shapes[path] = tuple(output.shape[1:]) if isinstance(output, Tensor) else None


def _block(model: nn.Module, path: str, output: tuple[int, ...] | None, cost: MacsReport) -> Block:
    inside = [layer for layer in cost.layers if layer.path == path or layer.path.startswith(f"{path}.")]
    return Block(
        path=path,
        type_name=type(model.get_submodule(path)).__name__,
        output=output,
        macs=sum(layer.macs for layer in inside),
        parameters=sum(layer.parameters for layer in inside),
    )


def _rest(model: nn.Module, rows: list[Block], cost: MacsReport) -> Block:
    return Block(
        path="",
        type_name=type(model).__name__,
        output=None,
        macs=cost.macs - sum(row.macs for row in rows),
        parameters=cost.parameters - sum(row.parameters for row in rows),
    )
