"""What the registry knows of a module: its arguments, how one unit of it is made, and how it is repeated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from training.model.zoo.arguments import Argument, Values

Make = Callable[[Values, int, float], tuple[nn.Module, int]]
"""(arguments, channels that come in, width multiple) -> (module, channels that go out). Raises ValueError with a
sentence for people if these arguments do not go with these channels."""

Place = Literal["first", "last"]
Form = Literal["map", "pooled", "vector"]
"""What flows between lines: [n, c, h, w]; [n, c, 1, 1]; [n, c]."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A module of the zoo.

    Args:
        arguments: What its line takes.
        make: Makes one unit.
        stride_at: Which of several repeats has the stride `s`; the others have 1.
        channels_at: Which of several repeats changes the number of channels: `c` is None for those before it, which
            means as many as come in.
        takes: Forms it can follow.
        gives: Form of what goes out; None leaves it as it was.
        classifier: Whether it may be the last line with weights; its first argument is then the number of classes.
    """

    arguments: tuple[Argument, ...]
    make: Make
    stride_at: Place = "first"
    channels_at: Place = "first"
    takes: tuple[Form, ...] = ("map", "pooled")
    gives: Form | None = None
    classifier: bool = False


def values_of_repeat(piece: Piece, values: Values, index: int, repeats: int) -> Values:
    """The arguments of one of several repeats.

    Args:
        piece: Whose repeats.
        values: The arguments as written.
        index: Which repeat, from 0.
        repeats: How many there are.
    """
    changed = dict(values)
    if "s" in values and index != (0 if piece.stride_at == "first" else repeats - 1):
        changed["s"] = 1
    if piece.channels_at == "last" and index != repeats - 1:
        changed["c"] = None
    return changed
