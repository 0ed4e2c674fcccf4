"""The MAC meter: golden integers, every known hole of other counters, refusals, and that nothing is left changed."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from pipelines.errors import TacopressError, UsageError
from tests.training.cifar_nets import NETS
from training.measure.macs import MacsReport, UncountableError, count_macs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "macs.json").read_text())
TIMM_GOLDENS: dict[str, dict[str, int]] = GOLDENS["timm"]
TORCHVISION_GOLDENS: dict[str, dict[str, int]] = GOLDENS["torchvision_224"]
TIMM_FAST_AT_224 = ("mobilenetv3_small_050", "lcnet_050", "resnet18", "convnext_atto")
TORCHVISION_FAST = ("mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "resnet18", "efficientnet_b0")
VIT_B_16 = TORCHVISION_GOLDENS["vit_b_16"]["224"]
CONV_MACS = 221_184
"""A 3x3 convolution from 3 to 8 channels on a 32x32 image, padded: 8 * 3 * 9 * 1024."""
RESNET18_AT_64 = TIMM_GOLDENS["resnet18"]["64"]


def timm_model(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=9)


def torchvision_model(name: str) -> nn.Module:
    extra = {"init_weights": False} if name == "googlenet" else {}
    return getattr(torchvision.models, name)(weights=None, **extra)


def assert_adds_up(report: MacsReport) -> None:
    assert sum(layer.macs for layer in report.layers) == report.macs
    assert sum(layer.parameters for layer in report.layers) == report.parameters
    paths = [layer.path for layer in report.layers]
    assert len(set(paths)) == len(paths)


class Lambda(nn.Module):
    """Computes `function(input, weight)`."""

    def __init__(self, function, *shape: int):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


# --- golden integers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIMM_GOLDENS)
def test_timm_golden_integers(name):
    golden, model = TIMM_GOLDENS[name], timm_model(name)
    for side in (32, 64):
        report = count_macs(model, side)
        assert (report.macs, report.parameters) == (golden[str(side)], golden["parameters"])
        assert_adds_up(report)


@pytest.mark.parametrize("name", TIMM_FAST_AT_224)
def test_timm_golden_integers_at_224(name):
    assert count_macs(timm_model(name), 224).macs == TIMM_GOLDENS[name]["224"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TIMM_GOLDENS if name not in TIMM_FAST_AT_224])
def test_every_timm_golden_integer_at_224(name):
    assert count_macs(timm_model(name), 224).macs == TIMM_GOLDENS[name]["224"]


def check_torchvision(name: str) -> None:
    golden = TORCHVISION_GOLDENS[name]
    report = count_macs(torchvision_model(name), 224)
    assert (report.macs, report.parameters) == (golden["224"], golden["parameters"])
    assert_adds_up(report)


@pytest.mark.parametrize("name", TORCHVISION_FAST)
def test_torchvision_golden_integers(name):
    check_torchvision(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TORCHVISION_GOLDENS if name not in TORCHVISION_FAST])
def test_every_torchvision_golden_integer(name):
    check_torchvision(name)


@pytest.mark.parametrize("name", NETS)
def test_cifar_golden_integers(name):
    make, macs, parameters = NETS[name]
    report = count_macs(make(), 32)
    assert (report.macs, report.parameters) == (macs, parameters)
    assert_adds_up(report)


@pytest.mark.parametrize(
    ("name", "side", "millions"),
    [
        ("resnetv2_50x1_bit", 64, 333.66),
        ("nf_regnet_b0", 64, 42.16),
        ("tf_efficientnet_cc_b0_4e", 64, 42.68),
        ("vit_tiny_patch16_224", 224, 1253.5),
    ],
)
def test_networks_that_hook_counters_misjudge(name, side, millions):
    assert count_macs(timm_model(name), side).macs / 1e6 == pytest.approx(millions, rel=2e-4)


def test_agrees_with_ptflops_aten_backend_but_for_the_bias_it_adds():
    ptflops = pytest.importorskip("ptflops")
    model = timm_model("mobilenetv3_small_050")
    theirs, _ = ptflops.get_model_complexity_info(
        copy.deepcopy(model), (3, 64, 64), as_strings=False, print_per_layer_stat=False, backend="aten"
    )
    # ptflops counts a bias as one MAC per output; every layer with a bias in this network has a 1x1 output.
    biases = sum(m.bias.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None)
    assert count_macs(model, 64).macs == theirs - biases


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    width=st.integers(1, 4),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    height=st.integers(4, 12),
    breadth=st.integers(4, 12),
)
def test_convolution_follows_its_formula(groups, width, kernel, stride, height, breadth):
    conv = nn.Conv2d(2 * groups, width * groups, kernel, stride, groups=groups)
    rows, columns = (height - kernel) // stride + 1, (breadth - kernel) // stride + 1
    report = count_macs(conv, (height, breadth), channels=2 * groups)
    assert report.macs == rows * columns * width * groups * 2 * kernel**2
    assert report.parameters == width * groups * (2 * kernel**2 + 1)
    assert report.input_size == (height, breadth)


# --- the holes of other counters --------------------------------------------------------------------------------------


class StandardizedConv(nn.Conv2d):
    """A subclass that hooks keyed by exact type do not see."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias, self.stride, self.padding)


def pruned_conv() -> nn.Module:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    prune.l1_unstructured(conv, "weight", amount=0.9)
    return conv


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        pytest.param(StandardizedConv(3, 8, 3, padding=1), CONV_MACS, id="conv-subclass"),
        pytest.param(Lambda(lambda x, w: F.conv2d(x, w, padding=1), 8, 3, 3, 3), CONV_MACS, id="functional-conv"),
        pytest.param(parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1)), CONV_MACS, id="weight-norm"),
        pytest.param(pruned_conv(), CONV_MACS, id="unstructured-pruned"),
        pytest.param(nn.ConvTranspose2d(3, 8, 2, 2), 3 * 8 * 4 * 1024, id="transposed-conv"),
        pytest.param(Lambda(lambda x, w: F.linear(x, w), 5, 32), 3 * 32 * 32 * 5, id="functional-linear"),
        pytest.param(Lambda(lambda x, w: torch.einsum("bchw,wo->bcho", x, w), 32, 5), 3 * 32 * 32 * 5, id="einsum"),
        pytest.param(Lambda(lambda x, w: x @ w, 32, 5), 3 * 32 * 32 * 5, id="matmul"),
        pytest.param(Lambda(lambda x, w: w @ x[0, 0, 0], 5, 32), 5 * 32, id="matrix-vector"),
        pytest.param(Lambda(lambda x, w: w.new_zeros(5).addmv_(w, x[0, 0, 0]), 5, 32), 5 * 32, id="addmv_"),
        pytest.param(Lambda(lambda x, w: x[0, 0, 0] @ w[0], 1, 32), 32, id="vector-vector"),
        pytest.param(Lambda(lambda x, w: x.new_zeros(32, 5).addmm_(x[0, 0], w), 32, 5), 32 * 32 * 5, id="addmm_"),
        pytest.param(
            Lambda(lambda x, w: torch.addbmm(x.new_zeros(32, 5), x[0], w), 3, 32, 5), 3 * 32 * 32 * 5, id="addbmm"
        ),
        pytest.param(
            Lambda(lambda x, w: F.scaled_dot_product_attention(x, x, x * w), 32), 2 * 3 * 32**3, id="attention"
        ),
        pytest.param(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()), CONV_MACS, id="relu"),
        pytest.param(nn.Sequential(nn.AvgPool2d(2), nn.Hardswish()), 0, id="no-weights"),
    ],
)
def test_counts_what_runs(model, macs):
    report = count_macs(model, 32)
    assert report.macs == macs
    assert_adds_up(report)


def test_counts_hooks_that_rebuild_the_weight():
    model = nn.utils.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
    model(torch.zeros(1, 3, 32, 32))  # leaves a weight with a history, which copy.deepcopy refuses
    assert count_macs(model, 32).macs == CONV_MACS


class TinyAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, 0]
        return self.attention(tokens, tokens, tokens)[0]


TINY_ATTENTION_MACS = 4 * 32 * 32 * 32 + 2 * 32 * 32 * 32
"""32 tokens of width 32: three input projections and one output projection, scores and their sum."""


@pytest.mark.parametrize("surroundings", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [False, True])
def test_attention_counts_whatever_the_caller_is_in(surroundings, frozen):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    encoder.requires_grad_(not frozen)
    model = nn.Sequential(nn.Flatten(1, 2), encoder)
    with surroundings():
        assert count_macs(TinyAttention().requires_grad_(not frozen), 32).macs == TINY_ATTENTION_MACS
        # 96 tokens, two layers: projections, feed-forward 32 -> 64 -> 32, scores and their sum.
        assert count_macs(model, 32).macs == 2 * (4 * 96 * 32 * 32 + 2 * 96 * 32 * 64 + 2 * 96 * 96 * 32)


@pytest.mark.slow
@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_vit_b_16_counts_its_attention_without_gradients(surroundings):
    with surroundings():
        assert count_macs(torchvision_model("vit_b_16").eval(), 224).macs == VIT_B_16


def test_counts_under_inference_mode_autocast_and_another_default_device():
    with torch.inference_mode():
        built_inside = timm_model("resnet18")
        assert count_macs(built_inside, 64).macs == RESNET18_AT_64
    assert count_macs(built_inside, 64).macs == RESNET18_AT_64
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        assert count_macs(built_inside, 64).macs == RESNET18_AT_64
    assert count_macs(timm_model("resnet18").to(torch.bfloat16), 64).macs == RESNET18_AT_64


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_a_model_on_the_meta_device_counts_the_same(name):
    side = 224 if name.startswith("vit") else 64
    expected = count_macs(timm_model(name), side)
    with torch.device("meta"):
        model = timm_model(name)
    assert count_macs(model, side) == expected


def test_exported_and_compiled_models_count_the_same():
    model = timm_model("resnet18").eval()
    exported = torch.export.export(model, (torch.zeros(1, 3, 64, 64),)).module()
    assert count_macs(exported, 64).macs == RESNET18_AT_64
    assert count_macs(torch.compile(model), 64).macs == RESNET18_AT_64
    model.compile()
    assert count_macs(model, 64).macs == RESNET18_AT_64


def test_frozen_and_shared_parameters_count_once():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).requires_grad_(False)
    assert count_macs(model, 4).parameters == 24
    model[1].weight = model[0].weight
    report = count_macs(model, 4)
    assert (report.parameters, report.macs) == (15, 2 * 9 * 16)
    assert_adds_up(report)


def test_layers_name_the_innermost_module():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
            self.head = nn.Linear(4, 9)

        def forward(self, x):
            features = self.stem(self.stem[0](x)[:, :3]).mean((2, 3))
            return F.linear(features, self.head.weight) + self.head(features)

    layers = {layer.path: (layer.type_name, layer.macs, layer.parameters) for layer in count_macs(Model(), 2).layers}
    assert layers == {
        "": ("Model", 36, 0),
        "stem.0": ("Conv2d", 2 * 48, 16),
        "stem.1": ("BatchNorm2d", 0, 8),
        "head": ("Linear", 36, 45),
    }


def test_a_child_that_fails_and_is_caught_does_not_spoil_the_books():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wrong, self.right, self.last = nn.Conv2d(7, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            try:
                return self.wrong(x)
            except RuntimeError:
                return self.last(self.right(x))

    layers = {layer.path: layer.macs for layer in count_macs(nn.Sequential(Model()), 2).layers}
    assert layers == {"0.wrong": 0, "0.right": 48, "0.last": 64}


# --- refusals ---------------------------------------------------------------------------------------------------------


class Packed(nn.Module):
    """Holds packed int8 weights the way FX-converted graphs do."""

    def __init__(self):
        super().__init__()
        weight = torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(weight, None)


def fx_int8() -> nn.Module:
    fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    mapping = pytest.importorskip("torch.ao.quantization").get_default_qconfig_mapping("x86")
    image = torch.zeros(1, 3, 32, 32)
    prepared = fx.prepare_fx(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), mapping, (image,))
    prepared(image)
    return fx.convert_fx(prepared)


def with_sparse_parameter() -> nn.Module:
    model = nn.Conv2d(3, 4, 1)
    model.mask = nn.Parameter(torch.eye(4).to_sparse())
    return model


class OnOneChannel(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, 0])


@torch.library.custom_op("tacopress_tests::hidden_product", mutates_args=())
def hidden_product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@torch.library.custom_op("tacopress_tests::known_product", mutates_args=())
def known_product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@torch.utils.flop_counter.register_flop_formula(torch.ops.tacopress_tests.known_product)
def known_product_flops(x_shape, weight_shape, **_):
    return 2 * x_shape.numel() * weight_shape[-1]


@pytest.mark.parametrize(
    ("build", "path", "cure"),
    [
        pytest.param(fx_int8, "0", "float twin", id="fx-int8"),
        pytest.param(
            lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(48, 9)), {nn.Linear}),
            "1",
            "float twin",
            id="dynamic-int8",
        ),
        pytest.param(lambda: nn.Sequential(nn.Identity(), Packed()), "1", "float twin", id="packed-weights"),
        pytest.param(
            lambda: nn.Sequential(nn.Identity(), torch.jit.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4))),
            "1",
            "nn.Module it was made from",
            id="traced",
        ),
        pytest.param(lambda: torch.jit.script(nn.Conv2d(3, 4, 1)), "the model itself", "nn.Module", id="scripted"),
        pytest.param(lambda: nn.Sequential(nn.LazyConv2d(4, 1)), "0", "one forward pass", id="lazy"),
        pytest.param(lambda: nn.Sequential(with_sparse_parameter()), "0", "dense", id="sparse"),
        pytest.param(lambda: OnOneChannel(nn.LSTM(4, 8)), "inner", "plain convolutions", id="lstm"),
        pytest.param(
            lambda: nn.Sequential(Lambda(lambda x, w: F.bilinear(x, x, w), 2, 4, 4)), "0", "plain", id="bilinear"
        ),
        pytest.param(
            lambda: Lambda(lambda x, w: torch.sparse.mm(w.to_sparse(), x[0, 0]), 4, 4),
            "the model itself",
            "plain",
            id="sparse-product",
        ),
        pytest.param(
            lambda: Lambda(lambda x, w: torch._int_mm(x[0, 0].char().repeat(8, 2), w.char()), 8, 8),
            "the model itself",
            "float twin",
            id="int8-product",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Lambda(lambda x, w: hidden_product(x, w), 4, 4)),
            "1",
            "register_flop_formula",
            id="custom-operator",
        ),
        pytest.param(
            lambda: Lambda(lambda x, w: torch.from_numpy(x.detach().numpy() @ w.detach().numpy()), 4, 4),
            "the model itself",
            "torch operators",
            id="outside-torch",
        ),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(1, 4, 1)), "0", "size and channels", id="wrong-channels"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 4, 9)), "0", "size and channels", id="image-too-small"),
    ],
)
def test_refuses_what_it_cannot_see_into(build, path, cure):
    with pytest.raises(UncountableError) as caught:
        count_macs(build(), 4)
    assert isinstance(caught.value, TacopressError)
    assert str(caught.value).startswith(f"{path} (")
    assert cure in str(caught.value)


def test_refuses_a_model_that_cannot_be_copied():
    model = nn.Conv2d(3, 4, 1)
    model.generator = iter(value for value in (1, 2))
    with pytest.raises(UncountableError, match=r"cannot be copied .* without wrappers"):
        count_macs(model, 4)


@pytest.mark.skipif(
    torch.ops.tacopress_tests.known_product not in torch.utils.flop_counter.flop_registry,
    reason="this torch release files the formula under a key that its own counter never looks up",
)
def test_counts_a_custom_operator_by_its_registered_formula():
    assert count_macs(Lambda(lambda x, w: known_product(x, w), 4, 5), 4).macs == 3 * 4 * 4 * 5


@pytest.mark.parametrize(("size", "channels"), [(0, 3), ((4, 0), 3), (4, 0), (-1, 3)])
def test_refuses_empty_images(size, channels):
    with pytest.raises(UsageError, match="at least 1"):
        count_macs(nn.Conv2d(3, 4, 1), size, channels=channels)


# --- nothing is left changed ------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Draws random numbers, counts its calls in a buffer and switches nothing back by itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout())
        self.masked = pruned_conv()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.masked(x).mean() + self.body(x + torch.randn_like(x)).mean()


def global_state() -> list[object]:
    hooks = nn.modules.module
    return [
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.utils._python_dispatch._get_current_dispatch_mode(),
        len(hooks._global_forward_hooks),
        len(hooks._global_forward_pre_hooks),
    ]


def model_state(model: nn.Module) -> list[object]:
    tensors = [(name, tensor.tolist()) for name, tensor in model.state_dict().items()]
    modules = [
        (path, module.training, *(list(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks)))
        for path, module in model.named_modules()
    ]
    parameters = [(id(p), p.requires_grad, p.grad, p.dtype, p._version) for p in model.parameters()]
    return [tensors, modules, parameters, sorted(vars(model))]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("surroundings", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("fast_path", [True, False])
def test_neither_the_model_nor_torch_is_changed(training, surroundings, fast_path):
    model = Noisy().train(training).double()
    model.body[0].weight.requires_grad_(False)
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast_path)
    try:
        with surroundings():
            before = (model_state(model), global_state())
            first, second = count_macs(model, 8), count_macs(model, 8)
            assert (model_state(model), global_state()) == before
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
    assert first == second
    assert first.macs == 3 * 8 * 9 * (6 * 6 + 8 * 8)


def test_a_model_cannot_swallow_a_refusal():
    class Model(nn.Module):
        def forward(self, x):
            try:
                return hidden_product(x, x)
            except Exception:
                return x @ x

    with pytest.raises(UncountableError, match="hidden_product"):
        count_macs(Model(), 4)


def test_torch_is_unchanged_after_a_refusal():
    models = (nn.Conv2d(1, 4, 1), nn.Sequential(Lambda(lambda x, w: hidden_product(x, w), 4, 4)))
    before = global_state()
    for model in models:
        with pytest.raises(UncountableError):
            count_macs(model, 4)
    assert global_state() == before


def test_the_model_can_still_be_saved(tmp_path):
    model = timm_model("mobilenetv3_small_050")
    count_macs(model, 32)
    torch.save(model, tmp_path / "model.pt")  # leftover hooks would be closures, which cannot be pickled
    assert (tmp_path / "model.pt").stat().st_size > 1_000_000
