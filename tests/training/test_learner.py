"""A network with parts that only training has: what it gives, what it leaves alone, and that nothing of it stays."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from augment_cache.format.source import CacheSource
from pipelines.engines.base import RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.errors import UsageError
from pipelines.loader import Loader, LoaderOptions
from pipelines.plan import View
from training.engine.learner import EMBEDDING, Learner, Part, as_vectors, classifiers_of, deployed, last_map, tap_shapes
from training.engine.objective import LOGITS
from training.engine.optimization import OptimizerConfig, freeze, make_optimizer
from training.model.create import create_model
from training.model.summed import SummedModel


class Small(nn.Module):
    """Two convolutions and a classifier: everything it does can be done by hand."""

    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.classifier = nn.Linear(5, 3)

    def forward(self, images):
        return self.classifier(self.second(self.first(images).relu()).mean((2, 3)))


class Convolutional(nn.Module):
    """The classifier is a convolution over a map, as in SqueezeNet."""

    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.features = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.output = nn.Conv2d(5, 3, 1)

    def forward(self, images):
        return self.output(self.features(images)).mean((2, 3))


class Normalised(nn.Module):
    """The classifier is a convolution with batch normalisation behind it: two layers, but one that takes features."""

    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.features = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.output = nn.Sequential(nn.Conv2d(5, 3, 1, bias=False), nn.BatchNorm2d(3))

    def forward(self, images):
        return self.output(self.features(images)).mean((2, 3))


class Pair(nn.Module):
    def forward(self, features):
        return features, features


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class TestOutputs:
    @pytest.mark.parametrize("name", ["test_efficientnet", "shufflenet_g3_x025_1_1_1_conv"])
    def test_in_evaluation_it_is_the_network_bit_for_bit(self, name):
        network = create_model(name, 3).eval()
        images = torch.randn(2, 3, 32, 32)
        expected = network(images)
        path = "blocks.1" if name == "test_efficientnet" else "features.stage1"
        parts = {"tapped": Part(path, nn.Flatten()), "arranged": Part(EMBEDDING, nn.Linear(network_width(network), 2))}
        learner = Learner(network, parts, lone_classifier=True).eval()
        said = learner(images)
        assert isinstance(said, torch.Tensor)
        assert torch.equal(said, expected)

    def test_in_training_it_gives_logits_and_what_the_parts_make(self, images):
        network = Small()
        head = nn.Linear(5, 2)
        parts = {
            "plain": Part("first", nn.Identity()),
            "averaged": Part("first", nn.AdaptiveAvgPool2d(1)),
            "headed": Part(EMBEDDING, head),
            "late": Part("second", nn.Flatten()),
        }
        said = Learner(network, parts).train()(images)
        assert list(said) == [LOGITS, *parts]
        first = network.first(images)
        second = network.second(first.relu())
        expected = {
            LOGITS: network(images),
            "plain": first,
            "averaged": first.mean((2, 3), keepdim=True),
            "headed": head(second.mean((2, 3))),
            "late": second.flatten(1),
        }
        for name, values in expected.items():
            torch.testing.assert_close(said[name], values, msg=name)

    def test_without_parts_it_gives_logits_under_their_name(self, images):
        network = Small()
        said = Learner(network, {}).train()(images)
        assert list(said) == [LOGITS]
        assert torch.equal(said[LOGITS], network(images))

    def test_every_pass_has_its_own_taps(self, images):
        """Two passes before the first backward, as with an online teacher that is the student itself."""
        learner = Learner(Small(), {"plain": Part("first", nn.Identity())}).train()
        one, two = learner(images)["plain"], learner(images * 2)["plain"]
        assert torch.equal(one, learner.network.first(images))
        assert torch.equal(two, learner.network.first(images * 2))

    def test_a_layer_that_works_in_place_changes_no_tap(self, images):
        """Most activations do: what came out of the layer before them is gone when the pass is over."""
        first = nn.Conv2d(3, 4, 3)
        network = nn.Sequential(first, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 3))
        said = Learner(network, {"plain": Part("0", nn.Identity())}).train()(images)
        assert said["plain"].min() < 0
        assert torch.equal(said["plain"], first(images))
        said["plain"].sum().backward()
        assert first.bias.grad.tolist() == [144.0] * 4

    def test_the_embedding_is_what_goes_into_the_classifier(self):
        network = create_model("test_efficientnet", 3)
        images = torch.randn(4, 3, 64, 64)
        learner = Learner(network, {"arranged": Part(EMBEDDING, nn.Identity())}).train()
        said = learner(images)
        torch.testing.assert_close(network.classifier(said["arranged"]), said[LOGITS])

    @pytest.mark.parametrize("kind", [Convolutional, Normalised])
    def test_of_a_convolution_the_embedding_is_averaged(self, images, kind):
        network = kind()
        said = Learner(network, {"arranged": Part(EMBEDDING, nn.Identity())}).train()(images)
        assert said["arranged"].shape == (4, 5)
        torch.testing.assert_close(said["arranged"], network.features(images).mean((2, 3)))

    def test_vectors_stay_and_maps_are_averaged(self):
        maps = torch.arange(24.0).view(2, 3, 2, 2)
        assert as_vectors(maps).tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]
        assert torch.equal(as_vectors(maps.flatten(1)), maps.flatten(1))
        assert torch.equal(as_vectors(maps.flatten(2)), maps.flatten(1))


def network_width(network):
    return network.get_submodule(classifiers_of(network)[0]).weight.shape[1]


class TestMistakes:
    @pytest.mark.parametrize("path", ["blocks.9", "third", "", "first.weight"])
    def test_a_path_that_is_not_there_is_named(self, path):
        with pytest.raises(UsageError, match=f"no module '{path}'; it is made of first, second, classifier"):
            Learner(Small(), {"part": Part(path, nn.Identity())})

    def test_a_module_that_puts_out_several_tensors_is_named(self, images):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), Pair())
        learner = Learner(network, {"part": Part("1", nn.Identity())}).train()
        with pytest.raises(UsageError, match=r"1 \(Pair\) puts out tuple, not one tensor"):
            learner(images)

    @pytest.mark.parametrize(
        "options", [{"parts": {"part": Part(EMBEDDING, nn.Identity())}}, {"lone_classifier": True}]
    )
    def test_a_network_without_a_classifier_is_refused(self, options):
        with pytest.raises(UsageError, match="the classifier of Sequential cannot be found; name another network"):
            Learner(nn.Sequential(nn.Conv2d(3, 4, 3)), **{"parts": {}, **options})

    def test_no_one_vector_goes_into_several_classifiers(self):
        network = SummedModel(Small(), Small(), (0.5,) * 3, (0.5,) * 3)
        with pytest.raises(UsageError, match="SummedModel has several classifiers"):
            Learner(network, {"part": Part(EMBEDDING, nn.Identity())})


def gradients(network):
    """Names of the parameters that have one."""
    return {name for name, parameter in network.named_parameters() if parameter.grad is not None}


class TestLoneClassifier:
    OWN: set[str] = {"classifier.weight", "classifier.bias"}  # noqa: RUF012

    def test_learns_without_moving_the_layers_before_it(self, images):
        network = Small()
        learner = Learner(network, {"arranged": Part(EMBEDDING, nn.Identity())}, lone_classifier=True).train()
        said = learner(images)
        said[LOGITS].logsumexp(1).sum().backward()
        assert gradients(network) == self.OWN
        assert all(network.get_parameter(name).grad.abs().sum() > 0 for name in self.OWN)

    def test_all_classifiers_do_where_there_are_several(self, images):
        network = SummedModel(Small(), Small(), (0.5,) * 3, (0.5,) * 3)
        Learner(network, {}, lone_classifier=True).train()(images)[LOGITS].logsumexp(1).sum().backward()
        assert gradients(network) == {f"{part}.{name}" for part in ("student", "assistant") for name in self.OWN}

    def test_a_part_on_the_embedding_still_moves_them(self, images):
        network = Small()
        learner = Learner(network, {"arranged": Part(EMBEDDING, nn.Identity())}, lone_classifier=True).train()
        learner(images)["arranged"].pow(2).sum().backward()
        assert gradients(network) == {name for name, _ in network.named_parameters()} - self.OWN
        assert network.first.weight.grad.abs().sum() > 0

    def test_otherwise_the_logits_move_all_layers(self, images):
        network = Small()
        Learner(network, {}).train()(images)[LOGITS].logsumexp(1).sum().backward()
        assert gradients(network) == {name for name, _ in network.named_parameters()}

    def test_changes_no_logit(self, images):
        network = Small()
        expected = network(images)
        assert torch.equal(Learner(network, {}, lone_classifier=True).train()(images)[LOGITS], expected)


class TestCopies:
    """What the average of the weights is: a deep copy, hooks and all."""

    @pytest.fixture
    def learner(self):
        parts = {"plain": Part("first", nn.Identity()), "arranged": Part(EMBEDDING, nn.Linear(5, 2))}
        return Learner(Small(), parts, lone_classifier=True).train()

    def test_a_copy_looks_at_itself(self, learner, images):
        twin = ModelEmaV3(learner, decay=0.9).module.train()
        with torch.no_grad():
            twin.network.first.weight.mul_(3)
            twin.parts["arranged"].bias.add_(1)
        for one, other in ((learner, twin), (twin, learner)):
            said = one(images)
            embedding = one.network.second(one.network.first(images).relu()).mean((2, 3))
            torch.testing.assert_close(said["plain"], one.network.first(images))
            torch.testing.assert_close(said["arranged"], one.parts["arranged"](embedding))
            assert not torch.allclose(said["plain"], other.network.first(images))

    def test_a_copy_keeps_its_classifier_alone(self, learner, images):
        twin = copy.deepcopy(learner)
        twin(images)[LOGITS].logsumexp(1).sum().backward()
        assert gradients(twin.network) == TestLoneClassifier.OWN
        assert gradients(learner) == set()

    def test_one_can_be_made_between_forward_and_backward(self, learner, images):
        """Tensors with a history cannot be copied: a tap that is kept would stop it."""
        said = learner(images)
        twin = copy.deepcopy(learner)
        assert torch.equal(twin(images)["plain"], said["plain"])

    def test_the_average_takes_in_parts_and_network(self, learner, images):
        ema = ModelEmaV3(learner, decay=0.5)
        before = copy.deepcopy(learner.state_dict())
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(1)
        ema.update(learner, step=10)
        for name, value in ema.module.state_dict().items():
            torch.testing.assert_close(value, before[name] + 0.5, msg=name)
        assert isinstance(ema.module(images), torch.Tensor)


class TestDeployed:
    def test_has_the_keys_of_the_network(self):
        network = create_model("test_efficientnet", 3)
        parts = {"head": Part("blocks.1", nn.Conv2d(24, 2, 1)), "arranged": Part(EMBEDDING, nn.Linear(256, 2))}
        learner = Learner(network, parts, lone_classifier=True)
        assert len(learner.state_dict()) == len(network.state_dict()) + 4
        kept = deployed(learner)
        assert kept is network
        assert kept.state_dict().keys() == create_model("test_efficientnet", 3).state_dict().keys()

    def test_of_a_plain_network_is_itself(self):
        network = Small()
        assert deployed(network) is network


def tensors():
    """How many there are, but for parameters."""
    gc.collect()
    return sum(type(found) is torch.Tensor for found in gc.get_objects())


class TestMemory:
    """A tap that is kept holds the activations of a whole batch, and in training the graph behind them."""

    @pytest.mark.parametrize("training", [True, False])
    def test_nothing_is_alive_after_a_pass(self, images, training):
        network = Small()
        parts = {"plain": Part("first", nn.AdaptiveAvgPool2d(1)), "arranged": Part(EMBEDDING, nn.Identity())}
        learner = Learner(network, parts).train(training)
        seen = []
        network.first.register_forward_hook(lambda _module, _inputs, output: seen.append(weakref.ref(output)))
        network.classifier.register_forward_pre_hook(lambda _module, inputs: seen.append(weakref.ref(inputs[0])))
        before = tensors()
        with torch.set_grad_enabled(training):
            said = learner(images)
        assert tensors() > before
        if training:
            sum(values.sum() for values in said.values()).backward()
            learner.zero_grad(set_to_none=True)
        del said
        assert tensors() == before
        assert [reference() for reference in seen] == [None, None]


class TestShapes:
    def test_of_a_network_of_timm(self):
        network = create_model("test_efficientnet", 9)
        shapes = tap_shapes(network, 64)
        known = {
            "conv_stem": (24, 32, 32),
            "blocks.0": (16, 32, 32),
            "blocks.1": (24, 16, 16),
            "blocks.4": (64, 2, 2),
            "blocks": (64, 2, 2),
            "conv_head": (256, 2, 2),
            "bn2": (256, 2, 2),
            "global_pool": (256,),
            EMBEDDING: (256,),
            "classifier": (9,),
        }
        assert {path: shapes[path] for path in known} == known
        assert [path for path in shapes if path in known] == list(known), "in the order in which they finish"
        assert last_map(shapes) == "bn2"

    def test_of_a_network_of_pytorchcv(self):
        shapes = tap_shapes(create_model("shufflenet_g3_wd4", 9), 80)
        known = {
            "features.init_block": (6, 20, 20),
            "features.stage1": (60, 10, 10),
            "features.stage2": (120, 5, 5),
            "features.stage3": (240, 3, 3),
            "features.final_pool": (240, 1, 1),
            EMBEDDING: (240,),
            "output": (9,),
        }
        assert {path: shapes[path] for path in known} == known
        assert last_map(shapes) == "features.stage3"

    def test_are_the_shapes_of_what_the_taps_see(self):
        network = create_model("test_efficientnet", 3)
        shapes = tap_shapes(network, 32)
        paths = {f"tap{number}": path for number, path in enumerate(shapes)}
        learner = Learner(network, {name: Part(path, nn.Identity()) for name, path in paths.items()}).train()
        said = learner(torch.randn(2, 3, 32, 32))
        assert {paths[name]: tuple(values.shape[1:]) for name, values in said.items() if name != LOGITS} == shapes

    @pytest.mark.parametrize("training", [True, False])
    def test_leave_the_network_as_it_was(self, training):
        network = create_model("test_efficientnet", 3).train(training)
        before = copy.deepcopy(network.state_dict())
        tap_shapes(network, 32)
        assert {module.training for module in network.modules()} == {training}
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())

    def test_leave_a_network_as_it_was_that_cannot_take_the_size(self):
        network = nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten(), nn.Linear(4, 2)).train()
        with pytest.raises(RuntimeError):
            tap_shapes(network, 16)
        assert network.training
        assert not any(module._forward_hooks for module in network.modules())

    def test_a_module_that_runs_twice_counts_where_it_ran_last(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.halve, self.mix = nn.MaxPool2d(2), nn.Conv2d(3, 3, 1)

            def forward(self, images):
                return self.halve(self.mix(self.halve(images)))

        assert list(tap_shapes(Twice(), 16).items()) == [("mix", (3, 8, 8)), ("halve", (3, 4, 4))]

    def test_without_one_tensor_or_a_classifier_there_is_no_shape(self):
        class Doubled(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.pair = nn.Conv2d(3, 4, 3), Pair()

            def forward(self, images):
                return self.pair(self.layer(images))[0]

        assert tap_shapes(Doubled(), 8) == {"layer": (4, 6, 6)}

    def test_without_a_map_there_is_no_last_one(self):
        shapes = {"pooled": (5, 1, 1), "tokens": (16, 5), EMBEDDING: (5,)}
        with pytest.raises(UsageError, match="name layers, or take larger images"):
            last_map(shapes)
        assert last_map({"row": (5, 1, 2), **shapes}) == "row"


class TestOptimizer:
    @pytest.fixture
    def parts(self):
        return nn.ModuleDict({"head": nn.Linear(5, 2), "other": nn.Conv2d(4, 2, 1)})

    @pytest.mark.parametrize("layer_decay", [None, 0.5])
    def test_moves_network_and_parts(self, parts, layer_decay):
        network = Small()
        config = OptimizerConfig(weight_decay=0.3, layer_decay=layer_decay)
        optimizer = make_optimizer(network, config, extra=parts)
        found = [(id(value), group) for group in optimizer.param_groups for value in group["params"]]
        assert len({key for key, _ in found}) == len(found)
        groups = dict(found)
        assert groups.keys() == {id(value) for module in (network, parts) for value in module.parameters()}
        for module in (network, parts):
            for value in module.parameters():
                assert groups[id(value)]["weight_decay"] == (0.3 if value.ndim > 1 else 0.0)

    def test_gives_parts_the_rate_of_the_last_layer(self, parts):
        network = Small()
        optimizer = make_optimizer(network, OptimizerConfig(layer_decay=0.5), extra=parts)
        scales = {id(value): group["lr_scale"] for group in optimizer.param_groups for value in group["params"]}
        assert [scales[id(value)] for value in parts.parameters()] == [1.0] * 4
        assert scales[id(network.first.weight)] == 0.25
        assert scales[id(network.classifier.weight)] == 1.0

    def test_without_layer_decay_there_are_no_scales(self, parts):
        optimizer = make_optimizer(Small(), OptimizerConfig(), extra=parts)
        assert not any("lr_scale" in group for group in optimizer.param_groups)

    def test_parts_without_weights_change_nothing(self):
        network = Small()
        plain, same = (
            make_optimizer(network, OptimizerConfig(), extra=extra)
            for extra in (None, nn.ModuleDict({"related": nn.Identity()}))
        )
        assert plain.param_groups == same.param_groups

    @pytest.mark.parametrize("layer_decay", [None, 0.5])
    def test_parts_do_not_make_up_for_a_frozen_network(self, parts, layer_decay):
        network = Small()
        freeze(network, ["first", "second", "classifier"])
        with pytest.raises(UsageError, match="no parameter left to train"):
            make_optimizer(network, OptimizerConfig(layer_decay=layer_decay), extra=parts)


class TestViewsThatComeAgain:
    """The option `repeat` of the loader: a teacher has to look at each view of an image only once."""

    @staticmethod
    def epochs(cache, repeat, numbers):
        """(rows in their order, images in the order of the source) of some epochs."""
        source, engine = CacheSource(cache, "train"), CpuEngine(RenderSpec(32), threads=1)
        options = LoaderOptions(batch_size=18, train=True, seed=3, view=View(flip=True, min_area=0.4), repeat=repeat)
        found = []
        for number in numbers:
            loader = Loader(source, engine, options)
            loader.set_epoch(number)
            batches = list(loader)
            rows = np.concatenate([batch.rows for batch in batches])
            assert len(rows) == len(source.labels)
            found.append((rows, torch.cat([batch.images for batch in batches])[np.argsort(rows)]))
        engine.close()
        return found

    def test_show_each_sample_in_the_same_way_though_in_another_order(self, cache):
        (order, images), (_, other), (later, again) = self.epochs(cache, 2, (0, 1, 2))
        assert torch.equal(images, again)
        assert not np.array_equal(order, later)
        changed = (images != other).flatten(1).any(1)
        assert changed.float().mean() > 0.9

    def test_never_do_unless_they_are_to(self, cache):
        found = [images for _, images in self.epochs(cache, 0, range(5))]
        for number, one in enumerate(found):
            for other in found[:number]:
                assert (one != other).flatten(1).any(1).float().mean() > 0.9
