"""Heads that only training uses: gone from a copy, and the outputs are the same bit for bit."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pipelines.errors import UsageError
from training.measure.competition_macs import count_competition_macs
from training.measure.macs import UncountableError, count_macs
from training.model.deploy import StrippedHead, strip_training_heads


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def outputs(model: nn.Module, size: int) -> Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(images)


def randomized(model: nn.Module) -> nn.Module:
    """With statistics that are no zeros and ones, so that a layer that is lost shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


class Head(nn.Module):
    training_only = True

    def __init__(self, *inside: nn.Module):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(8, 100), *inside)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


class Body(nn.Module):
    def __init__(self, head: nn.Module, classes: int = 5):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(8, classes)
        self.head = head

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.features(x).flatten(1)
        logits = self.classifier(features)
        return (logits, self.head(features)) if self.training and self.head is not None else logits


class Pair(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.parts = nn.ModuleDict({"first": first, "second": second})

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["first"](x) + self.parts["second"](x)


BODY = 8 * 27 + 8 + 16 + 8 * 5 + 5


def check(model: nn.Module, size: int, with_heads: int, without: int) -> nn.Module:
    """The stripped copy, after its size, its outputs and the original were looked at."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text, modes = str(model), [module.training for module in model.modules()]
    stripped = strip_training_heads(model)
    assert stripped is not model
    assert (parameters(model), parameters(stripped)) == (with_heads, without)
    assert (str(model), [module.training for module in model.modules()]) == (text, modes)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in stripped.parameters()}
    assert stripped.training == model.training
    assert torch.equal(outputs(model, size), outputs(stripped, size))
    assert strip_training_heads(stripped) is stripped
    return stripped


class TestTorchvision:
    def test_googlenet(self):
        model = randomized(torchvision.models.googlenet(weights=None, init_weights=False))
        stripped = check(model, 64, 13_004_888, 6_624_904)
        assert not [name for name in stripped.state_dict() if name.startswith("aux")]
        assert isinstance(stripped.train()(torch.zeros(2, 3, 64, 64)), Tensor)

    def test_its_cost_is_that_of_the_network_built_without_them(self):
        with torch.device("meta"):
            model = torchvision.models.googlenet(weights=None, init_weights=False)
            bare = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False)
        for meter in (count_macs, count_competition_macs):
            assert meter(strip_training_heads(model), 64) == meter(bare, 64)
            assert meter(model, 64).macs == meter(bare, 64).macs
            assert meter(model, 64).parameters == 13_004_888

    def test_inception(self):
        model = randomized(torchvision.models.inception_v3(weights=None, init_weights=False))
        with torch.device("meta"):
            bare = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=False)
        stripped = check(model, 96, 27_161_264, parameters(bare))
        assert list(stripped.state_dict()) == list(bare.state_dict())

    def test_inside_of_another_module(self):
        model = nn.Sequential(torchvision.models.googlenet(weights=None, init_weights=False), nn.Linear(1000, 3))
        check(model, 64, 13_004_888 + 3003, 6_624_904 + 3003)

    @pytest.mark.parametrize("name", ["resnet18", "googlenet"])
    def test_nothing_to_strip(self, name):
        extra = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
        with torch.device("meta"):
            model = getattr(torchvision.models, name)(weights=None, **extra)
        assert strip_training_heads(model) is model


class TestMarkedHeads:
    def test_a_head(self):
        stripped = check(randomized(Body(Head())), 8, BODY + 900, BODY)
        assert isinstance(stripped.head, StrippedHead)
        assert not [name for name in stripped.state_dict() if "head" in name]

    def test_the_mark_of_one_module_only(self):
        head = nn.Linear(8, 100)
        assert strip_training_heads(Body(head)).head is head
        for no_mark in (False, None):
            head.training_only = no_mark
            assert strip_training_heads(Body(head)).head is head
        head.training_only = True
        check(Body(head), 8, BODY + 900, BODY)

    def test_heads_in_heads(self):
        check(Body(Head(Head().inside, Head())), 8, BODY + 3 * 900, BODY)

    def test_heads_in_parts(self):
        check(Pair(Body(Head()), nn.Sequential(Body(Head(Head())))), 8, 2 * BODY + 3 * 900, 2 * BODY)

    def test_a_head_in_two_places(self):
        head = Head()
        stripped = check(Pair(Body(head), Body(head)), 8, 2 * BODY + 900, 2 * BODY)
        assert not [name for name in stripped.state_dict() if "head" in name]

    def test_weights_that_a_head_shares_with_the_network_stay(self):
        model = Body(Head())
        model.head.inside[0].weight = model.classifier.weight
        check(model, 8, BODY + 100, BODY)

    def test_a_model_with_tensors_that_have_a_history(self):
        model = Body(Head())
        model.classifier = nn.utils.weight_norm(model.classifier)
        model(torch.zeros(2, 3, 8, 8))
        assert torch.equal(outputs(strip_training_heads(model), 8), outputs(model, 8))

    def test_the_mode_and_the_hooks_stay(self):
        model = Body(Head())
        model.features[1].eval()
        model.features.register_forward_hook(lambda *_: None)
        model.classifier.requires_grad_(False)
        stripped = strip_training_heads(model)
        assert stripped.training
        assert not stripped.features[1].training
        assert len(stripped.features._forward_hooks) == 1
        assert not stripped.classifier.weight.requires_grad

    def test_no_part_that_runs_can_hide_behind_the_mark(self):
        model = Body(nn.Identity())
        model.classifier.training_only = True
        with pytest.raises(UsageError, match=r"classifier \(Linear\) is marked training_only .* take the mark away"):
            outputs(strip_training_heads(model), 8)
        for meter in (count_macs, count_competition_macs):
            with pytest.raises(UncountableError, match=r"classifier .* marked training_only"):
                meter(strip_training_heads(model), 8)

    def test_training_goes_on_without_the_head_or_says_what_is_missing(self):
        stripped = strip_training_heads(Body(Head()))
        with pytest.raises(UsageError, match=r"head \(Head\) is marked training_only .* set it to evaluation"):
            stripped.train()(torch.zeros(2, 3, 8, 8))
