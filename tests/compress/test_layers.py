"""Removing blocks: what is found, how it is ranked, and what is left."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.blocks.find import bypassed, find_units
from compress.blocks.goal import Goal, check_goal, left_after, macs_without
from compress.blocks.rank import Cka, Cosine, rank, weight_std
from compress.blocks.removal import choose, prove
from compress.layers import LayersConfig, layers, table
from compress.press.contract import NoEffectError, ProofError, check, edited
from compress.press.samples import Samples, load_samples, quality, stratified
from pipelines.errors import UsageError
from pipelines.tensors import TensorFormat
from tests.training.conftest import cache, photos  # noqa: F401 - fixtures
from training.measure.macs import count_macs
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.edits.remove import removed
from training.model.model_file import load_model, read_card, save_model

NINE = tuple("abcdefghi")
CARD = ModelCard(architecture="resnet18", classes=NINE, size=32, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3)
STAGES = {1: (2, 4), 2: (2, 8), 3: (2, 4)}
SHUFFLE = [
    f"features.stage{stage}.unit{unit}" for stage, (low, high) in STAGES.items() for unit in range(low, high + 1)
]
MOBILE = ["blocks.1.1", "blocks.2.1", "blocks.2.2", "blocks.3.0", "blocks.3.1", "blocks.4.1", "blocks.4.2"]


def made(name, classes=9, seed=0):
    """A network whose batch normalisations have seen something."""
    torch.manual_seed(seed)
    model = create_model(name, classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    return model.eval()


def stored(path, name, card=CARD, **changes):
    save_model(path, made(name, len(card.classes)), replace(card, architecture=name, **changes))
    return path


class Add(nn.Module):
    """x + body(x), and perhaps something after it."""

    def __init__(self, body, after=None):
        super().__init__()
        self.body, self.after = body, after or nn.Identity()

    def forward(self, x):
        return self.after(x + self.body(x))


def conv(channels=4, scale=None, kernel=1):
    layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
    if scale is not None:
        layer.weight.data = scale * torch.eye(channels)[:, :, None, None]
    return layer


class Toy(nn.Module):
    """Blocks between a stem and a classifier."""

    def __init__(self, *blocks, channels=4):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


# ------------------------------------------------------------------------------------------------------------ finding


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("resnet18", ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("mobilenetv3_small_050", MOBILE),
        ("shufflenet_g3_wd4", SHUFFLE),
    ],
)
def test_residual_units_are_found(name, units):
    found = find_units(made(name), 32)
    assert list(found.units) == units
    assert found.macs == count_macs(made(name), 32).macs


def test_what_is_no_unit_says_why():
    skipped = find_units(made("resnet18"), 32).skipped
    assert skipped == {
        "layer2.0": "makes 128x4x4 of 64x8x8",
        "layer3.0": "makes 256x2x2 of 128x4x4",
        "layer4.0": "makes 512x1x1 of 256x2x2",
    }


@pytest.mark.parametrize("name", ["convnext_atto", "regnetx_002"])
def test_units_of_other_families_are_found_and_can_go(name):
    size = 32
    model = create_model(name, 9).eval()
    found = find_units(model, size)
    assert len(found.units) >= 5
    units = list(found.units)
    without = edited(model, tuple(removed(unit) for unit in units), name)
    assert check(prove(without, model, units, size), name).error <= 1e-5
    assert count_macs(without, size).macs == macs_without(found, units)


def test_seven_units_of_mobilenet_cost_what_was_measured():
    model = made("mobilenetv3_small_050")
    found = find_units(model, 64)
    assert (found.macs, macs_without(found, MOBILE)) == (2_287_424, 1_244_224)
    assert count_macs(edited(model, tuple(map(removed, MOBILE)), "it"), 64).macs == 1_244_224


class TestDetection:
    """By what a module does, not by its class."""

    def names(self, *blocks, units="residual", **options):
        found = find_units(Toy(*blocks, **options), 8, units)
        return [path.removeprefix("blocks.") for path in found.units], found.skipped

    def test_in_place_activations(self):
        inside = nn.Sequential(nn.ReLU(inplace=True), conv())

        class PlusEqual(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = conv()

            def forward(self, x):
                y = self.conv(x)
                y += x
                return torch.relu_(y)

        assert self.names(Add(inside, nn.ReLU(inplace=True)), PlusEqual())[0] == ["0", "1"]

    def test_a_view_of_the_input(self):
        class Tokens(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(4, 4)

            def forward(self, x):
                tokens = x.flatten(2).transpose(1, 2)
                return (tokens + self.linear(tokens)).transpose(1, 2).reshape(x.shape)

        assert self.names(Tokens())[0] == ["0"]

    def test_of_nested_ones_the_outermost(self):
        assert self.names(Add(Add(conv())))[0] == ["0"]

    def test_a_stage_of_units_is_none_itself(self):
        stage = nn.Sequential(Add(conv()), Add(conv()))
        assert self.names(stage)[0] == ["0.0", "0.1"]
        assert self.names(stage, units="any")[0] == ["0.0", "0.1"]

    def test_what_goes_on_after_the_sum_is_no_unit(self):
        names, skipped = self.names(Add(conv(), conv()))
        assert names == []
        assert skipped["blocks.0"] == "goes on after adding its input"

    def test_a_bias_is_no_body(self):
        class Shift(nn.Module):
            def __init__(self):
                super().__init__()
                self.map = nn.Parameter(torch.ones(1, 4, 8, 8))
                self.conv = conv()

            def forward(self, x):
                return self.conv(x + self.map) if self.training else (x + self.map) * self.conv(x).mean()

        assert self.names(Shift())[0] == []

    def test_an_input_that_was_copied_and_projected(self):
        class Projected(nn.Module):
            def __init__(self):
                super().__init__()
                self.short, self.body = conv(), conv()

            def forward(self, x):
                return self.short(x) + self.body(x)

        names, skipped = self.names(Projected())
        assert names == []
        assert skipped["blocks.0"] == "does not add its input to what comes out"

    def test_run_twice(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.unit = Add(conv())

            def forward(self, x):
                return self.unit(self.unit(x)) * 2

        assert self.names(Twice())[1]["blocks.0.unit"] == "runs 2 times for one image"

    def test_shared(self):
        unit = Add(conv())
        assert self.names(unit, nn.ReLU(), unit)[1]["blocks.0"] == "is the same module as blocks.2"

    def test_reached_into(self):
        class Reaches(nn.Module):
            def __init__(self):
                super().__init__()
                self.unit = Add(conv())

            def forward(self, x):
                return self.unit(x) * self.unit.body(x)

        assert self.names(Reaches())[1]["blocks.0.unit"] == "parts of it run without it"

    def test_read(self):
        class Reads(nn.Module):
            def __init__(self):
                super().__init__()
                self.unit = Add(conv())

            def forward(self, x):
                return self.unit(x) * self.unit.body.weight.sum()

        reason = self.names(Reads())[1]["blocks.0.unit"]
        assert reason.startswith("the network reads it besides running it")

    def test_any_takes_what_keeps_the_shape_and_costs_something(self):
        plain = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
        half = nn.Conv2d(4, 4, 1, stride=2)
        assert self.names(plain, nn.BatchNorm2d(4), half, units="any")[0] == ["0"]
        assert self.names(plain, nn.BatchNorm2d(4), units="any")[0] == ["blocks"]  # costs the same, and is more
        assert self.names(plain, Add(conv()), units="any")[0] == ["blocks", "0", "1"]  # all of them together, too

    def test_the_network_is_left_as_it_was(self):
        model = Toy(Add(conv())).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        find_units(model, 8)
        assert model.training
        assert all(
            not m._forward_hooks and not m._forward_pre_hooks and "forward" not in vars(m) for m in model.modules()
        )
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------------------ ranking


def samples_of(images, labels, classes=3):
    """Levels are what the network gets."""
    unscaled = TensorFormat("float32", (0.0,) * 3, (1 / 255,) * 3)
    names = tuple(map(str, range(classes)))
    return Samples(levels=images, labels=labels, classes=names, wanted=unscaled, fingerprint="")


def coloured():
    """Four images of each of three classes: class c is bright in channel c, less and less so."""
    levels = torch.zeros(12, 3, 2, 2, dtype=torch.uint8)
    labels = torch.arange(3).repeat(4)
    for row, label in enumerate(labels.tolist()):
        levels[row, label] = 10 + row
    return samples_of(levels, labels)


def reader(*blocks):
    """Says the brightest channel; three channels wide."""
    model = Toy(*blocks, channels=3).eval()
    model.stem.weight.data = torch.eye(3)[:, :, None, None]
    model.stem.bias.data.zero_()
    model.head.weight.data, model.head.bias.data = torch.eye(3), torch.zeros(3)
    return model


def swap(scale):
    """Body that adds so much of the next channel."""
    layer = conv(3)
    layer.weight.data = scale * torch.eye(3).roll(1, 0)[:, :, None, None]
    return Add(layer)


def test_ablation_by_hand():
    """The first block makes all wrong, the second makes that good again, the third only doubles."""
    undo = conv(3)
    first = torch.eye(3) + 3 * torch.eye(3).roll(1, 0)
    undo.weight.data = (4 * torch.linalg.inv(first) - torch.eye(3))[:, :, None, None]
    model = reader(swap(3.0), Add(undo), Add(conv(3, scale=1.0)))
    samples = coloured()
    assert quality(model, samples).macro_f1 == 1.0
    found = rank("ablation", model, ["blocks.0", "blocks.1", "blocks.2"], samples)
    with bypassed(model, ["blocks.1"]):
        assert quality(model, samples).macro_f1 == 0.0
    assert found[0].unit == "blocks.2"
    assert found[0].value == 0.0
    assert found[-1].unit == "blocks.1"
    assert found[-1].value == 1.0


def test_ties_of_ablation_go_by_the_loss_then_from_the_back():
    model = reader(Add(conv(3, scale=1.0)), Add(conv(3, scale=0.0)), Add(conv(3, scale=0.0)))
    found = rank("ablation", model, ["blocks.0", "blocks.1", "blocks.2"], coloured())
    assert [one.unit for one in found] == ["blocks.2", "blocks.1", "blocks.0"]
    assert [one.value for one in found] == [0.0] * 3
    assert found[0].tie == found[1].tie < found[2].tie


def test_cosine_by_hand():
    """x + x has the cosine 1; turning by one channel as much as x has 1/sqrt(2); 3 x as much 1/sqrt(10)."""
    model = reader(Add(conv(3, scale=1.0)), swap(1.0), swap(3.0))
    model.stem.weight.data = torch.eye(3)[:, :, None, None]
    found = {one.unit: 1 - one.value for one in rank("cosine", model, ["blocks.0", "blocks.1"], coloured())}
    assert found["blocks.0"] == pytest.approx(1.0)
    assert found["blocks.1"] == pytest.approx(2**-0.5)
    alone = reader(swap(3.0))
    assert 1 - rank("cosine", alone, ["blocks.0"], coloured())[0].value == pytest.approx(10**-0.5)


def test_a_block_that_works_in_place_is_compared_with_what_it_got():
    class Negates(nn.Module):
        def forward(self, x):
            return x.neg_()

    model = reader(Negates())
    for by, value in (("cosine", 2.0), ("cka", 0.0)):
        assert rank(by, model, ["blocks.0"], coloured())[0].value == pytest.approx(value, abs=1e-9)


def naive_cka(x, y):
    """Song et al. 2012, equation 5, by loops over the matrices with centring by hand."""

    def one(k, m):
        n = len(k)
        ones = np.ones(n)
        trace = np.trace(k @ m)
        both = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (trace + both - 2 / (n - 2) * ones @ k @ m @ ones) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return one(k, m) / np.sqrt(one(k, k) * one(m, m))


def test_cka_is_the_published_formula():
    x, y = (torch.randn(9, 5, generator=torch.Generator().manual_seed(n)).double() for n in (1, 2))
    meter = Cka()
    meter.add(x + 7, y)  # a shift of all features changes nothing
    assert meter.value == pytest.approx(naive_cka(x.numpy(), y.numpy()))
    same = Cka()
    same.add(x, -3 * x.flip(1))
    assert same.value == pytest.approx(1.0)
    flat = Cka()
    flat.add(x, torch.ones(9, 5).double())
    assert flat.value == 0.0


def test_cosine_is_the_mean_over_all_images():
    meter = Cosine()
    meter.add(torch.tensor([[1.0, 0]]), torch.tensor([[2.0, 0]]))
    meter.add(torch.tensor([[1.0, 0]] * 2), torch.tensor([[0.0, 1], [-1, 0]]))
    assert meter.value == pytest.approx(0.0)


def test_weight_std_by_hand():
    block = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, (1, 3)), nn.BatchNorm2d(1))
    block[0].weight.data[:] = 1.0
    block[1].weight.data[:] = torch.tensor([3.0, 5.0, 7.0])
    assert weight_std(block) == pytest.approx(np.std([1, 3, 5, 7]))
    matrix = nn.Linear(2, 1)
    matrix.weight.data[:] = torch.tensor([0.0, 4.0])
    assert weight_std(matrix) == pytest.approx(2.0)
    model = Toy(Add(conv(scale=2.0)), Add(conv(scale=1.0)), Add(conv(scale=3.0)))
    assert [one.unit for one in rank("weight_std", model, ["blocks.0", "blocks.1", "blocks.2"])] == [
        "blocks.1",
        "blocks.0",
        "blocks.2",
    ]


def test_a_ranking_that_needs_images_says_so():
    with pytest.raises(UsageError, match="give --data"):
        rank("cka", reader(swap(1.0)), ["blocks.0"])
    few = samples_of(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UsageError, match="at least 4 images, got 3"):
        rank("ablation", reader(swap(1.0)), ["blocks.0"], few)


# ------------------------------------------------------------------------------------------------------------- samples


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=7), most=st.integers(1, 200))
@settings(max_examples=80, deadline=None)
def test_a_stratified_choice(counts, most):
    labels = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(0)
    ids = rng.permutation(len(labels)).astype(np.uint64)
    rows = stratified(labels, ids, most)
    chosen = np.bincount(labels[rows], minlength=len(counts))
    assert len(rows) == min(most, len(labels)) == len(set(rows.tolist()))
    assert (np.diff(rows) > 0).all()
    assert (chosen <= counts).all()
    if most >= len(counts):
        assert (chosen >= 1).all()
    shuffled = rng.permutation(len(labels))
    again = shuffled[stratified(labels[shuffled], ids[shuffled], most)]
    assert sorted(again.tolist()) == rows.tolist()


def test_samples_are_what_the_network_is_evaluated_on(cache):  # noqa: F811
    card = replace(CARD, classes=("blue", "green", "red"), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    samples = load_samples(cache, card, "val")
    assert samples.levels.shape == (len(samples), 3, 32, 32)
    images, labels = next(samples.batches(5))
    assert images.dtype == torch.float32
    expected = (samples.levels[:5].double() / 255 - torch.tensor(card.mean)[:, None, None]) / torch.tensor(card.std)[
        :, None, None
    ]
    assert torch.allclose(images.double(), expected, atol=1e-6)
    assert torch.equal(labels, samples.labels[:5])
    assert sum(len(found) for _, found in samples.batches(5)) == len(samples)
    some = load_samples(cache, card, "val", most=6)
    assert torch.bincount(some.labels).tolist() == [2, 2, 2]
    assert some.fingerprint != samples.fingerprint
    with pytest.raises(UsageError, match="has the classes blue, green, red"):
        load_samples(cache, CARD, "val")


# ------------------------------------------------------------------------------------------------------------ choosing


def test_nested_blocks_count_once():
    stage = nn.Sequential(conv(), nn.ReLU(), conv(), Add(conv()))
    found = find_units(Toy(stage), 8, "any")
    outer, inner = "blocks", "blocks.0.0"
    names = list(found.units)
    assert inner in names
    outer = next(name for name in names if inner.startswith(f"{name}."))
    assert left_after(outer, names) == []
    assert macs_without(found, [inner, outer]) == macs_without(found, [outer])
    assert macs_without(found, [inner]) == found.macs - 4 * 4 * 64


@pytest.mark.parametrize("rerank", [True, False])
def test_greedy_ranks_anew(rerank):
    model = Toy(Add(conv()), Add(conv()), Add(conv()))
    found = find_units(model, 8)
    asked = []

    def order(network, units):
        gone = [path for path in found.units if isinstance(network.get_submodule(path), nn.Identity)]
        asked.append((gone, list(units)))
        turned = units if not gone else units[::-1]
        return rank("weight_std", network, []) + [
            type("R", (), {"unit": u, "value": 0.0, "tie": 0.0})() for u in turned
        ]

    choice = choose(model, found, Goal(count=2), order, rerank=rerank)
    assert [one.unit for one in choice.removed] == ["blocks.0", "blocks.2" if rerank else "blocks.1"]
    assert asked[0] == ([], ["blocks.0", "blocks.1", "blocks.2"])
    assert len(asked) == (3 if rerank else 1)


@pytest.mark.parametrize(
    ("goal", "error", "text"),
    [
        (Goal(count=6), UsageError, "--count 6: only 5 blocks can be removed"),
        (
            Goal(macs=10),
            UsageError,
            "a target of 10 MACs cannot be reached: without all 5 blocks that can go, 13,423,104",
        ),
        (Goal(macs=37_016_064), NoEffectError, "the model costs 37,016,064 MACs, not more than the target"),
        (Goal(units=("layer2.0",)), UsageError, "layer2.0 cannot be removed .makes 128x4x4 of 64x8x8"),
        (Goal(units=("layer9",)), UsageError, "layer9 cannot be removed .those that can: layer1.0, "),
    ],
)
def test_goals_that_cannot_be(goal, error, text):
    with pytest.raises(error, match=text):
        check_goal(goal, find_units(made("resnet18"), 32))


# ------------------------------------------------------------------------------------------------------------- the job


def test_the_seed_becomes_what_won(tmp_path):
    """4-8-4 units become 2-5-2: the competition's 1,688,940 MACs become 1,083,210."""
    model = stored(tmp_path / "seed.safetensors", "shufflenet_g3_x025_conv", size=80)
    going = [
        f"features.stage{stage}.unit{unit}" for stage, units in {1: "34", 2: "678", 3: "34"}.items() for unit in units
    ]
    report = layers(LayersConfig(model=model, out=tmp_path / "thin.safetensors", modules=",".join(going)))
    assert report["before"]["competition_macs"] == 1_688_940
    assert report["after"]["competition_macs"] == 1_083_210
    assert (report["before"]["macs"], report["after"]["macs"]) == (1_467_600, 937_830)
    assert (report["before"]["parameters"], report["after"]["parameters"]) == (67_062, 34_422)
    assert report["removed"] == going
    assert report["proof"]["error"] <= report["proof"]["limit"]
    small = create_model("shufflenet_g3_x025_2_5_2_conv", 9)
    small.load_state_dict(load_model(tmp_path / "thin.safetensors")[0].state_dict())


def test_a_share_is_met_with_the_fewest_of_the_ranked(tmp_path):
    model = stored(tmp_path / "m.safetensors", "mobilenetv3_small_050", size=64)
    out = tmp_path / "thin.safetensors"
    report = layers(LayersConfig(model=model, out=out, rank_by="weight_std", target_share=0.8))
    assert report["after"]["macs"] <= 0.8 * 2_287_424
    values = [row["value"] for row in report["ranking"]]
    assert values == sorted(values)
    assert report["removed"] == [row["unit"] for row in report["ranking"]][: len(report["removed"])]
    last = report["ranking"][len(report["removed"]) - 1]["macs"]
    assert report["after"]["macs"] + last > 0.8 * 2_287_424
    assert report["macro_f1"] is None
    assert read_card(out).edits == tuple(removed(unit) for unit in report["removed"])
    assert "removed" in table(report)


def test_on_data_pressed_twice_and_read_elsewhere(tmp_path, cache):  # noqa: F811
    card = replace(CARD, classes=("blue", "green", "red"))
    model = stored(tmp_path / "m.safetensors", "mobilenetv3_small_050", card)
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    first = layers(LayersConfig(model=model, out=once, data=cache, count=1))
    second = layers(LayersConfig(model=once, out=twice, data=cache, count=1, rank_by="cka", images=8))
    assert first["macro_f1"]["after"] == second["macro_f1"]["before"]
    samples = load_samples(cache, card, "val")
    assert first["macro_f1"]["before"] == quality(load_model(model)[0], samples).macro_f1
    assert second["macro_f1"]["after"] == quality(load_model(twice)[0], samples).macro_f1
    assert [edit["module"] for edit in read_card(twice).edits] == first["removed"] + second["removed"]
    assert [told["press"] for told in read_card(twice).provenance["presses"]] == ["layers", "layers"]
    images = torch.randn(2, 3, 32, 32)
    safetensors.torch.save_file({"images": images}, tmp_path / "images.safetensors")
    code = (
        "import sys, safetensors.torch as s, torch; from training.model.model_file import load_model\n"
        "from pathlib import Path\n"
        "model = load_model(Path(sys.argv[1]))[0]\n"
        "with torch.inference_mode(): s.save_file({'a': model(s.load_file(sys.argv[2])['images'])}, sys.argv[3])"
    )
    words = [sys.executable, "-c", code, twice, tmp_path / "images.safetensors", tmp_path / "answers.safetensors"]
    subprocess.run(list(map(str, words)), check=True)
    whole = load_model(model)[0]
    with torch.inference_mode(), bypassed(whole, first["removed"] + second["removed"]):
        expected = whole(images)
    found = safetensors.torch.load_file(tmp_path / "answers.safetensors")["a"]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_same_twice_is_the_same_file(tmp_path, cache):  # noqa: F811
    card = replace(CARD, classes=("blue", "green", "red"))
    model = stored(tmp_path / "m.safetensors", "mobilenetv3_small_050", card)
    outs = [tmp_path / "a" / "x.safetensors", tmp_path / "b" / "x.safetensors"]
    for out in outs:
        layers(LayersConfig(model=model, out=out, data=cache, count=1, rank_by="cosine"))
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_nothing_to_remove_says_why(tmp_path):
    model = stored(tmp_path / "m.safetensors", "vgg11_bn")
    with pytest.raises(NoEffectError, match=r"layers changes nothing in .*vgg11_bn.*makes 512x1x1 of 3x32x32"):
        layers(LayersConfig(model=model, out=tmp_path / "x.safetensors", count=1, rank_by="weight_std"))


def test_a_wrong_network_is_not_written(tmp_path, monkeypatch):
    model = stored(tmp_path / "m.safetensors", "mobilenetv3_small_050")
    monkeypatch.setattr("compress.blocks.removal.bypass", lambda _: None)
    with pytest.raises(ProofError, match="without the blocks == with the blocks bypassed does not hold"):
        layers(LayersConfig(model=model, out=tmp_path / "x.safetensors", modules="blocks.2.1"))
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give one of --count, --modules, --target_macs and --target_share"),
        ({"count": 1, "target_macs": 5}, "give one of"),
        ({"count": 0}, "--count must be 1 to"),
        ({"target_share": 1.5}, "--target_share must be"),
        ({"count": 1, "allow": -1.0}, "--allow must be 0 to 1"),
        ({"count": 1}, "--rank_by ablation looks at images; give --data"),
        ({"count": 1, "rank_by": "weight_std", "recover": "r.yaml"}, "--recover and --work belong together"),
        ({"count": 1, "rank_by": "weight_std", "recover": "r.yaml", "work": "w"}, "--recover looks at images"),
        ({"count": 1, "rank_by": "weight_std", "teacher": "t"}, "--teacher is for --recover"),
        ({"count": 1, "rank_by": "weight_std", "out": "x.pt"}, "must end in .safetensors"),
    ],
)
def test_what_makes_no_sense(tmp_path, options, text):
    paths = {"model": tmp_path / "m.safetensors", "out": tmp_path / "x.safetensors"}
    values = {k: tmp_path / v if k in ("recover", "work", "out") else v for k, v in options.items()}
    with pytest.raises(UsageError, match=text):
        LayersConfig(**paths | values)


def test_the_command(tmp_path):
    model = stored(tmp_path / "m.safetensors", "mobilenetv3_small_050")
    words = [sys.executable, "-m", "compress.layers", "--model", model, "--out", tmp_path / "x.safetensors"]
    done = subprocess.run(
        [*map(str, words), "--modules", "blocks.4.1,blocks.4.2", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["removed"] == ["blocks.4.1", "blocks.4.2"]
    assert done.stderr == ""
