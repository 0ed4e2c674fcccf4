"""Inverted residuals: wide in the middle, narrow at both ends, a shortcut between the narrow ends."""

from collections import OrderedDict
from functools import partial

from timm.layers import EcaModule
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
from torch import nn
from torchvision.models import mobilenetv2, mobilenetv3

from training.model.zoo.activations import activation_class
from training.model.zoo.arguments import (
    Values,
    activation,
    block_stride,
    channels,
    flag,
    odd_kernel,
    odd_kernels,
    ratio,
)
from training.model.zoo.modules.convolutions import conv_bn_act
from training.model.zoo.modules.residual import residual_if
from training.model.zoo.piece import Piece
from training.model.zoo.scaling import make_divisible


def _v2(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    body, out = _v2_body(values, in_channels, width)
    return residual_if(values["s"] == 1 and in_channels == out, body), out


def _v2_eca(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    body, out = _v2_body(values, in_channels, width)
    hidden = body[-2].in_channels
    parts = OrderedDict(list(body.named_children())[:-2])
    parts |= {"attention": EcaModule(hidden), "project": body[-2], "norm": body[-1]}
    return residual_if(values["s"] == 1 and in_channels == out, nn.Sequential(parts)), out


def _v2_body(values: Values, in_channels: int, width: float) -> tuple[nn.Sequential, int]:
    out = make_divisible(values["c"] * width)
    if round(in_channels * values["t"]) < 1:
        raise ValueError(f"t {values['t']} leaves none of {in_channels} channels; raise it")
    return mobilenetv2.InvertedResidual(in_channels, out, values["s"], values["t"]).conv, out


def _v3(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    return _v3_with(_squeeze_v3, values, in_channels, width)


def _v3_eca(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    return _v3_with(_eca, values, in_channels, width)


def _v3_with(attention: object, values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    out, hidden = make_divisible(values["c"] * width), make_divisible(in_channels * values["t"])
    kind = "HS" if values["hs"] else "RE"
    config = mobilenetv3.InvertedResidualConfig(
        8, values["k"], hidden, out, bool(values["se"]), kind, values["s"], 1, 1
    )
    config.input_channels = in_channels  # the constructor would round it, and a Fire or an image need not fit
    body = mobilenetv3.InvertedResidual(config, nn.BatchNorm2d, attention).block
    return residual_if(values["s"] == 1 and in_channels == out, body), out


def _squeeze_v3(hidden: int, squeezed: int) -> nn.Module:
    return SqueezeExcite(hidden, rd_channels=squeezed, gate_layer=nn.Hardsigmoid)


def _eca(hidden: int, _squeezed: int) -> nn.Module:
    return EcaModule(hidden)


def _mbconv(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    out = make_divisible(values["c"] * width)
    squeeze = partial(SqueezeExcite, rd_channels=max(in_channels // 4, 1))
    body = timm_body(in_channels, out, values["k"], values["s"], values["t"], nn.SiLU, squeeze)
    return residual_if(values["s"] == 1 and in_channels == out, body), out


def _fused_mbconv(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    out, hidden = make_divisible(values["c"] * width), make_divisible(in_channels * values["t"])
    expand = conv_bn_act(in_channels, hidden, values["k"], values["s"], act="SiLU")
    body = nn.Sequential(OrderedDict(expand=expand, project=conv_bn_act(hidden, out, 1, act=None)))
    return residual_if(values["s"] == 1 and in_channels == out, body), out


def _mixnet(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    out = make_divisible(values["c"] * width)
    squeeze = partial(SqueezeExcite, rd_channels=max(in_channels // 4, 1)) if values["se"] else None
    act = activation_class(values["act"])
    body = timm_body(in_channels, out, values["kernels"], values["s"], values["t"], act, squeeze)
    return residual_if(values["s"] == 1 and in_channels == out, body), out


def _mixed(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    out = make_divisible(values["c"] * width)
    squeezed = int(in_channels * values["se_ratio"])
    squeeze = partial(SqueezeExcite, rd_channels=squeezed) if squeezed else None
    act = activation_class(values["act"])
    body = timm_body(in_channels, out, values["k"], values["s"], values["t"], act, squeeze)
    return residual_if(values["s"] == 1 and in_channels == out, body), out


def timm_body(
    in_channels: int,
    out: int,
    kernels: int | list[int],
    stride: int,
    expansion: float,
    act: type[nn.Module],
    squeeze: object,
) -> nn.Module:
    """The inverted residual of timm without its shortcut; without the expansion too where it would not expand.

    Args:
        in_channels: Channels that come in.
        out: Channels that go out.
        kernels: Side of the depthwise kernel, or several that share the channels, px.
        stride: In px.
        expansion: Channels in the middle per channel that comes in; the product is rounded to a multiple of 8.
        act: Class of the activation.
        squeeze: Makes the attention in the middle; None for none.
    """
    hidden = in_channels if expansion == 1 else make_divisible(in_channels * expansion)
    if isinstance(kernels, list) and hidden < len(kernels):
        raise ValueError(f"{len(kernels)} kernels cannot share {hidden} channels; name fewer kernels")
    common = {"stride": stride, "act_layer": act, "se_layer": squeeze, "noskip": True}
    if expansion == 1:
        return DepthwiseSeparableConv(in_channels, out, kernels, **common)
    return InvertedResidual(in_channels, out, kernels, exp_ratio=expansion, **common)


_EFFICIENT = (ratio(), channels(), block_stride(), odd_kernel())
_V2 = (channels(), ratio(), block_stride())
_V3 = (odd_kernel(), ratio(), channels(), flag("se"), flag("hs"), block_stride())
_SE_RATIO = ratio("se_ratio", 0.0, 1.0)

PIECES = {
    "InvertedResidualv2": Piece(arguments=_V2, make=_v2),
    "ECAInvertedResidualv2": Piece(arguments=_V2, make=_v2_eca),
    "InvertedResidualv3": Piece(arguments=_V3, make=_v3),
    "ECAInvertedResidualv3": Piece(arguments=_V3, make=_v3_eca),
    "MBConv": Piece(arguments=_EFFICIENT, make=_mbconv),
    "FusedMBConv": Piece(arguments=_EFFICIENT, make=_fused_mbconv),
    "MixNetBlock": Piece(
        arguments=(odd_kernels("kernels"), ratio(), channels(), flag("se"), block_stride(), activation()), make=_mixnet
    ),
    "InvertedResidual": Piece(
        arguments=(odd_kernels(), block_stride(), channels(), ratio(), _SE_RATIO, activation()), make=_mixed
    ),
}
