"""Put several thin layers in the place of one: the structure of low-rank factorizations, without their weights.

A convolution's kernel [out, in / groups, height, width], or the weight of a fully connected layer [out, in], becomes

- `svd` (1x1 convolutions and fully connected layers): in → rank, with the stride; rank → out, with the bias;
- `tucker2` (k x k): 1x1 in → rank_in; k x k rank_in → rank_out, with stride, padding and dilation; 1x1 rank_out → out;
- `cp` (k x k): 1x1 in → rank; k x 1 and 1 x k, each channel by itself; 1x1 rank → out;
- `spatial` (k x k depthwise): k x 1 and 1 x k, each channel by itself; it has no ranks, all channels have rank 1;
- `separable` (k x k): k x 1 in → rank; 1 x k rank → out;
- `groups`: the same convolution with more groups, each of which sees a slice of the input; its "rank" is their number.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import Linear as TimmLinear
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from training.model.edits.base import Edit, module_at
from training.model.replace import replace_module

KIND = "factor"

CONVOLUTIONS: tuple[type[nn.Conv2d], ...] = (nn.Conv2d, Conv2dSame)
LINEARS: tuple[type[nn.Linear], ...] = (nn.Linear, TimmLinear)
"""What can be factorized. Other subclasses do more with their weight than multiply."""

Layer = nn.Conv2d | nn.Linear

_Geometry = tuple[int, int] | str
_NEUTRAL = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
"""What a convolution has that does nothing along an axis."""


def factored(path: str, form: str, ranks: Sequence[int]) -> Edit:
    """The edit that puts factors in the place of a layer.

    Args:
        path: Of the layer.
        form: One of `FORMS`.
        ranks: As many as the form has.
    """
    return {"kind": KIND, "module": path, "form": form, "ranks": [int(rank) for rank in ranks]}


def factor(model: nn.Module, edit: Edit) -> None:
    """Carry out `factored`.

    Raises:
        ValueError: It does not fit.
    """
    layer = module_at(model, edit["module"])
    replace_module(model, edit["module"], factors(layer, edit["form"], edit["ranks"]))


def factors(layer: nn.Module, form: str, ranks: Sequence[int]) -> nn.Module:
    """What takes the place of a layer, with random weights: a `Sequential`, of `groups` a convolution.

    Args:
        layer: Is left as it is.
        form: One of `FORMS`.
        ranks: As many as `full_ranks` has, each at least 1 and at most the full one.

    Raises:
        ValueError: The form or the ranks do not suit the layer.
    """
    reason = unsuitable(layer, form)
    if reason:
        raise ValueError(reason)
    assert isinstance(layer, Layer)
    _check_ranks(layer, form, ranks)
    made = _BUILDERS[form](layer, *ranks)
    return made.train(layer.training)


def unsuitable(layer: nn.Module, form: str) -> str | None:
    """Why a form does not suit a layer; None if it does."""
    if form not in _BUILDERS:
        return f"there is no form {form}; forms are {', '.join(FORMS)}"
    if type(layer) in LINEARS:
        return None if form == "svd" else f"{form} is for convolutions"
    if type(layer) not in CONVOLUTIONS:
        return f"a {type(layer).__name__} does more with its weight than a plain convolution"
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros":
        return f"it pads with {layer.padding_mode}, not with zeros"
    return _WRONG_SHAPE[form](layer)


def full_ranks(layer: Layer, form: str) -> tuple[int, ...]:
    """Ranks at which a form can be any weight; of `groups` the largest number of groups.

    Args:
        layer: One that the form suits.
        form: One of `FORMS`.
    """
    if isinstance(layer, nn.Linear):
        return (min(layer.in_features, layer.out_features),)
    inputs, outputs, (height, width) = layer.in_channels, layer.out_channels, sides(layer)
    return {
        "svd": (min(inputs, outputs),),
        "tucker2": (min(inputs, outputs * height * width), min(outputs, inputs * height * width)),
        "cp": (min(inputs, outputs) * height * width,),
        "spatial": (),
        "separable": (min(inputs * height, outputs * width),),
        "groups": (math.gcd(inputs, outputs),),
    }[form]


def sides(layer: nn.Conv2d) -> tuple[int, int]:
    """(height, width) of the kernel."""
    height, width = layer.kernel_size
    return height, width


def _check_ranks(layer: Layer, form: str, ranks: object) -> None:
    full = full_ranks(layer, form)
    if not isinstance(ranks, list | tuple) or len(ranks) != len(full):
        raise ValueError(f"{form} has {len(full)} ranks, not {ranks!r}")
    for rank, most in zip(ranks, full, strict=True):
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= most:
            raise ValueError(f"rank {rank!r} of {form} must lie between 1 and {most}")
    if form == "groups" and isinstance(layer, nn.Conv2d):
        _check_groups(layer, *ranks)


def _check_groups(layer: nn.Conv2d, groups: int) -> None:
    if groups % layer.groups or layer.in_channels % groups or layer.out_channels % groups:
        raise ValueError(
            f"{groups} groups must be a multiple of the {layer.groups} that it has and divide its "
            f"{layer.in_channels} inputs and {layer.out_channels} outputs"
        )


def _not_pointwise(layer: nn.Conv2d) -> str | None:
    if layer.groups > 1:
        return "it has groups, and svd is for convolutions without"
    return None if sides(layer) == (1, 1) else "it is no 1x1 convolution, and svd is for those"


def _not_dense(form: str) -> Callable[[nn.Conv2d], str | None]:
    def wrong(layer: nn.Conv2d) -> str | None:
        if layer.groups > 1:
            return f"it has groups, and {form} is for convolutions without"
        return f"it is a 1x1 convolution, and {form} is for larger kernels" if sides(layer) == (1, 1) else None

    return wrong


def _not_depthwise(layer: nn.Conv2d) -> str | None:
    if layer.groups != layer.in_channels:
        return "its channels are mixed, and spatial is for depthwise convolutions"
    return None if min(sides(layer)) > 1 else "its kernel has only one dimension"


def _no_more_groups(layer: nn.Conv2d) -> str | None:
    more = math.gcd(layer.in_channels, layer.out_channels) > layer.groups
    return None if more else "its channels cannot be divided into more groups"


def _pointwise(layer: nn.Conv2d, inputs: int, outputs: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=bias, device=layer.weight.device, dtype=layer.weight.dtype)


def _like(
    layer: nn.Conv2d, inputs: int, outputs: int, *, groups: int = 1, bias: bool = False, **other: _Geometry
) -> nn.Conv2d:
    """A convolution as this one, of the same class, which may pad in its own way."""
    options: dict[str, Any] = {name: getattr(layer, name) for name in _NEUTRAL} | other
    made = type(layer)(inputs, outputs, groups=groups, bias=bias, **options)
    return made.to(device=layer.weight.device, dtype=layer.weight.dtype)


def _along(layer: nn.Conv2d, axis: int, inputs: int, outputs: int, *, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution as this one along one axis (0 height, 1 width), that does nothing along the other one."""
    only: dict[str, _Geometry] = {}
    for name, neutral in _NEUTRAL.items():
        value = getattr(layer, name)
        if not isinstance(value, str):  # the padding "same" or "valid" holds for each axis by itself
            value = (value[0], neutral) if axis == 0 else (neutral, value[1])
        only[name] = value
    return _like(layer, inputs, outputs, groups=groups, bias=bias, **only)


def _svd(layer: Layer, rank: int) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        return nn.Sequential(
            _like(layer, layer.in_channels, rank), _pointwise(layer, rank, layer.out_channels, bias=bias)
        )
    place: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    return nn.Sequential(
        nn.Linear(layer.in_features, rank, bias=False, **place), nn.Linear(rank, layer.out_features, bias=bias, **place)
    )


def _tucker2(layer: nn.Conv2d, rank_in: int, rank_out: int) -> nn.Module:
    return nn.Sequential(
        _pointwise(layer, layer.in_channels, rank_in),
        _like(layer, rank_in, rank_out),
        _pointwise(layer, rank_out, layer.out_channels, bias=layer.bias is not None),
    )


def _cp(layer: nn.Conv2d, rank: int) -> nn.Module:
    return nn.Sequential(
        _pointwise(layer, layer.in_channels, rank),
        _along(layer, 0, rank, rank, groups=rank),
        _along(layer, 1, rank, rank, groups=rank),
        _pointwise(layer, rank, layer.out_channels, bias=layer.bias is not None),
    )


def _spatial(layer: nn.Conv2d) -> nn.Module:
    outputs = layer.out_channels
    return nn.Sequential(
        _along(layer, 0, layer.in_channels, outputs, groups=layer.in_channels),
        _along(layer, 1, outputs, outputs, groups=outputs, bias=layer.bias is not None),
    )


def _separable(layer: nn.Conv2d, rank: int) -> nn.Module:
    return nn.Sequential(
        _along(layer, 0, layer.in_channels, rank),
        _along(layer, 1, rank, layer.out_channels, bias=layer.bias is not None),
    )


def _groups(layer: nn.Conv2d, groups: int) -> nn.Module:
    return _like(layer, layer.in_channels, layer.out_channels, groups=groups, bias=layer.bias is not None)


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "svd": _svd,
    "tucker2": _tucker2,
    "cp": _cp,
    "spatial": _spatial,
    "separable": _separable,
    "groups": _groups,
}

FORMS = tuple(_BUILDERS)

_WRONG_SHAPE: dict[str, Callable[[nn.Conv2d], str | None]] = {
    "svd": _not_pointwise,
    "tucker2": _not_dense("tucker2"),
    "cp": _not_dense("cp"),
    "spatial": _not_depthwise,
    "separable": _not_dense("separable"),
    "groups": _no_more_groups,
}
