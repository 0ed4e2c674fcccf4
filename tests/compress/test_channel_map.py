"""Channels followed through a network: by hand on small ones, and by cutting on all of the list."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.channel_map.channel_map import ChannelMap, Layer
from compress.channel_map.choose import ChoiceOptions, Chooser
from compress.channel_map.cutting import edit_that_keeps, masked_twin
from compress.channel_map.importance import importance
from compress.channel_map.reshapes import splits
from compress.channel_map.trace import map_channels
from compress.channel_map.unions import Unions
from compress.press.contract import edited, largest_difference
from pipelines.errors import UsageError
from tests.compress.nets import MODELS, silenced, with_random_statistics
from training.measure.macs import count_macs
from training.model.create import create_model
from training.model.edits.reorder import Reorder


class Shuffled(nn.Module):
    """A grouped convolution, a shuffle, a grouped convolution; written out or as a module."""

    def __init__(self, groups=3, width=5, inline=False):
        super().__init__()
        self.groups, self.inline = groups, inline
        self.stem = nn.Conv2d(3, groups * 2, 3)
        self.first = nn.Conv2d(groups * 2, groups * width, 1, groups=groups)
        self.shuffle = nn.Identity() if inline else nn.ChannelShuffle(groups)
        self.depthwise = nn.Conv2d(groups * width, groups * width, 3, groups=groups * width)
        self.second = nn.Conv2d(groups * width, groups * 4, 1, groups=groups)
        self.head = nn.Linear(groups * 4, 4)

    def forward(self, x):
        x = self.shuffle(self.first(self.stem(x)))
        if self.inline:
            n, c, h, w = x.shape
            x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.second(self.depthwise(x)).mean((2, 3)))


class Branched(nn.Module):
    """A shortcut, a concatenation, a gate, a learned scale, a slope for each channel, flattened places."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.slope = nn.PReLU(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(8, 1, 1))
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.excite = nn.Conv2d(2, 8, 1)
        self.other = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x):
        x = self.slope(self.norm(self.stem(x)))
        y = self.inner(x) * self.scale
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = x + y
        both = torch.cat([x, self.other(x)], 1)
        return self.head(nn.functional.adaptive_avg_pool2d(both, 2).flatten(1))


class Halved(nn.Module):
    """Half of the channels go by."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.right = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, 1)
        return self.head(torch.cat([left, self.right(right)], 1).mean((2, 3)))


def cut(model, size, ratio, *, name="magnitude", **options):
    """(the map, what is kept, the pressed network)."""
    channels = map_channels(model, size)
    kept = Chooser(channels, importance(name, model, channels, seed=1), ChoiceOptions(**options)).keep(ratio)
    return channels, kept, edited(model, (edit_that_keeps(channels, kept, model),), "test")


def hits(module, numbers):
    """Where channels are that were numbered by hand."""
    return module(torch.tensor(numbers, dtype=torch.float32).reshape(1, -1, 1, 1)).ravel().tolist()


class TestMap:
    def test_a_shuffle_is_followed(self):
        model = Shuffled(groups=2, width=3)
        channels = map_channels(model, 16)
        made = channels.layers["first"].outputs
        # Two rows of three, read by columns: 0 3 1 4 2 5.
        assert channels.layers["depthwise"].inputs.tolist() == made[[0, 3, 1, 4, 2, 5]].tolist()
        assert channels.layers["second"].inputs.tolist() == made[[0, 3, 1, 4, 2, 5]].tolist()
        assert channels.shuffles["shuffle"].order.tolist() == [0, 3, 1, 4, 2, 5]

    def test_rows_of_a_shuffle_that_is_written_out_stand_together(self):
        channels = map_channels(Shuffled(groups=2, width=3, inline=True), 16)
        made = channels.layers["first"].outputs
        assert made[:3].tolist() == made[3:].tolist()
        assert not channels.shuffles

    def test_what_meets_is_one(self):
        channels = map_channels(Branched(), 8)
        trunk = channels.layers["stem"].outputs.tolist()
        assert len(set(trunk)) == 8
        for path in ("norm", "slope", "inner", "excite"):
            assert channels.layers[path].outputs.tolist() == trunk
        assert channels.parameters["scale"][0] == 0
        assert channels.parameters["scale"][1].tolist() == trunk
        other = channels.layers["other"].outputs.tolist()
        # Flattened places: four of each channel, one channel after the other.
        assert channels.layers["head"].inputs.tolist() == [channel for channel in trunk + other for _ in range(4)]
        assert sorted(len(family) for family in channels.families) == [2, 4, 8]

    def test_image_and_answers_stay(self):
        channels = map_channels(Branched(), 8)
        assert set(channels.layers["stem"].inputs.tolist()) <= set(channels.fixed)
        assert set(channels.layers["head"].outputs.tolist()) <= set(channels.fixed)

    def test_a_shuffle_within_a_module_that_only_holds_it(self):
        model = Shuffled(groups=2, width=3)
        model.shuffle = nn.Sequential(nn.ChannelShuffle(2))
        assert list(map_channels(model, 16).shuffles) == ["shuffle"]

    def test_what_does_more_than_reorder_is_no_shuffle(self):
        model = Shuffled(groups=2, width=3)
        model.shuffle = nn.Sequential(nn.ChannelShuffle(2), nn.ReLU())
        assert list(map_channels(model, 16).shuffles) == ["shuffle.0"]

    def test_one_shuffle_for_several_widths(self):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.wide, self.shuffle = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 1), nn.ChannelShuffle(2)
                self.head = nn.Linear(12, 2)

            def forward(self, x):
                return self.head(self.shuffle(self.wide(self.shuffle(self.stem(x)))).mean((2, 3)))

        torch.manual_seed(0)
        model = Both()
        channels, kept, pressed = cut(model, 4, 0.5)
        assert not channels.shuffles  # what is below each other goes together then
        assert largest_difference(pressed, masked_twin(channels, kept, model), 4) < 1e-12

    def test_halves_stay_equal(self):
        channels = map_channels(Halved(), 8)
        assert [len(part) for part in channels.balances[0]] == [4, 4]

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(512, 2)), "group"),
            (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Softmax(1), nn.Flatten(), nn.Linear(512, 2)), "softmax"),
            (
                lambda: nn.Sequential(
                    nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1)), nn.Flatten(), nn.Linear(512, 2)
                ),
                "computed",
            ),
        ],
    )
    def test_what_there_is_no_rule_for_stays_and_says_why(self, make, reason):
        channels = map_channels(make(), 8)
        assert not channels.families
        assert any(reason in text for text in channels.fixed.values())

    def test_the_map_counts_as_the_meter_does(self):
        for name in ("shufflenet_g3_wd4", "mobilenetv3_small_050", "resnet18", "regnetx_002"):
            model = create_model(name, 9)
            channels = map_channels(model, 64)
            assert channels.macs(np.concatenate(channels.families)) == count_macs(model, 64).macs

    def test_a_layer_that_is_used_twice(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.again, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

            def forward(self, x):
                return self.head(self.again(self.again(self.stem(x)).relu()).mean((2, 3)))

        model = Twice()
        channels, kept, pressed = cut(model, 4, 0.5)
        assert channels.layers["again"].inputs.tolist() == channels.layers["again"].outputs.tolist()
        assert channels.macs(np.concatenate(channels.families)) == count_macs(model, 4).macs
        assert largest_difference(pressed, masked_twin(channels, kept, model), 4) < 1e-12

    def test_the_network_is_left_as_it_was(self):
        model = create_model("shufflenet_g3_wd4", 6).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        map_channels(model, 64)
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@given(st.data())
def test_splits_finds_the_dimensions_that_are_cut(data):
    """Against trying it: a dimension is cut if numbers along it come to vary along more than one."""
    before = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=3)))
    parts = [data.draw(st.sampled_from([(n,), (2, n), (n, 1, 3)])) for n in before]
    whole = tuple(int(np.prod(part)) for part in parts)
    after = tuple(length for part in parts for length in part)
    found = {axis for axis, rows in splits(whole, after) if rows}
    expected = set()
    for axis, length in enumerate(whole):
        numbers = np.zeros(whole, int) + np.arange(length).reshape([-1 if n == axis else 1 for n in range(len(whole))])
        there = numbers.reshape(after)
        varies = [n for n, size in enumerate(after) if size > 1 and (np.diff(there, axis=n) != 0).any()]
        expected |= {axis} if len(varies) > 1 else set()
    assert found == expected


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ((1, 6, 4, 4), (1, 2, 3, 4, 4), [(1, 2)]),
        ((1, 6, 4, 4), (1, 96), []),
        ((1, 2, 3, 4, 4), (1, 6, 4, 4), []),
        ((1, 96), (1, 6, 4, 4), [(1, 6)]),
        ((1, 6, 1, 1), (1, 6), []),
        ((6,), (1, 1, 6), []),
        ((2, 6), (3, 4), [(0, 0), (1, 0)]),
    ],
)
def test_splits_by_hand(before, after, found):
    assert splits(before, after) == found


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_unions_are_the_connected_parts(pairs):
    unions = Unions()
    unions.new(31)
    expected = {number: {number} for number in range(31)}
    for one, other in pairs:
        unions.join(np.array([one]), np.array([other]))
        whole = expected[one] | expected[other]
        for number in whole:
            expected[number] = whole
    assert unions.roots(np.arange(31)).tolist() == [min(expected[number]) for number in range(31)]


class TestCut:
    """A pruned network answers as the whole one does in which what goes is not listened to."""

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize(
        ("measure", "ratio", "options"),
        [("magnitude", 0.5, {}), ("lamp", 0.6, {"scope": "global", "round_to": 4})],
        ids=["layer", "global"],
    )
    def test_pruned_equals_masked(self, name, measure, ratio, options):
        model = with_random_statistics(create_model(name, 6))
        channels, kept, pressed = cut(model, 64, ratio, name=measure, **options)
        assert largest_difference(pressed, masked_twin(channels, kept, model), 64) < 1e-5
        assert largest_difference(pressed, silenced(model, channels, kept), 64) < 1e-5
        assert count_macs(pressed, 64).macs < count_macs(model, 64).macs
        removed = count_macs(model, 64).macs - count_macs(pressed, 64).macs
        assert removed == channels.macs(np.concatenate(channels.families)) - channels.macs(kept)

    @pytest.mark.parametrize("inline", [False, True])
    @given(groups=st.integers(2, 4), width=st.integers(2, 9), ratio=st.floats(0, 0.99), seed=st.integers(0, 99))
    @settings(max_examples=25, deadline=None)
    def test_any_shuffle(self, inline, groups, width, ratio, seed):
        torch.manual_seed(seed)
        model = Shuffled(groups, groups * width, inline)
        channels = map_channels(model, 8)
        scores = importance("random", model, channels, seed=seed)
        kept = Chooser(channels, scores, ChoiceOptions()).keep(ratio)
        pressed = edited(model, (edit_that_keeps(channels, kept, model),), "test")
        assert largest_difference(pressed, masked_twin(channels, kept, model), 8) < 1e-12

    @pytest.mark.parametrize("make", [Branched, Halved])
    @pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
    def test_small_networks(self, make, ratio):
        torch.manual_seed(0)
        model = with_random_statistics(make())
        channels, kept, pressed = cut(model, 8, ratio, name="random")
        assert largest_difference(pressed, masked_twin(channels, kept, model), 8) < 1e-12
        assert count_macs(pressed, 8).macs < count_macs(model, 8).macs

    def test_the_proof_sees_a_wrong_shuffle(self):
        """What tools do that do not follow shuffles: consumers lose other channels than producers."""
        torch.manual_seed(0)
        model = Shuffled(groups=3, width=6)
        channels, kept, _ = cut(model, 8, 0.5, name="random")
        edit = edit_that_keeps(channels, kept, model)
        right = edited(model, (edit,), "test")
        assert isinstance(right.shuffle, Reorder)
        wrong = edited(model, (edit,), "test")
        wrong.shuffle = nn.ChannelShuffle(3)
        twin = masked_twin(channels, kept, model)
        assert largest_difference(right, twin, 8) < 1e-12
        assert largest_difference(wrong, twin, 8) > 1e-3

    def test_a_pressed_network_is_pressed_again(self):
        model = with_random_statistics(create_model("shufflenet_g3_wd4", 6))
        _, _, once = cut(model, 64, 0.3)
        channels, kept, twice = cut(once, 64, 0.3)
        assert any(isinstance(module, Reorder) for module in once.modules())
        assert largest_difference(twice, masked_twin(channels, kept, once), 64) < 1e-5
        assert count_macs(twice, 64).macs < count_macs(once, 64).macs < count_macs(model, 64).macs


def line(*families, balances=(), fixed=()):
    """A map of layers side by side, each with a family."""
    layers = {
        str(number): Layer(kind="convolution", inputs=np.array([-1]), outputs=np.array(family), work=1)
        for number, family in enumerate(families)
    }
    balances = [tuple(np.array(part) for part in parts) for parts in balances]
    return ChannelMap(
        layers=layers, parameters={}, shuffles={}, balances=balances, fixed={-1: "the image"} | dict.fromkeys(fixed, "")
    )


class TestChoice:
    def test_the_same_share_everywhere(self):
        channels = line([0, 1, 2, 3], [4, 5])
        scores = {0: 4.0, 1: 1.0, 2: 3.0, 3: 2.0, 4: 0.1, 5: 0.2}
        assert Chooser(channels, scores, ChoiceOptions()).keep(0.5).tolist() == [0, 2, 5]

    def test_all_ranked_together_but_no_layer_emptied(self):
        channels = line([0, 1, 2, 3], [4, 5])
        scores = {0: 4.0, 1: 1.0, 2: 3.0, 3: 2.0, 4: 0.1, 5: 0.2}
        assert Chooser(channels, scores, ChoiceOptions(scope="global")).keep(0.5).tolist() == [0, 2, 3, 5]

    def test_multiples(self):
        channels = line(list(range(20)))
        scores = {number: float(number) for number in range(20)}
        for ratio, left in ((0.0, 20), (0.3, 8), (0.5, 8), (0.9, 8)):
            kept = Chooser(channels, scores, ChoiceOptions(round_to=8)).keep(ratio)
            assert kept.tolist() == list(range(20 - left, 20))

    def test_groups_stay_equal_though_importance_says_otherwise(self):
        channels = line(list(range(6)), balances=[([0, 1, 2], [3, 4, 5])])
        scores = {0: 9.0, 1: 8.0, 2: 7.0, 3: 1.0, 4: 2.0, 5: 3.0}
        assert Chooser(channels, scores, ChoiceOptions()).keep(0.66).tolist() == [0, 5]

    def test_groups_that_cross(self):
        """Rows and columns: the program finds the best choice, which no group alone gives."""
        rows, columns = ([0, 1, 2], [3, 4, 5], [6, 7, 8]), ([0, 3, 6], [1, 4, 7], [2, 5, 8])
        scores = dict(enumerate([10.0, 9.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 2.0]))
        kept = Chooser(line(list(range(9)), balances=[rows, columns]), scores, ChoiceOptions()).keep(0.66)
        assert kept.tolist() == [1, 3, 8]  # 9 + 9 + 2, more than 10 + 1 + 2 of the diagonal

    @given(st.data())
    @settings(max_examples=40, deadline=None)
    def test_invariants(self, data):
        groups, per = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
        members = list(range(groups * per))
        parts = tuple(members[start * per : (start + 1) * per] for start in range(groups))
        other = data.draw(st.permutations(members))
        crossed = tuple(other[start * per : (start + 1) * per] for start in range(groups))
        scores = dict(enumerate(data.draw(st.lists(st.floats(0, 9), min_size=len(members), max_size=len(members)))))
        ratio, least = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
        channels = line(members, balances=[parts, crossed] if groups > 1 else [])
        chooser = Chooser(channels, scores, ChoiceOptions(least=least))
        kept = set(chooser.keep(ratio).tolist())
        assert len(kept) >= max(1, int(np.ceil(least * len(members))))
        if groups > 1:
            for division in (parts, crossed):
                assert len({len(kept & set(part)) for part in division}) == 1
        assert chooser.keep(0.0).tolist() == members
        again = Chooser(channels, scores, ChoiceOptions(least=least)).keep(ratio)
        assert set(again.tolist()) == kept

    def test_macs_are_met_as_closely_as_can_be(self):
        model = with_random_statistics(create_model("mobilenetv3_small_050", 6))
        channels = map_channels(model, 64)
        chooser = Chooser(channels, importance("magnitude", model, channels), ChoiceOptions())
        for target in (400_000, 1_000_000, 1_600_000):
            found = channels.macs(chooser.keep_for_macs(target))
            assert 0.97 * target < found <= target
        assert chooser.keep_for_macs(1000) is None


class TestImportance:
    def make(self):
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1.0, 2, 2], [0, 3, 4]]).reshape(2, 3, 1, 1))
            model[0].bias.copy_(torch.tensor([2.0, 0]))
            model[1].weight.copy_(torch.tensor([1.0, -3]))
            model[1].bias.copy_(torch.tensor([0.0, 1]))
            model[3].weight.copy_(torch.tensor([[1.0, 1], [1, 0]]))
        return model, map_channels(model, 1)

    def both(self, name, **more):
        model, channels = self.make()
        found = importance(name, model, channels, **more)
        return [found[channel] for channel in channels.layers["0"].outputs.tolist()]

    def test_magnitude(self):
        # 1 + 4 + 4 + 2² + 1² + 1² + 1² = 16 and 9 + 16 + 3² + 1² + 1² = 36: roots 4 and 6, mean 5.
        assert self.both("magnitude") == pytest.approx([0.8, 1.2])

    def test_bn_scale(self):
        assert self.both("bn_scale") == pytest.approx([0.5, 1.5])

    def test_lamp(self):
        assert self.both("lamp") == pytest.approx([16 / 52, 1.0])

    def test_taylor(self):
        """Against the loss itself: a little less of a channel, for each batch."""
        model, channels = self.make()
        model = model.double().eval()
        batches = [
            (torch.tensor([[1.0, 2, 3], [0, 1, -1]]).reshape(2, 3, 1, 1).double(), torch.tensor([0, 1])),
            (torch.tensor([[2.0, -1, 1]]).reshape(1, 3, 1, 1).double(), torch.tensor([1])),
        ]
        gradients, expected = [], np.zeros(2)
        for images, labels in batches:
            loss = nn.functional.cross_entropy(model(images), labels)
            gradients.append(
                dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, model.parameters()), strict=True))
            )
            for channel in range(2):
                less = [
                    nn.functional.cross_entropy(self.without(model, images, channel, e), labels) for e in (1e-5, -1e-5)
                ]
                expected[channel] += ((less[0] - less[1]).item() / 2e-5) ** 2 / len(batches)
        found = importance("taylor", model, channels, gradients=gradients)
        outputs = channels.layers["0"].outputs.tolist()
        assert [found[channel] for channel in outputs] == pytest.approx(expected.tolist(), rel=1e-6)
        with pytest.raises(ValueError, match="gradients"):
            importance("taylor", model, channels)

    @staticmethod
    def without(model, images, channel, share):
        features = model[2](model[1](model[0](images))).clone()
        features[:, channel] *= 1 - share
        return model[3](features)

    def test_weights_that_are_no_numbers(self):
        model, channels = self.make()
        with torch.no_grad():
            model[0].weight[0] = torch.nan
        with pytest.raises(UsageError, match="no finite numbers"):
            importance("magnitude", model, channels)

    def test_random_is_drawn_from_the_seed(self):
        assert self.both("random", seed=3) == self.both("random", seed=3) != self.both("random", seed=4)
