"""The edit that puts thin layers in the place of a thick one."""

import pytest
import torch
from timm.layers import Linear as TimmLinear
from timm.layers import ScaledStdConv2d
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from pipelines.errors import UsageError
from training.model.edits.apply import apply_edits
from training.model.edits.factor import FORMS, factored, factors, full_ranks, unsuitable


def shapes(module):
    return [tuple(part.weight.shape) for part in module.modules() if hasattr(part, "weight")]


def test_svd_of_a_pointwise_convolution_and_of_a_linear_layer():
    made = factors(nn.Conv2d(8, 12, 1, stride=2, padding=1), "svd", [3])
    assert shapes(made) == [(3, 8, 1, 1), (12, 3, 1, 1)]
    assert (made[0].stride, made[0].padding, made[0].bias) == ((2, 2), (1, 1), None)
    assert (made[1].stride, made[1].padding) == ((1, 1), (0, 0))
    assert made[1].bias is not None
    made = factors(TimmLinear(8, 12, bias=False), "svd", [3])
    assert shapes(made) == [(3, 8), (12, 3)]
    assert made[1].bias is None


def test_tucker2_keeps_the_geometry_in_its_core():
    made = factors(nn.Conv2d(8, 12, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 3)), "tucker2", [3, 4])
    assert shapes(made) == [(3, 8, 1, 1), (4, 3, 3, 5), (12, 4, 1, 1)]
    assert (made[1].stride, made[1].padding, made[1].dilation) == ((2, 1), (1, 2), (2, 3))
    assert [part.bias is None for part in made] == [True, True, False]


@pytest.mark.parametrize("form", ["cp", "separable", "spatial"])
def test_one_dimensional_kernels_share_the_geometry(form):
    groups = 8 if form == "spatial" else 1
    layer = nn.Conv2d(8, 16, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 3), groups=groups)
    made = factors(layer, form, [] if form == "spatial" else [4])
    tall, wide = [part for part in made if part.kernel_size != (1, 1)]
    assert (tall.kernel_size, wide.kernel_size) == ((3, 1), (1, 5))
    assert (tall.stride, wide.stride) == ((2, 1), (1, 1))
    assert (tall.padding, wide.padding) == ((1, 0), (0, 2))
    assert (tall.dilation, wide.dilation) == ((2, 1), (1, 3))
    expected = {
        "cp": [(4, 8, 1, 1), (4, 1, 3, 1), (4, 1, 1, 5), (16, 4, 1, 1)],
        "separable": [(4, 8, 3, 1), (16, 4, 1, 5)],
        "spatial": [(16, 1, 3, 1), (16, 1, 1, 5)],
    }
    assert shapes(made) == expected[form]
    assert made[-1].bias is not None


def test_more_groups_stay_one_convolution():
    made = factors(nn.Conv2d(12, 24, 3, padding=1, groups=3), "groups", [6])
    assert isinstance(made, nn.Conv2d)
    assert (made.groups, tuple(made.weight.shape)) == (6, (24, 2, 3, 3))


def test_the_paddings_of_words_and_of_tensorflow_stay():
    made = factors(nn.Conv2d(4, 4, (5, 3), padding="same"), "separable", [2])
    assert made(torch.zeros(1, 4, 7, 7)).shape == (1, 4, 7, 7)
    made = factors(Conv2dSame(4, 4, 3, stride=2), "tucker2", [2, 2])
    assert [type(part) for part in made] == [nn.Conv2d, Conv2dSame, nn.Conv2d]
    assert made(torch.zeros(1, 4, 7, 7)).shape == (1, 4, 4, 4)


def test_device_dtype_and_mode_come_from_the_layer():
    made = factors(nn.Conv2d(4, 4, 3, device="meta", dtype=torch.bfloat16).eval(), "cp", [2])
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in made.parameters())
    assert not any(module.training for module in made.modules())
    made = factors(Conv2dSame(4, 4, 1).double(), "svd", [2])
    assert made.training
    assert all(parameter.dtype == torch.float64 for parameter in made.parameters())


def test_apply_puts_it_in_the_place_of_the_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 1)))
    apply_edits(model, [factored("1.0", "svd", [2]), factored("1.0.1", "svd", [1])], "it")
    assert [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)] == [
        "0",
        "1.0.0",
        "1.0.1.0",
        "1.0.1.1",
    ]


@pytest.mark.parametrize(
    ("layer", "form", "why"),
    [
        (nn.Conv2d(4, 4, 3, padding_mode="reflect"), "tucker2", "pads with reflect"),
        (ScaledStdConv2d(4, 4, 3), "tucker2", "ScaledStdConv2d does more"),
        (nn.ReLU(), "svd", "ReLU does more"),
        (nn.Linear(4, 4), "tucker2", "tucker2 is for convolutions"),
        (nn.Conv2d(4, 4, 3), "svd", "no 1x1 convolution"),
        (nn.Conv2d(4, 4, 1, groups=2), "svd", "has groups, and svd"),
        (nn.Conv2d(4, 4, 1), "tucker2", "is a 1x1 convolution, and tucker2"),
        (nn.Conv2d(4, 4, 1), "cp", "is a 1x1 convolution, and cp"),
        (nn.Conv2d(4, 4, 3, groups=2), "cp", "has groups, and cp"),
        (nn.Conv2d(4, 4, 3, groups=2), "separable", "has groups, and separable"),
        (nn.Conv2d(4, 4, 3, groups=2), "spatial", "channels are mixed"),
        (nn.Conv2d(4, 4, (3, 1), groups=4), "spatial", "only one dimension"),
        (nn.Conv2d(4, 9, 3), "groups", "cannot be divided"),
        (nn.Conv2d(4, 8, 3, groups=4), "groups", "cannot be divided"),
        (nn.Conv2d(4, 4, 3), "magic", "there is no form magic"),
    ],
)
def test_what_does_not_suit(layer, form, why):
    assert why in unsuitable(layer, form)
    with pytest.raises(ValueError, match=why):
        factors(layer, form, [1])


@pytest.mark.parametrize("ranks", [[], [1, 1, 1], [0, 1], [9, 1], [1, 73], [1.0, 1], [True, 1], "11", None])
def test_ranks_that_cannot_be(ranks):
    with pytest.raises(ValueError, match="rank"):
        factors(nn.Conv2d(8, 100, 3), "tucker2", ranks)
    edit = {"kind": "factor", "module": "0", "form": "tucker2", "ranks": ranks}
    with pytest.raises(UsageError, match="does not fit the model"):
        apply_edits(nn.Sequential(nn.Conv2d(8, 100, 3)), [edit], "it")


@pytest.mark.parametrize("groups", [3, 8])
def test_groups_that_cannot_be(groups):
    with pytest.raises(ValueError, match=r"must be a multiple|must lie between"):
        factors(nn.Conv2d(12, 24, 3, groups=2), "groups", [groups])


def test_full_ranks():
    layer = nn.Conv2d(8, 100, (3, 2))
    assert [full_ranks(layer, form) for form in FORMS] == [(8,), (8, 48), (48,), (), (24,), (4,)]
    assert full_ranks(nn.Linear(5, 7), "svd") == (5,)
