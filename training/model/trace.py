"""What flows through a model: the shape, the multiply-accumulates and the parameters of each of its blocks."""

from dataclasses import dataclass

from torch import nn

from training.measure.competition_macs import count_competition_macs
from training.measure.macs import LayerMacs, MacsReport, UncountableError, count_macs
from training.model.shapes import output_shapes

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
        competition_macs: What the competition's convention counts inside; None where it refuses the model.
    """

    path: str
    type_name: str
    output: tuple[int, ...] | None
    macs: int
    parameters: int
    competition_macs: int | None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A model, block by block.

    Args:
        cost: The whole, exactly.
        competition: The whole by the competition's convention; None where that refuses the model.
        refusal: Why it refuses; None where it doesn't.
        blocks: Those that run, in the order of the modules. Their numbers add up to the whole.
    """

    cost: MacsReport
    competition: MacsReport | None
    refusal: str | None
    blocks: tuple[Block, ...]


def trace_blocks(model: nn.Module, size: int, depth: int | None = None) -> Trace:
    """Send an image through a model and look at its blocks.

    Args:
        model: Takes float [n, 3, size, size]. It comes back in the mode it was in.
        size: Side of the image, px.
        depth: How many levels of modules are opened; None opens as many as it takes to show five blocks.

    Raises:
        UncountableError: The exact meter refuses the model.
    """
    cost = count_macs(model, size)
    competition, refusal = _competition(model, size)
    shapes = output_shapes(model, size)
    rows = [_block(model, path, shapes[path], cost, competition) for path in _paths(model, depth) if path in shapes]
    rest = _rest(model, rows, cost, competition)
    blocks = (*rows, rest) if rest.macs or rest.parameters or rest.competition_macs else tuple(rows)
    return Trace(cost=cost, competition=competition, refusal=refusal, blocks=blocks)


def _competition(model: nn.Module, size: int) -> tuple[MacsReport | None, str | None]:
    """The count by the competition's convention, or why there is none."""
    try:
        return count_competition_macs(model, size), None
    except UncountableError as error:
        return None, str(error)


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


def _block(
    model: nn.Module, path: str, output: tuple[int, ...] | None, cost: MacsReport, competition: MacsReport | None
) -> Block:
    inside = _inside(path, cost)
    return Block(
        path=path,
        type_name=type(model.get_submodule(path)).__name__,
        output=output,
        macs=sum(layer.macs for layer in inside),
        parameters=sum(layer.parameters for layer in inside),
        competition_macs=None if competition is None else sum(layer.macs for layer in _inside(path, competition)),
    )


def _inside(path: str, cost: MacsReport) -> list[LayerMacs]:
    return [layer for layer in cost.layers if layer.path == path or layer.path.startswith(f"{path}.")]


def _rest(model: nn.Module, rows: list[Block], cost: MacsReport, competition: MacsReport | None) -> Block:
    shown = sum(row.competition_macs or 0 for row in rows)
    return Block(
        path="",
        type_name=type(model).__name__,
        output=None,
        macs=cost.macs - sum(row.macs for row in rows),
        parameters=cost.parameters - sum(row.parameters for row in rows),
        competition_macs=None if competition is None else competition.macs - shown,
    )
