"""What a module's list of arguments may hold: names, types, bounds and defaults, checked with one clear message."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.model.zoo.activations import activation_names, is_activation

Values = Mapping[str, Any]
"""Arguments of one line by name, checked and with defaults filled in."""

MAX_CHANNELS = 16384
"""Nobody means more; a slip of the hand should not ask for terabytes."""

_REQUIRED = object()


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One place in a module's list of arguments.

    Args:
        name: Short, as the literature has it.
        meaning: What may stand there, in words, after "must be".
        fits: Whether a value may stand there.
        default: Taken when the list ends earlier; without one the argument is required.
    """

    name: str
    meaning: str
    fits: Callable[[object], bool]
    default: object = _REQUIRED

    @property
    def required(self) -> bool:
        """Whether a list without it is too short."""
        return self.default is _REQUIRED


def bind(arguments: Sequence[Argument], args: Sequence[object]) -> dict[str, Any]:
    """Give each value its name.

    Args:
        arguments: What the module takes.
        args: What the line of the definition gives.

    Returns:
        Name to value, defaults filled in.

    Raises:
        ValueError: Too few or too many values, or one that may not stand there.
    """
    takes = "[" + ", ".join(a.name if a.required else f"{a.name}={_shown(a.default)}" for a in arguments) + "]"
    least = sum(argument.required for argument in arguments)
    if not least <= len(args) <= len(arguments):
        raise ValueError(f"has {len(args)} arguments, but takes {takes}; give the missing or drop the surplus ones")
    for argument, value in zip(arguments, args, strict=False):
        if not argument.fits(value):
            raise ValueError(f"argument {argument.name} of {takes} must be {argument.meaning}, not {_shown(value)}")
    given = dict(zip((argument.name for argument in arguments), args, strict=False))
    return {argument.name: given.get(argument.name, argument.default) for argument in arguments}


def _shown(value: object) -> str:
    return "null" if value is None else str(value) if isinstance(value, bool) else repr(value)


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def channels(name: str = "c") -> Argument:
    """A count of channels or outputs."""
    meaning = f"a whole number from 1 to {MAX_CHANNELS}"
    return Argument(name=name, meaning=meaning, fits=lambda value: _whole(value, 1, MAX_CHANNELS))


def whole(name: str, least: int, most: int, default: object = _REQUIRED) -> Argument:
    """A whole number within bounds."""
    meaning = f"a whole number from {least} to {most}"
    return Argument(name=name, meaning=meaning, fits=lambda value: _whole(value, least, most), default=default)


def kernel(name: str = "k", default: object = _REQUIRED) -> Argument:
    """The side of a kernel."""
    return whole(name, 1, 31, default)


def odd_kernel(name: str = "k", default: object = _REQUIRED) -> Argument:
    """The side of a kernel that has a middle, as every residual block needs."""
    fits: Callable[[object], bool] = lambda value: _whole(value, 1, 31) and int(str(value)) % 2 == 1  # noqa: E731
    return Argument(name=name, meaning="an odd whole number from 1 to 31", fits=fits, default=default)


def odd_kernels(name: str = "k") -> Argument:
    """One kernel side, or several: the channels are shared out among them."""
    one = odd_kernel().fits

    def fits(value: object) -> bool:
        return one(value) or (isinstance(value, list) and 1 <= len(value) <= 8 and all(one(side) for side in value))

    return Argument(name=name, meaning="an odd whole number, or a list of them such as [3, 5, 7]", fits=fits)


def stride(default: object = _REQUIRED) -> Argument:
    """Stride of a plain convolution."""
    return whole("s", 1, 16, default)


def block_stride(default: object = _REQUIRED) -> Argument:
    """Stride of a residual block."""
    return Argument(name="s", meaning="1 or 2", fits=lambda value: _whole(value, 1, 2), default=default)


def padding() -> Argument:
    """Pixels added at each side; null keeps the size at stride 1."""
    fits: Callable[[object], bool] = lambda value: value is None or _whole(value, 0, 15)  # noqa: E731
    return Argument(
        name="pad", meaning="null (half the kernel) or a whole number from 0 to 15", fits=fits, default=None
    )


def ratio(name: str = "t", least: float = 0.05, most: float = 64.0, default: object = _REQUIRED) -> Argument:
    """A factor on the number of channels, or a probability."""
    meaning = f"a number from {least:g} to {most:g}"
    return Argument(name=name, meaning=meaning, fits=lambda value: _number(value, least, most), default=default)


def flag(name: str, default: object = _REQUIRED) -> Argument:
    """Yes or no, also written 1 or 0."""
    fits: Callable[[object], bool] = lambda value: isinstance(value, bool) or _whole(value, 0, 1)  # noqa: E731
    return Argument(name=name, meaning="0, 1, false or true", fits=fits, default=default)


def activation(default: object = "ReLU") -> Argument:
    """Name of an activation; null is none."""
    meaning = f"null or one of {', '.join(activation_names())}"
    return Argument(name="act", meaning=meaning, fits=is_activation, default=default)


def nothing_but(name: str, value: object, default: object) -> Argument:
    """A place that torch has but that only one value makes sense in."""
    return Argument(name=name, meaning=_shown(value), fits=lambda given: given == value, default=default)
