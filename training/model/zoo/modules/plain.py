"""Pooling, flattening, dropout and the fully connected layer."""

from collections import OrderedDict

from torch import nn

from training.model.zoo.activations import make_activation
from training.model.zoo.arguments import Values, activation, channels, flag, kernel, nothing_but, ratio, whole
from training.model.zoo.piece import Piece


def _max_pool(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    _check_padding(values)
    pool = nn.MaxPool2d(values["k"], values["s"], values["pad"], values["dilation"], ceil_mode=bool(values["ceil"]))
    return pool, in_channels


def _average_pool(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    _check_padding(values)
    pool = nn.AvgPool2d(
        values["k"],
        values["s"],
        values["pad"],
        ceil_mode=bool(values["ceil"]),
        count_include_pad=bool(values["count_include_pad"]),
        divisor_override=values["divisor"],
    )
    return pool, in_channels


def _check_padding(values: Values) -> None:
    if values["pad"] > values["k"] // 2:
        raise ValueError(f"pad {values['pad']} is more than half of the kernel {values['k']}; torch takes at most half")


def _global_pool(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    return nn.AdaptiveAvgPool2d(1), in_channels


def _flatten(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    return nn.Flatten(), in_channels


def _dropout(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    return nn.Dropout(values["p"]), in_channels


def _linear(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    layer = nn.Linear(in_channels, values["n"])
    if values["act"] is None:
        return layer, values["n"]
    return nn.Sequential(OrderedDict(linear=layer, act=make_activation(values["act"]))), values["n"]


_POOL_STRIDE = whole("s", 1, 31, None)

PIECES = {
    "MaxPool": Piece(
        arguments=(
            kernel(),
            _POOL_STRIDE,
            whole("pad", 0, 15, 0),
            whole("dilation", 1, 15, 1),
            nothing_but("return_indices", False, False),
            flag("ceil", False),
        ),
        make=_max_pool,
    ),
    "AvgPool": Piece(
        arguments=(
            kernel(),
            _POOL_STRIDE,
            whole("pad", 0, 15, 0),
            flag("ceil", False),
            flag("count_include_pad", True),
            whole("divisor", 1, 1024, None),
        ),
        make=_average_pool,
    ),
    "GlobalAvgPool": Piece(arguments=(), make=_global_pool, gives="pooled"),
    "Flatten": Piece(arguments=(), make=_flatten, takes=("pooled", "vector"), gives="vector"),
    "Dropout": Piece(arguments=(ratio("p", 0.0, 0.95),), make=_dropout, takes=("map", "pooled", "vector")),
    "Linear": Piece(
        arguments=(channels("n"), activation(None)), make=_linear, takes=("vector",), gives="vector", classifier=True
    ),
}
