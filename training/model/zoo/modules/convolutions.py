"""Convolutions with normalization and activation, alone and as bottlenecks."""

import math
from collections import OrderedDict

from timm.layers import EcaModule
from torch import nn
from torchvision.models.squeezenet import Fire

from training.model.zoo.activations import make_activation
from training.model.zoo.arguments import Values, activation, channels, flag, kernel, padding, ratio, stride, whole
from training.model.zoo.modules.residual import residual_if
from training.model.zoo.piece import Piece
from training.model.zoo.scaling import make_divisible


def conv_bn_act(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    *,
    pad: int | None = None,
    groups: int = 1,
    act: str | None = "ReLU",
) -> nn.Sequential:
    """A convolution without bias, batch normalization, activation.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        kernel: Side, px.
        stride: In px.
        pad: At each side, px; None is half the kernel, rounded down.
        groups: Must divide both counts of channels.
        act: Name of the activation; None for none.
    """
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups {groups} must divide the {in_channels} channels that come in and the {out_channels} that go out; "
            "choose a common divisor"
        )
    padding = kernel // 2 if pad is None else pad
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels), act=make_activation(act)))


def _conv(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    out = make_divisible(values["c"] * width)
    return _conv_to(values, in_channels, out), out


def _fixed_conv(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    return _conv_to(values, in_channels, values["c"]), values["c"]


def _conv_to(values: Values, in_channels: int, out: int) -> nn.Module:
    rest = {name: values[name] for name in ("pad", "groups", "act")}
    return conv_bn_act(in_channels, out, values["k"], values["s"], **rest)


def _depthwise(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    out = make_divisible(values["c"] * width)
    groups = math.gcd(in_channels, out)
    return conv_bn_act(
        in_channels, out, values["k"], values["s"], pad=values["pad"], groups=groups, act=values["act"]
    ), out


def _bottleneck(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    body, out = _bottleneck_body(values, in_channels, width)
    return residual_if(bool(values["shortcut"]) and in_channels == out, body), out


def _eca_bottleneck(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    body, out = _bottleneck_body(values, in_channels, width)
    body.add_module("attention", EcaModule(out))
    return residual_if(bool(values["shortcut"]) and in_channels == out, body), out


def _bottleneck_body(values: Values, in_channels: int, width: float) -> tuple[nn.Sequential, int]:
    # The first definitions kept the ReLU of the second convolution whatever the activation said.
    out = in_channels if values["c"] is None else make_divisible(values["c"] * width)
    hidden = max(int(out * values["expansion"]), 1)
    reduce = conv_bn_act(in_channels, hidden, 1, act=values["act"])
    expand = conv_bn_act(hidden, out, 3, groups=values["groups"])
    return nn.Sequential(OrderedDict(reduce=reduce, expand=expand)), out


def _fire(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    squeeze, one, three = (make_divisible(values[name] * width) for name in ("squeeze", "e1", "e3"))
    return Fire(in_channels, squeeze, one, three), one + three


_GROUPS = whole("groups", 1, 16384, 1)
_CONV = (channels(), kernel(), stride(1), padding(), _GROUPS, activation())
_BOTTLENECK = (channels(), flag("shortcut", True), _GROUPS, ratio("expansion", default=0.5), activation())

PIECES = {
    "Conv": Piece(arguments=_CONV, make=_conv, stride_at="last"),
    "FixedConv": Piece(arguments=_CONV, make=_fixed_conv, stride_at="last", classifier=True),
    "DWConv": Piece(
        arguments=(channels(), kernel(), stride(1), padding(), activation()), make=_depthwise, stride_at="last"
    ),
    "Bottleneck": Piece(arguments=_BOTTLENECK, make=_bottleneck, channels_at="last"),
    "ECABottleneck": Piece(arguments=_BOTTLENECK, make=_eca_bottleneck, channels_at="last"),
    "Fire": Piece(arguments=(channels("squeeze"), channels("e1"), channels("e3")), make=_fire),
}
