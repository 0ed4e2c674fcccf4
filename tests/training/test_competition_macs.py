"""The competition's MACs: its golden numbers, ptflops itself, and every hole of other counters, by both meters."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pipelines.errors import UsageError
from tests.training.ptflops_2021 import ptflops_macs
from tests.training.test_macs import (
    CONV_MACS,
    RESNET18_AT_64,
    Lambda,
    Noisy,
    StandardizedConv,
    TinyAttention,
    fx_int8,
    global_state,
    hidden_product,
    model_state,
    pruned_conv,
    timm_model,
)
from training.measure.competition_macs import count_competition_macs
from training.measure.macs import UncountableError, count_macs
from training.model.create import create_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

METERS = (count_macs, count_competition_macs)
CONV_WITH_BIAS = CONV_MACS + 8 * 32 * 32
"""The competition's count of a 3x3 convolution from 3 to 8 channels on a 32x32 image, padded."""


def seed(units: str, head: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(f"shufflenet_g3_x025_{units.replace('-', '_')}{'_conv' if head == 'conv' else ''}", 9)


# --- golden numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "head", "competition", "exact", "parameters"),
    [
        ("4-8-4", "conv", 1_688_940, 1_467_600, 67_062),
        ("4-8-4", "linear", 1_688_949, 1_467_600, 67_071),
        ("4-7-3", "linear", 1_515_459, 1_309_590, 53_181),
        ("4-6-3", "conv", 1_439_700, 1_242_840, 50_142),
        ("4-8-0", "linear", 1_299_789, 1_106_280, 27_591),
        ("3-5-3", "conv", 1_272_450, 1_102_590, 46_197),
        ("2-5-2", "conv", 1_083_210, 937_830, 34_422),
        ("2-5-2", "linear", 1_083_219, 937_830, 34_431),
        ("2-4-2", "conv", 1_007_460, 871_080, 31_392),
        ("1-1-1", "conv", 590_970, 506_070, 10_527),
    ],
)
def test_seed_network_and_its_pressed_forms(units, head, competition, exact, parameters):
    model = seed(units, head)
    ours, exactly = count_competition_macs(model, 80), count_macs(model, 80)
    assert (ours.macs, ours.parameters) == (competition, parameters)
    assert (exactly.macs, exactly.parameters) == (exact, parameters)
    for report in (ours, exactly):
        assert sum(layer.macs for layer in report.layers) == report.macs
        assert sum(layer.parameters for layer in report.layers) == report.parameters
        assert report.input_size == (80, 80)


@pytest.mark.parametrize(
    ("size", "linear", "conv", "pruned"),
    [
        (64, 1_018_137, 1_018_128, 668_688),
        (65, 1_506_831, 1_506_822, 935_862),
        (80, 1_688_949, 1_688_940, 1_083_210),
        (81, 2_066_763, 2_066_754, 1_322_604),
        (96, 2_288_097, 2_288_088, 1_501_848),
        (97, 2_988_471, 2_988_462, 1_886_262),
        (112, 3_249_021, 3_249_012, 2_097_402),
        (113, 3_766_275, 3_766_266, 2_425_236),
    ],
)
def test_seed_network_at_other_sizes(size, linear, conv, pruned):
    assert count_competition_macs(seed("4-8-4", "linear"), size).macs == linear
    assert count_competition_macs(seed("4-8-4", "conv"), size).macs == conv
    assert count_competition_macs(seed("2-5-2", "conv"), size).macs == pruned


@settings(max_examples=10, deadline=None)
@given(a=st.integers(1, 6), b=st.integers(1, 6), c=st.integers(1, 6))
def test_units_add_up(a, b, c):
    law = 590_970 + 91_500 * (a - 1) + 75_750 * (b - 1) + 97_740 * (c - 1)
    assert count_competition_macs(seed(f"{a}-{b}-{c}", "conv"), 80).macs == law


def test_shares_of_normalization_and_pooling():
    shares: dict[str, int] = {}
    for layer in count_competition_macs(seed("4-8-4", "conv"), 80).layers:
        shares[layer.type_name] = shares.get(layer.type_name, 0) + layer.macs
    pools = sum(macs for name, macs in shares.items() if "Pool" in name)
    assert (shares["BatchNorm2d"], pools, shares["Conv2d"]) == (198_180, 23_160, 1_467_600)


@pytest.mark.parametrize("deep", [False, True])
def test_a_seed_network_that_hides_its_convolutions_costs_the_same(deep):
    """The trick behind the board's 266,505: a subclass that a counter by exact type takes for nothing."""

    class Hidden(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight, self.bias)

    model = seed("4-8-4", "conv")
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = type("Deeper", (Hidden,), {}) if deep else Hidden
    assert count_competition_macs(model, 80).macs == 1_688_940


# --- ptflops itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["4_8_4_conv", "4_8_4", "2_5_2", "2_5_2_conv", "4_8_0"])
def test_agrees_with_ptflops_on_the_seed_network(name):
    model = create_model(f"shufflenet_g3_x025_{name}", 9)
    assert count_competition_macs(model, 80).macs == ptflops_macs(model, 80)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenetv3_small_050",
        "regnetx_002",
        "tf_mobilenetv3_small_minimal_100",
        "nf_regnet_b0",
        "mixnet_s",
    ],
)
def test_agrees_with_ptflops_on_networks_of_timm(name):
    model = timm_model(name)
    assert count_competition_macs(model, 64).macs == ptflops_macs(model, 64)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"])
def test_agrees_with_ptflops_on_networks_of_torchvision(name):
    model = getattr(torchvision.models, name)(weights=None)
    assert count_competition_macs(model, 64).macs == ptflops_macs(model, 64)


# --- rules in which the releases of ptflops differ: numbers printed by that of 2021 (0.6.5) --------------------------


class Tokens(nn.Module):
    """Feeds pixels as tokens [pixels, 1, channels] to a module."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(2).permute(2, 0, 1))


class Attention(nn.Module):
    def __init__(self, *, bias: bool = True, by_name: bool = False, **options):
        super().__init__()
        self.widen = nn.Linear(3, 24)
        self.attention = nn.MultiheadAttention(24, 4, bias=bias, **options)
        self.by_name = by_name

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.widen(tokens)
        if self.by_name:
            return self.attention(query, key=query[:7], value=query[:7])[0]
        return self.attention(query, query[:7], query[:7], need_weights=False)[0]


def norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4)
    )


def ups_and_downs() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.ConvTranspose2d(8, 4, 4, 2, 1, groups=2, bias=False),
        nn.Upsample(scale_factor=2),
        nn.AvgPool2d(2),
        nn.MaxPool2d(3, 2),
    )


ATTENTION = 64 * 3 * 24 + 2 * 64 * 24 * 24 + 2 * 7 * 24 * 24 + 2 * 64 * 7 * 24
"""64 queries of width 24, 7 keys and values: the widening, four projections, scores and their sum."""


@pytest.mark.parametrize(
    ("model", "size", "competition", "exact"),
    [
        # 64 tokens, 3 to 8 features: the bias of 8 counts once.
        pytest.param(Tokens(nn.Linear(3, 8)), 8, 64 * 24 + 8, 64 * 24, id="bias-of-linear-once"),
        # 33 x 33 outputs of 8 channels from 16 x 16 inputs of 3.
        pytest.param(
            nn.ConvTranspose2d(3, 8, 3, 2), 16, 33 * 33 * (3 * 8 * 9 + 8), 16 * 16 * 3 * 8 * 9, id="transposed-conv"
        ),
        pytest.param(norms(), 8, 64 * (12 + 4) + 64 * 4, 64 * 12, id="normalization"),
        pytest.param(ups_and_downs(), 16, 68_208, 49 * 8 * 27 + 49 * 8 * 2 * 16, id="up-and-down"),
        pytest.param(Tokens(Attention()), 8, 114_664, ATTENTION, id="attention"),
        pytest.param(Tokens(Attention(by_name=True)), 8, 114_664, ATTENTION, id="attention-by-name"),
        pytest.param(Tokens(Attention(bias=False)), 8, 112_792, ATTENTION, id="attention-without-bias"),
        pytest.param(
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveMaxPool2d(2)), 8, 64 * 12 + 192, 576, id="adaptive-pool"
        ),
        pytest.param(nn.SyncBatchNorm(3), 8, 384, 0, id="sync-batch-norm"),
    ],
)
def test_rules_of_2021(model, size, competition, exact):
    assert count_competition_macs(model, size).macs == competition
    assert count_macs(model, size).macs == exact


def test_a_shared_module_counts_each_of_its_calls_once():
    pool, conv = nn.AvgPool2d(1), nn.Conv2d(3, 3, 1)
    model = nn.Sequential(nn.Sequential(pool, conv), nn.Sequential(pool, conv))
    assert count_competition_macs(model, 4).macs == 2 * (48 + 144 + 48)


# --- the holes of other counters, by both meters ----------------------------------------------------------------------


class HiddenInside(nn.Conv2d):
    """Is a convolution by its type and does another one besides."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.conv2d(x, torch.ones(3, 3, 1, 1)))


class Idle(nn.Conv2d):
    """Is a convolution by its type and does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class BoughtNorm(nn.BatchNorm2d):
    """A normalization that is a convolution in truth."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.expand(3, 3)[:, :, None, None])


def exported() -> nn.Module:
    return torch.export.export(timm_model("resnet18").eval(), (torch.zeros(1, 3, 64, 64),)).module()


def traced() -> nn.Module:
    return torch.jit.trace(timm_model("resnet18").eval(), torch.zeros(1, 3, 64, 64))


def frozen() -> nn.Module:
    return timm_model("resnet18").requires_grad_(False)


def vision_transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=9)


def tiny_vit() -> nn.Module:
    return timm.create_model("test_vit", num_classes=9)


RESNET18_BY_COMPETITION = 148_050_432 + 9 + 2 * 202_752 + 65_536 + 2_048
"""At 64 px: the bias, normalized elements twice, and the inputs of the maximum and the average pool."""


def conv(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *extra)


HOLES = [
    # What, how large, the exact count, the competition's count; a path where a meter refuses.
    pytest.param(lambda: StandardizedConv(3, 8, 3, padding=1), 32, CONV_MACS, CONV_WITH_BIAS, id="conv-subclass"),
    pytest.param(
        lambda: Lambda(lambda x, w: F.conv2d(x, w), 8, 3, 1, 1), 32, 24_576, "the model itself", id="F.conv2d"
    ),
    pytest.param(
        lambda: conv(Lambda(lambda x, w: F.linear(x, w), 5, 32)), 32, CONV_MACS + 40_960, "1", id="functional-linear"
    ),
    pytest.param(
        lambda: conv(Lambda(lambda x, w: torch.einsum("bchw,wo->bcho", x, w), 32, 5)),
        32,
        CONV_MACS + 40_960,
        "1",
        id="einsum",
    ),
    pytest.param(lambda: conv(Lambda(lambda x, w: x @ w, 32, 5)), 32, CONV_MACS + 40_960, "1", id="matmul"),
    pytest.param(
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1)),
        32,
        CONV_MACS,
        CONV_WITH_BIAS,
        id="parametrized",
    ),
    pytest.param(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, padding=1))),
        32,
        CONV_MACS + 8 * 27 + 8,
        "0.parametrizations.weight.0",
        id="product-in-a-parametrization",
    ),
    pytest.param(
        lambda: timm_model("resnetv2_50x1_bit"),
        64,
        333_662_208,
        333_662_208 + 9 + 64 * 34 * 34 + 2048 * 2 * 2,  # the bias and the inputs of two pools; group norms are 0
        id="resnetv2_50x1_bit",
    ),
    pytest.param(lambda: timm_model("nf_regnet_b0"), 64, 42_157_888, 42_578_729, id="nf_regnet_b0"),
    pytest.param(
        lambda: timm_model("tf_efficientnet_cc_b0_4e"),
        64,
        42_677_248,
        "blocks.4.0.conv_pw",
        id="tf_efficientnet_cc_b0_4e",
    ),
    pytest.param(
        lambda: timm_model("tf_mobilenetv3_small_minimal_100"),
        64,
        4_735_744,
        4_969_737,
        id="tf_mobilenetv3_small_minimal",
    ),
    pytest.param(tiny_vit, 160, 37_571_904, "blocks.0.attn", id="vit"),
    pytest.param(
        vision_transformer,
        32,
        16 * 16 * 192 + 2 * (4 * 17 * 16 * 16 + 2 * 17 * 17 * 16 + 2 * 17 * 16 * 32) + 16 * 9,
        "encoder.layers.encoder_layer_0.self_attention",
        id="torchvision-vit",
    ),
    pytest.param(
        lambda: Lambda(lambda x, w: F.scaled_dot_product_attention(x, x, x * w), 32),
        32,
        2 * 3 * 32**3,
        "the model itself",
        id="fused-attention",
    ),
    pytest.param(TinyAttention, 32, 196_608, "attention", id="batch-first-attention"),
    pytest.param(lambda: conv(nn.ReLU()), 32, CONV_MACS, CONV_WITH_BIAS, id="relu"),
    pytest.param(lambda: conv(nn.AvgPool2d(2)), 32, CONV_MACS, CONV_WITH_BIAS + 8 * 32 * 32, id="average-pool"),
    pytest.param(lambda: conv(nn.Hardswish(), nn.SiLU()), 32, CONV_MACS, CONV_WITH_BIAS, id="hardswish-silu"),
    pytest.param(lambda: conv(Lambda(lambda x, _w: x + x, 1)), 32, CONV_MACS, CONV_WITH_BIAS, id="x+x"),
    pytest.param(lambda: conv(Lambda(lambda x, w: torch.add(x, w), 1)), 32, CONV_MACS, CONV_WITH_BIAS, id="torch.add"),
    pytest.param(pruned_conv, 32, CONV_MACS, CONV_WITH_BIAS, id="unstructured-pruned"),
    pytest.param(fx_int8, 32, "0", "0", id="fx-int8"),
    pytest.param(exported, 64, RESNET18_AT_64, "the model itself", id="exported"),
    pytest.param(traced, 64, "the model itself", "the model itself", id="traced"),
    pytest.param(frozen, 64, RESNET18_AT_64, RESNET18_BY_COMPETITION, id="frozen"),
    pytest.param(lambda: nn.Sequential(HiddenInside(3, 8, 1)), 32, 1024 * (9 + 24), "0", id="conv-in-a-conv"),
    pytest.param(lambda: nn.Sequential(Idle(3, 8, 1), nn.Conv2d(3, 3, 1)), 32, 9_216, "0", id="idle-conv"),
    pytest.param(lambda: nn.Sequential(BoughtNorm(3)), 32, 9_216, "0", id="conv-in-a-norm"),
    pytest.param(lambda: Tokens(nn.GRU(3, 8)), 8, 64 * (3 * 8 * 3 + 3 * 8 * 8), "inner", id="recurrent"),
]


def check(meter, model: nn.Module, side: int, expected: int | str) -> None:
    if isinstance(expected, int):
        assert meter(model, side).macs == expected
        return
    with pytest.raises(UncountableError) as caught:
        meter(model, side)
    assert str(caught.value).startswith(f"{expected} (")


@pytest.mark.parametrize(("build", "side", "exact", "competition"), HOLES)
@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.__name__)
def test_no_hole_counts_as_nothing(meter, build, side, exact, competition):
    check(meter, build(), side, exact if meter is count_macs else competition)


@pytest.mark.parametrize("surroundings", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.__name__)
def test_surroundings_and_frozen_parameters_make_no_difference(meter, surroundings):
    model = frozen()
    with surroundings(), torch.autocast("cpu", dtype=torch.bfloat16):
        report = meter(model, 64)
    assert report == meter(timm_model("resnet18"), 64)
    assert report.parameters == 11_181_129
    assert report.macs == (RESNET18_AT_64 if meter is count_macs else RESNET18_BY_COMPETITION)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_compiled_half_precision_and_meta_models_count_the_same(name):
    model = timm_model(name)
    expected = count_competition_macs(model, 64)
    for twin in (torch.compile(model), copy.deepcopy(model).bfloat16(), copy.deepcopy(model).to("meta")):
        assert count_competition_macs(twin, 64) == expected


def test_a_refusal_names_the_layer_both_counts_and_the_cure():
    with pytest.raises(UncountableError) as caught:
        count_competition_macs(conv(Lambda(lambda x, w: x @ w, 32, 5)), 32)
    assert str(caught.value) == (
        "1 (Lambda) multiplies 40,960 times itself, of which the competition's convention sees 0: "
        "report its exact count (count_macs), or write it with modules of torch.nn"
    )


@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.__name__)
def test_empty_images_and_rectangles(meter):
    with pytest.raises(UsageError, match="at least 1"):
        meter(nn.Conv2d(3, 4, 1), 0)
    assert meter(nn.Conv2d(1, 4, 1, bias=False), (2, 5), channels=1).macs == 40
    assert meter(nn.Conv2d(1, 4, 1, bias=False), (2, 5), channels=1).input_size == (2, 5)


# --- nothing is left changed ------------------------------------------------------------------------------------------


class Watchful(Noisy):
    """With hooks of its own, layers in different modes, and a layer that is frozen."""

    def __init__(self):
        super().__init__()
        self.body[0].requires_grad_(False)
        self.body[1].eval()
        self.body[0].register_forward_hook(lambda *_: None)
        self.body.register_forward_pre_hook(lambda *_: None)


class Failing(Watchful):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise RuntimeError("in the middle")


class Refused(Watchful):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + hidden_product(x, x)


class Functional(Watchful):
    """What the exact meter counts and the competition's refuses after the run."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x @ x).mean()


def whole_state(model: nn.Module) -> list[object]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    return [model_state(model), hooks, global_state(), torch.get_num_threads()]


@pytest.mark.parametrize("kind", [Watchful, Failing, Refused, Functional])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("surroundings", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.__name__)
def test_neither_the_model_nor_torch_is_changed(meter, surroundings, training, kind):
    model = kind().double()
    model.training = training
    fails = kind in (Failing, Refused) or (kind is Functional and meter is count_competition_macs)
    torch.set_default_dtype(torch.float64)
    torch.backends.mha.set_fastpath_enabled(training)
    try:
        with surroundings():
            before = whole_state(model)
            if fails:
                with pytest.raises(UncountableError):
                    meter(model, 8)
            else:
                assert meter(model, 8) == meter(model, 8)
            assert whole_state(model) == before
    finally:
        torch.set_default_dtype(torch.float32)
        torch.backends.mha.set_fastpath_enabled(True)


def test_the_model_can_still_be_saved(tmp_path):
    model = timm_model("mobilenetv3_small_050")
    count_competition_macs(model, 32)
    torch.save(model, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size > 1_000_000
