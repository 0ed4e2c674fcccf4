"""Rule checks: what the MACs cannot see, views and ensembles, what was learned from, where weights come from."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from training.measure.rules import RECORDED, check_rules
from training.model.card import ModelCard
from training.model.create import create_model

PROVENANCE = {"seed": 0, "timm": "1.0", "torch": "2.9", "learned_from": "train", "weights": None}
SIZE = 32


def card_of(architecture="lenet", **provenance):
    return ModelCard(
        architecture=architecture, classes=("a", "b"), size=SIZE, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3,
        provenance=PROVENANCE | provenance,
    )  # fmt: skip


def findings(model, card=None):
    return {finding.rule: finding for finding in check_rules(model, card or card_of())}


def small():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


class Views(nn.Module):
    """Test-time augmentation: the image and its mirror image."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + self.inner(x.flip(3))


class ViewsInTheBatch(Views):
    def forward(self, x):
        return self.inner(torch.cat([x, x.flip(3), x.flip(2)])).reshape(3, len(x), -1).mean(0)


class SharedBlock(Views):
    def forward(self, x):
        return self.inner[2](self.inner[1](self.inner[1](self.inner[0](x)))).mean((2, 3))


class Ensemble(nn.Module):
    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.ModuleList(inner)

    def forward(self, x):
        return sum(inner(x) for inner in self.inner)


class Hidden(nn.Module):
    """A convolution that no hook sees."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight).mean((2, 3))


def test_an_honest_model_keeps_every_rule():
    found = check_rules(create_model("shufflenet_g3_x025", 2), card_of("shufflenet_g3_x025"))
    assert [finding.rule for finding in found] == [
        "macs_seen", "one_pass", "test_unused", "allowed_weights", "reproducible",
    ]  # fmt: skip
    assert all(finding.ok is True for finding in found)
    assert all(finding.detail for finding in found)


class TestMacsSeen:
    def test_functional_convolution(self):
        found = findings(Hidden())
        assert found["macs_seen"].ok is False
        assert "Hidden" in found["macs_seen"].detail
        assert found["one_pass"].ok is True

    def test_says_how_many(self):
        assert "MACs are seen" in findings(small())["macs_seen"].detail


class TestOnePass:
    @pytest.mark.parametrize("name", ["lenet", "mobilenetv3_small_050", "shufflenet_g3_x025_2_5_2_conv", "resnet10t"])
    def test_single_models(self, name):
        assert findings(create_model(name, 2), card_of(name))["one_pass"].ok is True

    def test_views(self):
        found = findings(Views(small()))["one_pass"]
        assert found.ok is False
        assert "inner.0 runs 2 times" in found.detail
        assert "4 times" in findings(Views(Views(small())))["one_pass"].detail

    def test_views_in_the_batch_cannot_be_told_from_pieces_of_one_image(self):
        found = findings(ViewsInTheBatch(small()))["one_pass"]
        assert found.ok is None
        assert "inner.0 gets 3 images for one" in found.detail

    def test_views_through_weight_norm(self):
        conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3, bias=False))
        assert findings(conv)["one_pass"].ok is True
        found = findings(Views(conv))["one_pass"]
        assert (found.ok, "inner runs 2 times" in found.detail) == (False, True)

    def test_modules_that_share_their_weights(self):
        one, two = small(), small()
        assert findings(Ensemble(one, two))["one_pass"].ok is True  # a network with two branches looks the same
        for mine, other in zip(one.modules(), two.modules(), strict=True):
            for name, parameter in mine.named_parameters(recurse=False):
                setattr(other, name, parameter)
        found = findings(Ensemble(one, two))["one_pass"]
        assert (found.ok, "inner.0.0 runs 2 times" in found.detail) == (False, True)

    def test_layers_that_share_weights_behind_the_first_are_left_to_people(self):
        model = SharedBlock(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)))
        found = findings(model)["one_pass"]
        assert (found.ok, "inner.1 runs 2 times" in found.detail) == (None, True)

    def test_nothing_to_count(self):
        assert findings(nn.Flatten())["one_pass"].ok is None
        found = findings(nn.Conv2d(7, 2, 1))
        assert found["one_pass"].ok is None
        assert "cannot be watched" in found["one_pass"].detail


class TestTestUnused:
    @pytest.mark.parametrize(
        ("learned_from", "ok"),
        [("train", True), ("train+val", True), ("fold 0 of 5", True), ("all", False), (None, None), ("test", None)],
    )
    def test_learned_from(self, learned_from, ok):
        found = findings(small(), card_of(learned_from=learned_from))["test_unused"]
        assert found.ok is ok
        assert (learned_from or "does not say") in found.detail or ok is False

    def test_a_card_that_says_nothing(self):
        card = ModelCard(
            architecture="lenet", classes=("a", "b"), size=SIZE, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3
        )
        found = findings(small(), card)
        assert [found[rule].ok for rule in ("test_unused", "allowed_weights", "reproducible")] == [None] * 3
        assert "seed, timm, torch" in found["reproducible"].detail


class TestWeights:
    @pytest.mark.parametrize(
        ("architecture", "weights", "ok", "detail"),
        [
            ("resnet18", None, True, "random"),
            ("resnet18.tv_in1k", "pretrained", True, "tv_in1k"),
            ("timm:resnet18.tv_in1k", "pretrained", True, "tv_in1k"),
            ("resnet18", "pretrained", None, "timm's hub"),
            ("resnet18", "runs/teacher", None, "started from runs/teacher"),
            ("no_such_model", "pretrained", None, "unknown"),
            ("resnet18.no_such_weights", "pretrained", None, "unknown"),
        ],
    )
    def test_where_they_come_from(self, architecture, weights, ok, detail):
        found = findings(small(), card_of(architecture, weights=weights))["allowed_weights"]
        assert found.ok is ok
        assert detail in found.detail


class TestTeachers:
    """A student knows what its teachers know, and theirs."""

    @pytest.mark.parametrize(
        ("teachers", "unused", "allowed"),
        [
            ([], True, True),
            ([{"architecture": "a", "learned_from": "train", "weights": None}], True, True),
            ([{"architecture": "a", "learned_from": "all", "weights": None}], False, True),
            ([{"architecture": "a"}], None, None),
            ([{"architecture": "resnet18.tv_in1k", "learned_from": "train", "weights": "pretrained"}], True, True),
            ([{"architecture": "resnet18", "learned_from": "train", "weights": "imagenet.pth"}], True, None),
            (
                [{"learned_from": "train", "weights": None, "teachers": [{"learned_from": "all", "weights": None}]}],
                False,
                True,
            ),
            (["not of ours"], True, True),
        ],
    )
    def test_the_worst_counts(self, teachers, unused, allowed):
        found = findings(small(), card_of(teachers=teachers))
        assert (found["test_unused"].ok, found["allowed_weights"].ok) == (unused, allowed)

    # Once a bug: training once more made a model innocent.
    def test_what_it_started_from_counts(self):
        teacher = {"name": "big", "architecture": "a", "learned_from": "all", "weights": None}
        start = {"name": "runs/d1", "learned_from": "train", "weights": "x.pth", "teachers": [teacher]}
        found = findings(small(), card_of(starts=[start]))
        assert found["test_unused"].ok is False
        assert found["test_unused"].detail == "its teacher big: learned from all splits, the test split among them"
        assert found["allowed_weights"].ok is None
        assert found["allowed_weights"].detail.startswith("started from runs/d1: started from x.pth: look")

    def test_the_teacher_is_named(self):
        teacher = {"name": "big", "architecture": "a", "learned_from": "all", "weights": None}
        assert findings(small(), card_of(teachers=[teacher]))["test_unused"].detail.startswith(
            "its teacher big: learned"
        )


@pytest.mark.parametrize("key", RECORDED)
def test_what_a_repetition_needs(key):
    found = findings(small(), card_of(**{key: None}))["reproducible"]
    assert (found.ok, f"does not name {key};" in found.detail) == (None, True)


def test_the_model_is_left_as_it_is():
    model = Views(timm.create_model("test_efficientnet", num_classes=2)).train()
    model.inner.bn1.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    check_rules(model, card_of())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, True)
    assert torch.equal(torch.get_rng_state(), random)
