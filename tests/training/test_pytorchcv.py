"""Models of pytorchcv: any image size, any number of classes, and the competition's seed network to the last MAC."""

import pytest
import timm
import torch
from torch import nn

from pipelines.errors import UsageError
from tests.training.ptflops_2021 import ptflops_macs
from training.measure.macs import count_macs
from training.model.classifier import classifier_names
from training.model.create import check_input_size, create_model
from training.model.cv_models import cv_family, cv_names
from training.model.names import definition_of, resolve


def seed(units, head=""):
    return create_model("shufflenet_g3_x025_" + units.replace("-", "_") + head, 9)


class TestSeedNetwork:
    """Golden numbers of the contest at 80 px with 9 classes; a linear head has 9 biases more than a convolution."""

    ROWS = (
        ("4-8-4", 1_688_940, 1_467_600, 67_062),
        ("4-7-3", 1_515_450, 1_309_590, 53_172),
        ("4-6-3", 1_439_700, 1_242_840, 50_142),
        ("4-8-0", 1_299_780, 1_106_280, 27_582),
        ("3-5-3", 1_272_450, 1_102_590, 46_197),
        ("2-5-2", 1_083_210, 937_830, 34_422),
        ("2-4-2", 1_007_460, 871_080, 31_392),
        ("1-1-1", 590_970, 506_070, 10_527),
    )

    @pytest.mark.parametrize(("units", "p4", "macs", "parameters"), ROWS)
    def test_golden_rows(self, units, p4, macs, parameters):
        convolution, linear = seed(units, "_conv"), seed(units)
        for model, biases in ((convolution, 0), (linear, 9)):
            report = count_macs(model.to("meta"), 80)
            assert (report.macs, report.parameters) == (macs, parameters + biases)
        assert ptflops_macs(seed(units, "_conv"), 80) == p4
        assert ptflops_macs(seed(units), 80) == p4 + 9

    @pytest.mark.parametrize(
        ("size", "whole", "pruned"),
        [
            (64, 1_018_128, 668_688),
            (65, 1_506_822, 935_862),
            (81, 2_066_754, 1_322_604),
            (96, 2_288_088, 1_501_848),
            (97, 2_988_462, 1_886_262),
            (112, 3_249_012, 2_097_402),
            (113, 3_766_266, 2_425_236),
        ],
    )
    def test_golden_sizes(self, size, whole, pruned):
        assert ptflops_macs(seed("4-8-4", "_conv"), size) == whole
        assert ptflops_macs(seed("2-5-2", "_conv"), size) == pruned

    def test_pytorchcv_has_the_same_network(self):
        theirs, ours = create_model("shufflenet_g3_wd4", 9).eval(), create_model("shufflenet_g3_x025", 9).eval()
        ours.load_state_dict(theirs.state_dict())
        images = torch.randn(2, 3, 80, 80)
        assert torch.equal(theirs(images), ours(images))

    def test_convolution_head_equals_linear_head_without_bias(self):
        linear, convolution = seed("1-1-1").eval(), seed("1-1-1", "_conv").eval()
        state = linear.state_dict()
        del state["output.bias"]
        nn.init.zeros_(linear.output.bias)
        convolution.load_state_dict({**state, "output.weight": state["output.weight"][:, :, None, None]})
        images = torch.randn(2, 3, 40, 40)
        assert torch.allclose(linear(images), convolution(images), atol=1e-6)

    @pytest.mark.parametrize("units", ["0_1_1", "1_0_1", "0_0_0"])
    def test_stages_are_left_out_from_the_back_only(self, units):
        with pytest.raises(UsageError, match="from the back only"):
            create_model(f"shufflenet_g3_x025_{units}", 9)


class TestAnySize:
    @pytest.mark.parametrize(
        ("name", "native"),
        [("shufflenet_g3_wd4", 224), ("mobilenet_wd4", 224), ("squeezenet_v1_1", 224), ("resnet20_cifar10", 32)],
    )
    def test_global_pooling_equals_the_fixed_one_at_the_native_size(self, name, native):
        from pytorchcv.model_provider import get_model

        theirs = get_model(name).eval().double()
        ours = create_model(name, theirs.num_classes).eval().double()
        ours.load_state_dict(theirs.state_dict())
        images = torch.randn(1, 3, native, native, dtype=torch.float64)
        assert torch.allclose(ours(images), theirs(images), rtol=1e-9)

    @pytest.mark.parametrize("name", ["shufflenet_g3_wd4", "mobilenetv2_wd4", "squeezenet_v1_1", "dicenet_wd5"])
    @pytest.mark.parametrize("size", [64, 81])
    def test_takes_other_sizes(self, name, size):
        model = create_model(name, 6)
        check_input_size(model, name, size)
        assert model.eval()(torch.zeros(2, 3, size, size)).shape == (2, 6)

    def test_layers_that_need_one_size_are_named(self):
        # AlexNet's fully connected layer has a weight for each pixel; on meta nothing of its size is allocated.
        with torch.device("meta"):
            model = create_model("alexnet", 6)
        with pytest.raises(UsageError, match=r"alexnet cannot take images of 64 px, it is built for 224 px"):
            check_input_size(model.to_empty(device="cpu"), "alexnet", 64)


class TestNames:
    def test_timm_wins(self):
        assert "resnet18" in cv_names()
        assert resolve("resnet18") == ("timm", "resnet18")
        assert type(create_model("resnet18", 3)).__module__.startswith("timm.")
        assert type(create_model("pytorchcv:resnet10", 3)).__module__.startswith("pytorchcv.")
        assert resolve("pytorchcv:resnet18") == ("pytorchcv", "resnet18")
        assert resolve("timm:resnet18") == ("timm", "resnet18")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("shufflenet_g3_wd5", r"did you mean .*shufflenet_g3_wd4"),
            ("timm:shufflenet_g3_wd4", "unknown model"),
            ("torchvision:resnet18", "timm, yaml, pytorchcv or sum"),
            ("pytorchcv:mobilenetv3_small_050", "unknown model"),
            ("unet_cityscapes", "unknown model"),
        ],
    )
    def test_unknown_names(self, name, message):
        with pytest.raises(UsageError, match=message):
            create_model(name, 6)

    def test_only_classifiers_are_listed(self):
        names = cv_names()
        assert len(names) > 700
        assert not {"unet_cityscapes", "raft_small", "jasper5x3", "centernet_resnet18_coco"} & set(names)
        assert cv_family("resnet20_cifar10") == "resnet"

    def test_a_name_needs_no_definition(self):
        assert definition_of("resnet18") is None
        assert definition_of("shufflenet_g3_wd4") is None


class TestClassifier:
    @pytest.mark.parametrize(
        ("name", "path"),
        [
            ("shufflenet_g3_wd4", "output"),
            ("squeezenet_v1_1", "output.final_conv"),
            ("ghostnet", "output.conv2"),
            ("shufflenet_g3_x025_1_1_1_conv", "output"),
            ("mobilenetv3_small_050", "classifier"),
            ("lenet", "8"),
            ("searched_small", "8.conv 8.bn"),
        ],
    )
    def test_is_found(self, name, path):
        assert classifier_names(create_model(name, 6)) == tuple(path.split())

    @pytest.mark.parametrize("name", ["shufflenet_g3_wd4", "squeezenet_v1_1", "resnet20_cifar10", "mobilenetv3_large"])
    def test_starts_near_zero(self, name):
        torch.manual_seed(0)
        logits = create_model(name, 6)(torch.randn(16, 3, 64, 64))
        assert nn.functional.cross_entropy(logits, torch.arange(16) % 6) < 2.0

    @pytest.mark.parametrize("name", ["shufflenet_g3_wd4", "searched_small", "lenet", "nin_cifar10"])
    def test_classifier_of_other_classes_is_left_out(self, tmp_path, name):
        donor = create_model(name, 10)
        torch.save(donor.state_dict(), tmp_path / "donor.pth")
        model = create_model(name, 3, weights=tmp_path / "donor.pth")
        stem = next(iter(donor.state_dict()))
        assert torch.equal(model.state_dict()[stem], donor.state_dict()[stem])
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)

    @pytest.mark.parametrize("classes", [6, 10])
    def test_families_for_cifar_take_any_number_of_classes(self, classes):
        assert create_model("resnet20_cifar10", classes).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, classes)


class TestDropping:
    def test_dropout_acts_in_training_and_keeps_the_names(self):
        plain, dropping = create_model("shufflenet_g3_wd4", 3), create_model("shufflenet_g3_wd4", 3, drop_rate=0.5)
        assert plain.state_dict().keys() == dropping.state_dict().keys()
        dropping.load_state_dict(plain.state_dict())
        images = torch.randn(2, 3, 64, 64)
        assert torch.equal(plain.eval()(images), dropping.eval()(images))
        assert dropping.features.dropout.p == 0.5
        assert dropping.features[-1] is dropping.features.dropout

    def test_drop_path(self):
        model = create_model("efficientnet_b0", 3, drop_path=0.2)
        rates = [module.drop_prob for module in model.modules() if isinstance(module, timm.layers.DropPath)]
        assert 0 < max(rates) <= 0.2
        for name in ("vgg11", "shufflenet_g3_wd4", "shufflenet_g3_x025", "lenet"):
            with pytest.raises(UsageError, match="drop_path at 0"):
                create_model(name, 3, drop_path=0.2)
