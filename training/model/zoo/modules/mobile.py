"""Other blocks of small networks: channel shuffle, ghost channels, attention over patches, several resolutions."""

from collections import OrderedDict

import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.ghostnet import GhostBottleneck
from timm.models.mobilevit import MobileVitBlock
from torch import Tensor, nn
from torchvision.models import shufflenetv2

from training.model.zoo.activations import activation_class, make_activation
from training.model.zoo.arguments import (
    Argument,
    Values,
    activation,
    block_stride,
    channels,
    flag,
    nothing_but,
    odd_kernel,
    ratio,
    whole,
)
from training.model.zoo.modules.convolutions import conv_bn_act
from training.model.zoo.modules.residual import Residual
from training.model.zoo.piece import Piece
from training.model.zoo.scaling import make_divisible


def _shuffle_v2(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    out = make_divisible(values["c"] * width)
    if values["s"] == 1 and in_channels != out:
        raise ValueError(f"at stride 1 as many channels go out as come in, {in_channels}, not {out}; take stride 2")
    return shufflenetv2.InvertedResidual(in_channels, out, values["s"]), out


def _ghost(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    out, hidden = make_divisible(values["c"] * width), make_divisible(in_channels * values["t"])
    squeeze = 0.25 if values["se"] else 0.0
    return GhostBottleneck(in_channels, hidden, out, values["k"], values["s"], se_ratio=squeeze), out


def _mobile_vit(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    dim, heads = make_divisible(values["dim"] * width), values["heads"]
    if dim % heads:
        raise ValueError(f"heads {heads} must divide the {dim} channels of the transformer")
    block = MobileVitBlock(
        in_channels,
        kernel_size=values["k"],
        transformer_dim=dim,
        transformer_depth=values["depth"],
        patch_size=values["patch"],
        num_heads=heads,
        mlp_ratio=values["mlp_ratio"],
    )
    return block, in_channels


def _space_to_channel(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    return nn.PixelUnshuffle(values["factor"]), in_channels * values["factor"] ** 2


class MuxInvertedResidual(nn.Module):
    """Three quarters of the channels go through an inverted residual, then all are shuffled.

    Args:
        in_channels: Channels that come in and go out; an even number.
        kernel: Side of the depthwise kernel, px.
        expansion: Channels in the middle per channel that is worked on.
        se_ratio: Squeezed channels per channel that is worked on; 0 for no attention.
        scales: Resolutions of the depthwise convolution, shared out among the channels: -2 works at half the
            resolution, 2 at twice, 0 as it is. An empty list is 0 alone.
        act: Name of the activation.
    """

    def __init__(
        self, in_channels: int, kernel: int, expansion: float, se_ratio: float, scales: list[int], act: str | None
    ) -> None:
        super().__init__()
        self.worked = in_channels * 3 // 4
        hidden = make_divisible(self.worked * expansion, 4 * max(len(scales), 1))  # each share a multiple of 2 x 2
        parts = OrderedDict[str, nn.Module](expand=conv_bn_act(self.worked, hidden, 1, act=act))
        parts["depthwise"] = MuxDepthwise(hidden, kernel, scales or [0])
        parts |= {"norm": nn.BatchNorm2d(hidden), "act": make_activation(act)}
        if int(self.worked * se_ratio):
            squeezed = int(self.worked * se_ratio)
            parts["attention"] = SqueezeExcite(hidden, rd_channels=squeezed, act_layer=activation_class(act))
        parts["project"] = conv_bn_act(hidden, self.worked, 1, act=None)
        self.block = Residual(nn.Sequential(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Work on the first channels, shuffle all.

        Args:
            x: float [n, c, h, w].
        """
        kept = x[:, self.worked :]
        mixed: Tensor = shufflenetv2.channel_shuffle(torch.cat((self.block(x[:, : self.worked]), kept), 1), 2)
        return mixed


class MuxDepthwise(nn.Module):
    """A depthwise convolution whose shares of channels work at different resolutions.

    Args:
        channels: A multiple of four times the number of scales.
        kernel: Side, px.
        scales: One of -2, 0, 2 for each share.
    """

    def __init__(self, channels: int, kernel: int, scales: list[int]) -> None:
        super().__init__()
        self.share = channels // len(scales)
        self.convs = nn.ModuleList(_at_scale(self.share, kernel, scale) for scale in scales)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve each share.

        Args:
            x: float [n, c, h, w]; even h and w if a scale is -2.
        """
        return torch.cat([conv(part) for conv, part in zip(self.convs, torch.split(x, self.share, 1), strict=True)], 1)


def _at_scale(channels: int, kernel: int, scale: int) -> nn.Module:
    inner = {-2: channels * 4, 0: channels, 2: channels // 4}[scale]
    conv = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner, bias=False)
    if scale == 0:
        return conv
    there, back = (
        (nn.PixelUnshuffle(2), nn.PixelShuffle(2)) if scale < 0 else (nn.PixelShuffle(2), nn.PixelUnshuffle(2))
    )
    return nn.Sequential(there, conv, back)


def _mux(values: Values, in_channels: int, width: float) -> tuple[nn.Module, int]:
    if in_channels % 2:
        raise ValueError(f"{in_channels} channels cannot be shuffled in two halves; let an even number come in")
    scales = values["scales"] or []
    block = MuxInvertedResidual(in_channels, values["k"], values["t"], values["se_ratio"], scales, values["act"])
    return block, in_channels


def _scales(value: object) -> bool:
    is_list = isinstance(value, list) and 1 <= len(value) <= 8 and all(_is_scale(scale) for scale in value)
    return is_list or (_is_scale(value) and value == 0)


def _is_scale(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in (-2, 0, 2)


_GHOST = (odd_kernel(), ratio(), channels(), flag("se"), block_stride())
_VIT = (
    channels("dim"),
    whole("depth", 1, 16, 2),
    odd_kernel(default=3),
    whole("patch", 1, 16, 2),
    whole("heads", 1, 64, 4),
    ratio("mlp_ratio", 0.25, 8.0, 2.0),
)
_MUX = (
    odd_kernel(),
    nothing_but("s", 1, 1),
    ratio(),
    ratio("se_ratio", 0.0, 1.0),
    Argument(name="scales", meaning="0 or a list of -2, 0 and 2", fits=_scales),
    activation(),
)

PIECES = {
    "ShuffleNetV2": Piece(arguments=(channels(), block_stride()), make=_shuffle_v2),
    "GhostBottleneck": Piece(arguments=_GHOST, make=_ghost),
    "MobileViTBlock": Piece(arguments=_VIT, make=_mobile_vit),
    "SpaceToChannel": Piece(arguments=(whole("factor", 2, 4, 2),), make=_space_to_channel),
    "MuxInvertedResidual": Piece(arguments=_MUX, make=_mux),
}
