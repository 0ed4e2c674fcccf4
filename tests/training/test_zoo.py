"""Models from YAML: each module against its formula, the rules of scaling, strictness, and the way back from a file."""

import json
import math

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import mobilenetv2, squeezenet

from pipelines.errors import UsageError
from tests.training.ptflops_2021 import ptflops_macs
from training.measure.macs import count_macs
from training.model.card import ModelCard
from training.model.create import create_model, definition_of
from training.model.model_file import load_model, save_model
from training.model.names import DEFINITIONS, shipped_names
from training.model.zoo.activations import activation_names, is_activation, make_activation
from training.model.zoo.build import REGISTRY, build_model, written_classes
from training.model.zoo.modules.residual import Residual
from training.model.zoo.scaling import make_divisible, scaled_repeat
from training.model.zoo.schema import read_definition

POOLED = [[1, "GlobalAvgPool", []], [1, "Flatten", []], [1, "Linear", [5]]]


def definition(*lines, **keys):
    return {"backbone": [list(line) for line in lines], **keys}


def build(*lines, classes=5, tail=POOLED, **keys):
    return build_model(definition(*lines, *tail, **keys), classes, source="test.yaml")


def layer(module, args, *, channels=16, repeat=1, **keys):
    """One line of a definition behind a stem of so many channels, and its output for 16 px."""
    model = build([1, "FixedConv", [channels, 1]], [repeat, module, args], **keys).eval()
    return model[1], model[1](torch.randn(1, channels, 16, 16))


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def bn(*channels):
    return sum(2 * count for count in channels)


def squeeze(hidden, squeezed):
    return 2 * hidden * squeezed + hidden + squeezed


def ghost(c, out):
    half = math.ceil(out / 2)
    return c * half + 9 * half + bn(half, half)


MODULES = {
    # name: (args, shape for 16 channels at 16 px, parameters by hand)
    "Conv": ([24, 3, 2], (24, 8, 8), 16 * 24 * 9 + bn(24)),
    "Conv groups": ([24, 3, 1, 0, 4, None], (24, 14, 14), 16 * 24 * 9 // 4 + bn(24)),
    "Conv even kernel": ([24, 2, 2], (24, 9, 9), 16 * 24 * 4 + bn(24)),
    "FixedConv": ([20, 1, 1, None, 1, "Swish"], (20, 16, 16), 16 * 20 + bn(20)),
    "DWConv": ([24, 5, 2], (24, 8, 8), 24 * 25 * 16 // math.gcd(16, 24) + bn(24)),
    "Bottleneck": ([16], (16, 16, 16), 16 * 8 + 8 * 16 * 9 + bn(8, 16)),
    "Bottleneck wide": ([32, False, 2, 1.0, "GELU"], (32, 16, 16), 16 * 32 + 32 * 32 * 9 // 2 + bn(32, 32)),
    "ECABottleneck": ([16], (16, 16, 16), 16 * 8 + 8 * 16 * 9 + bn(8, 16) + 3),
    "InvertedResidualv2": ([24, 6, 2], (24, 8, 8), 16 * 96 + 96 * 9 + 96 * 24 + bn(96, 96, 24)),
    "InvertedResidualv2 no expansion": ([16, 1, 1], (16, 16, 16), 16 * 9 + 16 * 16 + bn(16, 16)),
    "ECAInvertedResidualv2": ([24, 6, 2], (24, 8, 8), 16 * 96 + 96 * 9 + 96 * 24 + bn(96, 96, 24) + 3),
    "InvertedResidualv3": (
        [5, 3, 24, 1, 1, 2],
        (24, 8, 8),
        16 * 48 + 48 * 25 + 48 * 24 + bn(48, 48, 24) + squeeze(48, 16),
    ),
    "InvertedResidualv3 plain": ([3, 1, 16, 0, 0, 1], (16, 16, 16), 16 * 9 + 16 * 16 + bn(16, 16)),
    "ECAInvertedResidualv3": ([5, 3, 24, 1, 1, 2], (24, 8, 8), 16 * 48 + 48 * 25 + 48 * 24 + bn(48, 48, 24) + 3),
    "MBConv": ([4, 24, 2, 5], (24, 8, 8), 16 * 64 + 64 * 25 + 64 * 24 + bn(64, 64, 24) + squeeze(64, 4)),
    "MBConv no expansion": ([1, 24, 1, 3], (24, 16, 16), 16 * 9 + 16 * 24 + bn(16, 24) + squeeze(16, 4)),
    "FusedMBConv": ([4, 24, 2, 3], (24, 8, 8), 16 * 64 * 9 + 64 * 24 + bn(64, 24)),
    "MixNetBlock": (
        [[3, 5], 2, 24, 1, 2, "Swish"],
        (24, 8, 8),
        16 * 32 + 16 * 9 + 16 * 25 + 32 * 24 + bn(32, 32, 24) + squeeze(32, 4),
    ),
    "InvertedResidual": ([3, 2, 24, 2, 0, "ReLU"], (24, 8, 8), 16 * 32 + 32 * 9 + 32 * 24 + bn(32, 32, 24)),
    "Fire": ([8, 16, 24], (40, 16, 16), (16 * 8 + 8) + (8 * 16 + 16) + (8 * 24 * 9 + 24)),
    "ShuffleNetV2": (
        [32, 2],
        (32, 8, 8),
        (16 * 9 + 16 * 16 + bn(16, 16)) + (16 * 16 + 16 * 9 + 16 * 16 + bn(16, 16, 16)),
    ),
    "GhostBottleneck": (
        [3, 2, 24, 0, 2],
        (24, 8, 8),
        ghost(16, 32) + 32 * 9 + bn(32) + ghost(32, 24) + 16 * 9 + 16 * 24 + bn(16, 24),
    ),
    "MobileViTBlock": (
        [32, 1],
        (16, 16, 16),
        (16 * 16 * 9 + bn(16))
        + 16 * 32
        + (4 * 32 * 32 + 4 * 32 + 2 * 32 * 64 + 64 + 32 + 4 * 32)
        + 2 * 32
        + (32 * 16 + bn(16))
        + (32 * 16 * 9 + bn(16)),
    ),
    "SpaceToChannel": ([], (64, 8, 8), 0),
    "MuxInvertedResidual": ([3, 1, 2, 0, 0], (16, 16, 16), 12 * 24 + 24 * 9 + 24 * 12 + bn(24, 24, 12)),
    "MuxInvertedResidual scales": (
        [3, 1, 2, 0, [-2, 0, 2]],
        (16, 16, 16),
        12 * 24 + (32 + 8 + 2) * 9 + 24 * 12 + bn(24, 24, 12),
    ),
    "MaxPool": ([3, 2, 1], (16, 8, 8), 0),
    "MaxPool ceil": ([3, 2, 0, 1, False, True], (16, 8, 8), 0),
    "AvgPool": ([2], (16, 8, 8), 0),
    "Dropout": ([0.3], (16, 16, 16), 0),
}


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    args, shape, count = MODULES[name]
    module, output = layer(name.split()[0], args)
    assert tuple(output.shape[1:]) == shape
    assert parameters(module) == count


def test_every_module_is_tested():
    assert {name.split()[0] for name in MODULES} | {"GlobalAvgPool", "Flatten", "Linear"} == set(REGISTRY)


def test_blocks_equal_those_they_are_built_from():
    images = torch.randn(2, 16, 16, 16)
    theirs = mobilenetv2.InvertedResidual(16, 16, 1, 4).eval()
    ours, _ = layer("InvertedResidualv2", [16, 4, 1])
    ours.body.load_state_dict(theirs.conv.state_dict())
    assert torch.allclose(ours(images), theirs(images), atol=1e-6)
    fire, _ = layer("Fire", [8, 16, 24])
    assert isinstance(fire, squeezenet.Fire)


@pytest.mark.parametrize("scales", [0, [-2, 0, 2], [0, 0]])
def test_mux_residual_works_on_three_quarters_and_shuffles_all(scales):
    module, _ = layer("MuxInvertedResidual", [3, 1, 2, 0.25, scales])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()  # the body adds nothing, so only the shuffle of the input is left
    images = torch.randn(1, 16, 16, 16)
    shuffled = images.reshape(1, 2, 8, 16, 16).transpose(1, 2).reshape(1, 16, 16, 16)
    assert torch.equal(module(images), shuffled)


class TestScaling:
    @given(value=st.floats(0.01, 20_000), divisor=st.integers(1, 64))
    def test_make_divisible(self, value, divisor):
        result = make_divisible(value, divisor)
        assert result % divisor == 0
        assert result >= divisor
        assert result >= 0.9 * value
        assert result <= max(value + divisor, divisor)
        assert make_divisible(result, divisor) == result

    @given(repeat=st.integers(1, 256), depth=st.floats(0.01, 16))
    def test_repeat(self, repeat, depth):
        result = scaled_repeat(repeat, depth)
        assert result >= 1
        assert result == 1 if repeat == 1 else abs(result - repeat * depth) <= 0.5 or result == 1
        assert scaled_repeat(repeat, 1.0) == repeat

    @pytest.mark.parametrize(
        ("repeat", "depth", "count"), [(5, 0.5, 2), (3, 0.5, 2), (4, 0.25, 1), (1, 4.0, 1), (2, 0.1, 1)]
    )
    def test_depth_multiple(self, repeat, depth, count):
        model = build([repeat, "Conv", [8, 3]], depth_multiple=depth)
        assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == count

    def test_width_multiple(self):
        model = build([1, "Conv", [64, 3]], [1, "FixedConv", [20, 1]], [1, "Fire", [32, 64, 64]], width_multiple=0.3)
        conv, fixed, fire = model[0].conv, model[1].conv, model[2]
        assert (conv.out_channels, fixed.out_channels) == (24, 20)
        assert (fire.squeeze.out_channels, fire.expand1x1.out_channels) == (16, 24)
        assert model[5].out_features == 5


class TestRepeats:
    @pytest.mark.parametrize("name", ["Conv", "FixedConv", "DWConv"])
    def test_convolutions_have_the_stride_last(self, name):
        module, output = layer(name, [24, 3, 2], repeat=3)
        assert [unit.conv.stride[0] for unit in module] == [1, 1, 2]
        assert [unit.conv.in_channels for unit in module] == [16, 24, 24]
        assert output.shape[1:] == (24, 8, 8)

    @pytest.mark.parametrize(
        ("name", "args"),
        [
            ("InvertedResidualv2", [24, 3, 2]),
            ("InvertedResidualv3", [3, 3, 24, 1, 0, 2]),
            ("MBConv", [3, 24, 2, 3]),
            ("FusedMBConv", [3, 24, 2, 3]),
            ("ECAInvertedResidualv3", [3, 3, 24, 1, 0, 2]),
            ("MixNetBlock", [[3, 5], 3, 24, 0, 2]),
            ("InvertedResidual", [3, 2, 24, 3, 0.25]),
            ("GhostBottleneck", [3, 3, 24, 1, 2]),
            ("ShuffleNetV2", [24, 2]),
        ],
    )
    def test_residual_blocks_have_the_stride_first(self, name, args):
        module, output = layer(name, args, repeat=3)
        strides = [max(conv.stride[0] for conv in unit.modules() if isinstance(conv, nn.Conv2d)) for unit in module]
        assert strides == [2, 1, 1]
        assert output.shape[1:] == (24, 8, 8)

    def test_bottlenecks_change_their_channels_last(self):
        module, _ = layer("Bottleneck", [32], repeat=3)
        assert [isinstance(unit, Residual) for unit in module] == [True, True, False]
        assert module[2].expand.conv.out_channels == 32

    def test_shortcuts_are_where_shapes_stay(self):
        module, _ = layer("MBConv", [4, 24, 1, 3], repeat=3)
        assert [isinstance(unit, Residual) for unit in module] == [False, True, True]


class TestActivations:
    def test_older_names(self):
        kinds = {name: type(make_activation(name)) for name in ("HardSwish", "HardSigmoid", "Swish", "ReLU")}
        assert kinds == {"HardSwish": nn.Hardswish, "HardSigmoid": nn.Hardsigmoid, "Swish": nn.SiLU, "ReLU": nn.ReLU}
        assert isinstance(make_activation(None), nn.Identity)

    @pytest.mark.parametrize("name", activation_names())
    def test_each_keeps_the_shape_and_lets_gradients_through(self, name):
        weight = torch.linspace(-1, 1, 8).reshape(1, 8, 1, 1).requires_grad_()
        output = make_activation(name)(weight * torch.ones(1, 8, 4, 4))
        output.sum().backward()
        assert output.shape == (1, 8, 4, 4)
        assert weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("name", ["None", "GLU", "Softmax", "MultiheadAttention", "Conv2d", "relu", 3])
    def test_what_is_none(self, name):
        assert not is_activation(name)


class TestDefectsOfTheBaselineAreNotRepeated:
    def test_mbconv_takes_its_channels_from_its_second_argument(self):
        """Defect 4: the first one is the expansion, and every MBConv ended in 8 channels."""
        _, output = layer("MBConv", [4, 160, 1, 3])
        assert output.shape[1] == 160

    @pytest.mark.parametrize("act", ["Swish", "HardSwish"])
    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
    def test_swish_can_be_scripted_and_exported(self, act):
        """Defect 5: Swish was an autograd.Function, and saving swallowed every error."""
        model = build([1, "Conv", [8, 3, 2, None, 1, act]], [1, "MBConv", [2, 8, 1, 3]]).eval()
        images = torch.randn(2, 3, 16, 16)
        assert torch.allclose(torch.jit.trace(model, images)(images), model(images), atol=1e-6)
        assert torch.allclose(torch.export.export(model, (images,)).module()(images), model(images), atol=1e-6)

    @pytest.mark.parametrize("classes", [2, 6, 9])
    def test_outputs_are_the_classes_of_the_data(self, classes):
        """Defect 7: tests expected 9 outputs and configurations said 6."""
        for name in shipped_names():
            assert create_model(name, classes).num_classes == classes
        model = create_model("lenet", classes).eval()
        assert model(torch.zeros(3, 3, 32, 32)).shape == (3, classes)
        assert model.written_classes == 6

    def test_size_of_the_search_is_the_size_that_counts(self):
        """Defect 8: the runtime was checked at 32 px, whatever size was searched."""
        value = definition([1, "Conv", [8, 3]], *POOLED, INPUT_SIZE=[96, 96])
        assert build_model(value, 5, source="test").input_size == 96
        assert build([1, "Conv", [8, 3]]).input_size is None


class TestShipped:
    @pytest.mark.parametrize("name", shipped_names())
    def test_builds_by_name_and_by_path(self, name):
        by_name, by_path = (create_model(n, 4).eval() for n in (name, str(DEFINITIONS / f"{name}.yaml")))
        by_path.load_state_dict(by_name.state_dict())
        images = torch.randn(2, 3, 48, 48)
        assert by_name(images).shape == (2, 4)
        assert torch.equal(by_name(images), by_path(images))

    def test_mobilenetv3_has_the_macs_that_the_contest_counted(self):
        """Its own pooling class was not seen; the convention counts one operation per pooled value."""
        model = create_model("mobilenetv3_large", 9)
        assert ptflops_macs(model, 224) == 224_128_545 + 960 * 7 * 7
        assert count_macs(model.to("meta"), 224).macs == 215_321_280

    def test_baseline_layouts_load(self, tmp_path):
        (tmp_path / "example.yml").write_text(
            "input_channel: 3\n\ndepth_multiple: 0.25\nwidth_multiple: 1.0\n\n"
            "backbone:\n    # [repeat, module, args]\n    [\n"
            '        [1, DWConv, [64, 3, 1, null, "HardSwish"]],\n        [4, InvertedResidualv2, [32, 4, 2]],\n'
            "        [5, InvertedResidualv3, [3, 3.3, 24, 1, 1, 2]], # comment\n        [1, Conv, [256, 1, 1]],\n"
            "        [1, GlobalAvgPool, []],\n        [1, Flatten, []],\n        [1, Linear, [6]]\n    ]\n"
        )
        model = create_model(str(tmp_path / "example.yml"), 9).eval()
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 9)
        assert definition_of(str(tmp_path / "example.yml"))["depth_multiple"] == 0.25

    def test_convolution_as_classifier_gives_flat_logits(self):
        tail = [[1, "GlobalAvgPool", []], [1, "FixedConv", [6, 1, 1, None, 1, None]]]
        model = build([1, "Conv", [8, 3, 2]], tail=tail, classes=7).eval()
        assert model(torch.zeros(2, 3, 20, 20)).shape == (2, 7)
        assert written_classes(definition([1, "Conv", [8, 3, 2]], *tail), "test") == 6


class TestDropping:
    def test_dropout_before_the_classifier(self):
        model = build_model(definition([1, "Conv", [8, 3]], *POOLED), 5, source="t", drop_rate=0.4)
        assert [name for name, _ in model.named_children()] == ["0", "1", "2", "dropout", "3"]
        assert model.state_dict().keys() == build([1, "Conv", [8, 3]]).state_dict().keys()

    def test_own_dropout_keeps_its_place(self):
        model = create_model("squeezenet", 5, drop_rate=0.2)
        assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.2]
        assert [m.p for m in create_model("squeezenet", 5).modules() if isinstance(m, nn.Dropout)] == [0.5]

    def test_drop_path_grows_to_the_rate(self):
        model = create_model("mobilenetv3_large", 5, drop_path=0.3)
        rates = [module.drop_path.drop_prob for module in model.modules() if isinstance(module, Residual)]
        assert rates == sorted(rates)
        assert rates[-1] == 0.3
        plain = create_model("mobilenetv3_large", 5)
        assert plain.state_dict().keys() == model.state_dict().keys()
        plain.load_state_dict(model.state_dict())
        images = torch.randn(1, 3, 64, 64)
        assert torch.equal(plain.eval()(images), model.eval()(images))


class TestStrictness:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ([1, "Cnv", [8, 3]], r"backbone\[0\] Cnv: is no module of the zoo; did you mean Conv\?"),
            ([1, "Conv", [8]], r"backbone\[0\] Conv: has 1 arguments, but takes \[c, k, s=1, pad=null"),
            ([1, "Conv", [8, 3, 1, None, 1, "ReLU", 1]], "has 7 arguments"),
            ([1, "Conv", ["8", 3]], "argument c .* must be a whole number from 1 to 16384, not '8'"),
            ([1, "Conv", [8.0, 3]], "argument c"),
            ([1, "Conv", [True, 3]], "argument c .* not True"),
            ([1, "Conv", [10**9, 3]], "argument c"),
            ([1, "Conv", [8, 3, 0]], "argument s"),
            ([1, "Conv", [8, 3, 1, None, 1, "None"]], "argument act .* must be null or one of"),
            ([1, "Conv", [8, 3, 1, None, 2]], "groups 2 must divide the 3 channels that come in"),
            ([1, "InvertedResidualv3", [3, 1, 16, 0, 0, 3]], "argument s .* must be 1 or 2, not 3"),
            ([1, "InvertedResidualv3", [4, 1, 16, 0, 0, 1]], "argument k .* must be an odd"),
            ([1, "InvertedResidualv3", [3, 1, 16, 2, 0, 1]], "argument se .* must be 0, 1, false or true"),
            ([1, "InvertedResidualv2", [16, -1, 1]], "argument t"),
            ([1, "InvertedResidualv2", [16, float("nan"), 1]], "numbers, names"),
            ([1, "ShuffleNetV2", [16, 1]], "take stride 2"),
            ([1, "MuxInvertedResidual", [3, 2, 2, 0, 0]], "argument s .* must be 1, not 2"),
            ([1, "MuxInvertedResidual", [3, 1, 2, 0, [4]]], "argument scales"),
            ([1, "MuxInvertedResidual", [3, 1, 2, 0, 0]], "3 channels cannot be shuffled"),
            ([1, "MobileViTBlock", [32, 1, 3, 2, 5]], "heads 5 must divide the 32"),
            ([1, "MaxPool", [2, 2, 0, 1, True]], "argument return_indices .* must be False"),
            ([1, "MaxPool", [2, 2, 2]], "pad 2 is more than half"),
            ([1, "Dropout", [1.0]], "argument p"),
            ([1, "Flatten", []], "cannot follow a feature map whose size depends on the image; put .*GlobalAvgPool"),
            ([1, "Linear", [9]], "cannot follow a feature map"),
            ([0, "Conv", [8, 3]], "repeat must be a whole number from 1 to 256, not 0"),
            ([1.0, "Conv", [8, 3]], "repeat"),
            ([1, "Conv", None], "arguments must be a list"),
            ([1, "Conv", [8, {"k": 3}]], "numbers, names"),
            ([1, ["Conv"], []], "the module must be a name"),
            ([1, "Conv"], r"backbone\[0\] must be \[repeat, module, args\]"),
            ("Conv", r"must be \[repeat"),
        ],
    )
    def test_wrong_line(self, line, message):
        with pytest.raises(UsageError, match=message) as caught:
            build_model({"backbone": [line, *POOLED]}, 5, source="my.yaml")
        assert str(caught.value).startswith("my.yaml: ")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([[1, "Conv", [8, 3]]], "the last line with weights must be Linear or FixedConv"),
            ([[1, "FixedConv", [5, 3]]], r"still a map; add \[1, GlobalAvgPool"),
            ([[1, "GlobalAvgPool", []]], "no line of the backbone has weights"),
            ([[1, "GlobalAvgPool", []], [1, "Linear", [5]]], r"pooled feature map; put \[1, Flatten"),
            ([*POOLED[:2], [1, "Conv", [8, 1]], [1, "Linear", [5]]], "a flat vector; move it before Flatten"),
            ([*POOLED[:2], [2, "Linear", [5]]], "once: the classifier"),
            ([*POOLED[:2], [1, "Linear", [0]]], "argument n"),
        ],
    )
    def test_wrong_order(self, lines, message):
        with pytest.raises(UsageError, match=message):
            build_model({"backbone": lines}, 5, source="my.yaml")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "a mapping with the key backbone"),
            ("[1, 2]", "a mapping with the key backbone"),
            ("backbone: []", "a list of 1 to 1000 lines"),
            ("backbone: [[1, Flatten, []]]\ndepth: 1", "unknown key 'depth'"),
            ("backbone: [[1, Flatten, []]]\n1: 1", "unknown key '1'"),
            ("backbone: [[1, Flatten, []]]\ninput_channel: 1", "input_channel must be 3"),
            ("backbone: [[1, Flatten, []]]\nwidth_multiple: 0", "width_multiple must be a number above 0"),
            ("backbone: [[1, Flatten, []]]\ndepth_multiple: true", "depth_multiple"),
            ("backbone: [[1, Flatten, []]]\nwidth_multiple: .nan", "width_multiple"),
            ("backbone: [[1, Flatten, []]]\nINPUT_SIZE: [96, 80]", "INPUT_SIZE"),
            ("backbone: [[1, Flatten, []]]\nbackbone: [[1, Flatten, []]]", "no YAML: .*given twice"),
            ("backbone: [[1, Conv, [2026-11-22]]]", "numbers, names"),
            ("backbone: !!python/object/apply:os.system ['true']", "no YAML"),
            ("backbone: [", "no YAML"),
        ],
    )
    def test_wrong_file(self, tmp_path, text, message):
        path = tmp_path / "wrong.yaml"
        path.write_text(text)
        with pytest.raises(UsageError, match=message) as caught:
            create_model(str(path), 5)
        assert str(path) in str(caught.value)

    def test_missing_file(self, tmp_path):
        with pytest.raises(UsageError, match=r"cannot be read .*give a \.yaml file"):
            read_definition(tmp_path / "none.yaml")


NAMES = [name for name in MODULES if name.split()[0] not in ("SpaceToChannel", "MaxPool", "AvgPool")]
"""Lines that leave at least 4 px of 32 when four follow each other, and an even size for the resolutions of Mux."""


@st.composite
def definitions(draw):
    """A stem of stride 1, up to four lines of stride 1 or 2, and one of the two kinds of tail."""
    lines = [[1, "Conv", [16, 3]]]
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4)):
        args = list(MODULES[name][0])
        if name.startswith(("Conv", "FixedConv")):
            args = [draw(st.integers(1, 5)) * 8, 3, draw(st.integers(1, 2))]
        if name.startswith("ShuffleNetV2"):
            args[1] = 2
        lines.append([draw(st.integers(1, 3)), name.split()[0], args])
    tails = [POOLED, [[1, "GlobalAvgPool", []], [1, "FixedConv", [5, 1, 1, None, 1, None]]]]
    multiples = st.sampled_from([0.25, 0.5, 0.75, 1.0])
    keys = {"depth_multiple": draw(multiples), "width_multiple": draw(multiples)}
    return {"input_channel": 3, **keys, "backbone": lines + draw(st.sampled_from(tails))}


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=definitions(), classes=st.integers(2, 12))
def test_any_definition_builds_and_comes_back_from_its_file(tmp_path_factory, value, classes):
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "model.yaml").write_text(yaml.safe_dump(value))
    name = str(folder / "model.yaml")
    assert json.loads(json.dumps(definition_of(name))) == value
    try:
        model = create_model(name, classes).eval()
    except UsageError as error:  # groups or a shuffle that do not go with the drawn width: said, not crashed
        if "backbone[" not in str(error):
            raise
        return
    images = torch.randn(2, 3, 32, 32)
    logits = model(images)
    assert logits.shape == (2, classes)
    names = tuple(f"class {number}" for number in range(classes))
    card = ModelCard(
        architecture=name,
        classes=names,
        size=32,
        fit="pad",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        definition=definition_of(name),
    )
    save_model(folder / "model.safetensors", model, card)
    (folder / "model.yaml").unlink()
    loaded, read = load_model(folder / "model.safetensors")
    assert read == card
    assert torch.equal(loaded(images), logits)
    assert count_macs(model.to("meta"), 32).macs > 0
