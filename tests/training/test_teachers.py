"""Teachers: whatever they come from, they answer alike, in the student's order, and learn nothing from being asked."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from pipelines.augmentations import Choice, Policy
from pipelines.engines.base import RenderSpec
from pipelines.errors import UsageError
from pipelines.loader import LoaderOptions
from pipelines.mix import MixOptions
from pipelines.plan import View
from training.distillation.answers import is_fixed, keeps, obstacle
from training.distillation.teachers import Features, OnnxTeacher, TorchTeacher, Wanted, open_teacher
from training.engine.learner import EMBEDDING
from training.engine.objective import LOGITS
from training.model import start
from training.model.card import HEADER_KEY, ModelCard, card_text
from training.model.create import create_model, preprocessing
from training.model.model_file import save_model
from training.model.onnx_file import export_onnx

NAME = "test_efficientnet"
CLASSES = ("glass", "metal", "paper", "plastic")
STUDENT = RenderSpec(32, "pad")
CPU = torch.device("cpu")
KINDS = ("run", "file", "onnx", "pth", "state")
LAYER = "blocks.2"
"""Puts out a map of 32 channels, 4 px high and wide."""
MAP = "a map"


def layer_map(path="", side=(1, 1), name=MAP):
    """What is wanted of one layer."""
    return Features(name, path, side)


LAST_MAP = (layer_map(side=(2, 2)),)
EVERYTHING = {"embedding": True, "features": (layer_map(LAYER, (2, 2)),)}
TOLD = {
    "split": "hash 8",
    "learned_from": "train+val",
    "weights": "pretrained",
    "teachers": [{"name": "big", "architecture": "resnet18"}],
}
CARD = ModelCard(
    architecture=NAME,
    classes=CLASSES,
    size=32,
    fit="crop",
    mean=preprocessing(create_model(NAME, 1))[0],
    std=preprocessing(create_model(NAME, 1))[1],
    provenance={"epoch": 3, "seed": 1, **TOLD},
)


def some_levels():
    """Dark and bright ones: their answers differ."""
    random = np.random.default_rng(7)
    noise = random.integers(0, 256, (6, 3, 32, 32)) * random.uniform(0.1, 1, (6, 3, 1, 1))
    return torch.from_numpy(noise.astype(np.uint8))


LEVELS = some_levels()


def taught(classes=4, seed=0, **options):
    """A network whose statistics are not those of a fresh one, and whose answers are not all near zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(NAME, classes, **options)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.3, 1)
            model.classifier.weight.normal_(0, 0.2)
            model.classifier.bias.normal_()
    return model.eval()


def normalised(card=CARD):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    return (LEVELS / 255 - mean) / std


def relabelled(source, target, card):
    """The same ONNX file with another card."""
    model = onnx.load(source)
    onnx.helper.set_model_props(model, {HEADER_KEY: card_text(card)})
    onnx.save(model, target)
    return target


def opened(words, classes=CLASSES, spec=STUDENT, **wanted):
    return open_teacher(str(words), classes, spec, Wanted(**wanted), CPU)


def made(model, **wanted):
    """Of a network at hand."""
    places = list(range(len(CLASSES))) if wanted.get("logits", True) else []
    return TorchTeacher(
        model, CARD, places=places, wanted=Wanted(**wanted), device=CPU, name="mine", fingerprint="of mine"
    )


def close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def network():
    return taught()


@pytest.fixture(scope="module")
def logits(network):
    with torch.no_grad():
        found = network(normalised())
    assert found.std(0).min() > 0.1, "an answer that does not look at the images would pass"
    return found


@pytest.fixture(scope="module")
def words(network, tmp_path_factory):
    """The same network in every way that an option can name it."""
    root = tmp_path_factory.mktemp("teachers")
    save_model(root / "mobile run" / "best.safetensors", network, CARD)
    save_model(root / "mobile run" / "last.safetensors", taught(seed=9), CARD)
    save_model(root / "small.safetensors", network, CARD)
    export_onnx(root / "net.onnx", network, CARD)
    torch.save(network.state_dict(), root / "state.pth")
    safetensors.torch.save_file(network.state_dict(), root / "state.safetensors")
    return {
        "run": root / "mobile run",
        "file": root / "small.safetensors",
        "onnx": root / "net.onnx",
        "pth": f"{NAME}={root / 'state.pth'}",
        "state": f"{NAME}={root / 'state.safetensors'}",
        "last": root / "mobile run" / "last.safetensors",
    }


def recarded(kind, words, network, folder, card):
    """The network in a file with another card."""
    if kind == "onnx":
        return relabelled(words["onnx"], folder / "other.onnx", card)
    save_model(folder / "other.safetensors", network, card)
    return folder / "other.safetensors"


class TestKinds:
    @pytest.mark.parametrize("kind", KINDS)
    def test_give_the_same_logits(self, words, logits, kind):
        teacher = opened(words[kind])
        assert teacher.columns == {LOGITS: (len(CLASSES),)}
        assert isinstance(teacher, OnnxTeacher if kind == "onnx" else TorchTeacher)
        said = teacher.ask(LEVELS)
        assert list(said) == [LOGITS]
        assert said[LOGITS].dtype == torch.float32
        close(said[LOGITS], logits, 1e-4 if kind == "onnx" else 1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_say_who_they_are(self, words, kind):
        names = {"run": "mobile run", "file": "small", "onnx": "net", "pth": NAME, "state": NAME}
        by_name = kind in ("pth", "state")
        teacher = opened(words[kind], spec=RenderSpec(48, "pad"))
        assert teacher.name == names[kind]
        assert teacher.spec == (RenderSpec(48, "pad") if by_name else RenderSpec(32, "crop"))
        assert teacher.provenance == {"architecture": NAME, **({} if by_name else TOLD)}

    def test_the_best_of_a_run_is_meant_unless_another_is_named(self, words, logits):
        last = opened(words["last"])
        assert last.name == "mobile run"
        assert not torch.allclose(last.ask(LEVELS)[LOGITS], logits, atol=0.1)
        close(opened(words["run"] / "best.safetensors").ask(LEVELS)[LOGITS], logits)

    @pytest.mark.parametrize("kind", ["file", "onnx"])
    def test_that_say_nothing_of_what_they_have_learned_from(self, words, network, tmp_path, kind):
        card = replace(CARD, provenance={"epoch": 3})
        assert opened(recarded(kind, words, network, tmp_path, card)).provenance == {"architecture": NAME}

    def test_an_origin_before_a_name_stays_out_of_the_names_of_files(self, words, logits):
        teacher = opened(f"timm:{words['pth']}")
        assert teacher.name == f"timm-{NAME}"
        close(teacher.ask(LEVELS)[LOGITS], logits)

    def test_images_are_normalised_as_the_card_says(self, network, logits, tmp_path):
        card = replace(CARD, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        save_model(tmp_path / "a.safetensors", network, card)
        with torch.no_grad():
            expected = network(normalised(card))
        close(opened(tmp_path / "a.safetensors").ask(LEVELS)[LOGITS], expected)
        assert not torch.allclose(expected, logits, atol=0.1)

    def test_a_folder_may_have_an_equals_sign(self, words, logits, tmp_path):
        run = tmp_path / "lr=0.1"
        shutil.copytree(words["run"], run)
        for path in (run, run / "best.safetensors"):
            close(opened(path).ask(LEVELS)[LOGITS], logits)


class TestHub:
    @pytest.fixture
    def offline(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read when the package is imported, and that may have been
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    @pytest.mark.parametrize("name", [NAME, f"timm:{NAME}"])
    @pytest.mark.parametrize("wanted", [{}, {"logits": False, "features": LAST_MAP}])
    def test_that_cannot_be_reached(self, offline, name, wanted):
        with pytest.raises(UsageError, match=f"the weights of {name} cannot be had") as caught:
            opened(name, **wanted)
        assert "give the file" in str(caught.value)

    def test_that_has_no_weights_of_that_name(self):
        with pytest.raises(UsageError, match="no weights for shufflenet_g3_wd4"):
            opened("shufflenet_g3_wd4", spec=RenderSpec(64), logits=False, features=LAST_MAP)

    @pytest.mark.parametrize("classes", [len(CLASSES), 10])
    def test_has_learned_other_classes(self, monkeypatch, network, classes):
        """As many, perhaps, but never the student's: features are all that can be had."""
        hub = taught(classes)
        monkeypatch.setattr(start, "_from_hub", lambda _: hub.state_dict())
        with pytest.raises(UsageError, match="not of a classifier of these 4 classes; fine-tune it first"):
            opened(NAME)
        said = opened(NAME, logits=False, embedding=True).ask(LEVELS)
        with torch.no_grad():
            close(said[EMBEDDING], hub.forward_head(hub.forward_features(normalised()), pre_logits=True))


class TestClasses:
    OTHER_ORDER = ("paper", "glass", "plastic", "metal")

    @pytest.mark.parametrize("kind", ["file", "onnx"])
    def test_come_in_the_students_order(self, words, network, logits, tmp_path, kind):
        teacher = opened(recarded(kind, words, network, tmp_path, replace(CARD, classes=self.OTHER_ORDER)))
        close(teacher.ask(LEVELS)[LOGITS], logits[:, [1, 3, 0, 2]], 1e-4)

    @pytest.mark.parametrize("kind", ["run", "onnx"])
    @pytest.mark.parametrize(
        ("classes", "places"), [(("glass", "metal"), [0, 1]), (("plastic", "glass"), [3, 0]), (("paper",), [2])]
    )
    def test_that_the_student_does_not_know_are_left_out(self, words, logits, kind, classes, places):
        teacher = opened(words[kind], classes)
        assert teacher.columns == {LOGITS: (len(classes),)}
        close(teacher.ask(LEVELS)[LOGITS], logits[:, places], 1e-4)

    @pytest.mark.parametrize("kind", ["run", "file", "onnx"])
    def test_that_the_teacher_does_not_know_are_named(self, words, kind):
        with pytest.raises(UsageError, match="knows no class 'wood'") as caught:
            opened(words[kind], ("glass", "wood", "paper"))
        assert "glass, metal, paper, plastic" in str(caught.value)
        assert str(words[kind]) in str(caught.value)

    def test_do_not_matter_to_features(self, words):
        teacher = opened(words["run"], ("wood", "stone"), logits=False, embedding=True)
        assert teacher.columns == {EMBEDDING: (256,)}
        assert list(teacher.ask(LEVELS)) == [EMBEDDING]

    @pytest.mark.parametrize("kind", ["pth", "state"])
    @pytest.mark.parametrize("classes", [("glass", "metal"), (*CLASSES, "wood")])
    def test_of_another_number_in_plain_weights(self, words, network, kind, classes):
        with pytest.raises(UsageError, match=f"not of a classifier of these {len(classes)} classes"):
            opened(words[kind], classes)
        teacher = opened(words[kind], classes, logits=False, features=LAST_MAP)
        found = made(copy.deepcopy(network), logits=False, features=LAST_MAP)
        close(teacher.ask(LEVELS)[MAP], found.ask(LEVELS)[MAP])

    def test_of_plain_weights_without_a_classifier(self, network, tmp_path):
        """What is left of the fresh one must not teach."""
        state = {name: value for name, value in network.state_dict().items() if "classifier" not in name}
        torch.save(state, tmp_path / "body.pth")
        with pytest.raises(UsageError, match="not of a classifier of these 4 classes"):
            opened(f"{NAME}={tmp_path / 'body.pth'}")

    def test_of_a_model_file_with_a_name_before_it(self, network, logits, tmp_path):
        """The file says what its classes are: they are put in order, or it is refused, but never mistaken."""
        save_model(tmp_path / "other.safetensors", network, replace(CARD, classes=self.OTHER_ORDER))
        try:
            found = opened(f"{NAME}={tmp_path / 'other.safetensors'}").ask(LEVELS)[LOGITS]
        except UsageError:
            return
        close(found, logits[:, [1, 3, 0, 2]])


class TestInside:
    def test_the_embedding_is_what_goes_into_the_classifier(self, words, network):
        teacher = opened(words["file"], embedding=True)
        assert teacher.columns == {LOGITS: (4,), EMBEDDING: (256,)}
        said = teacher.ask(LEVELS)
        with torch.no_grad():
            close(said[EMBEDDING], network.forward_head(network.forward_features(normalised()), pre_logits=True))
            close(said[LOGITS], network.classifier(said[EMBEDDING]))

    @pytest.mark.parametrize("side", [(1, 1), (2, 2), (2, 4), (4, 1), (4, 4), (9, 2), (50, 50)])
    def test_maps_are_averaged_to_the_wanted_size_at_most(self, words, network, side):
        teacher = opened(words["pth"], logits=False, features=(layer_map(LAYER, side),))
        height, width = (min(4, pixels) for pixels in side)
        assert teacher.columns == {MAP: (32, height, width)}
        with torch.no_grad():
            whole = network.blocks[:3](network.bn1(network.conv_stem(normalised())))
        assert whole.shape == (len(LEVELS), 32, 4, 4)
        blocks = whole.reshape(len(LEVELS), 32, height, 4 // height, width, 4 // width)
        close(teacher.ask(LEVELS)[MAP], blocks.mean((3, 5)))

    def test_without_a_path_it_is_the_last_map(self, words):
        """Behind it, one pixel is left."""
        teacher = opened(
            words["file"], logits=False, features=(layer_map(side=(2, 2)), layer_map("blocks.4.0.bn1", (2, 2), "named"))
        )
        assert teacher.columns == {MAP: (192, 2, 2), "named": (192, 2, 2)}
        said = teacher.ask(LEVELS)
        assert torch.equal(said[MAP], said["named"])
        assert said[MAP].std() > 0.01

    def test_several_maps_do_not_mix(self, words):
        """One layer in two sizes, and another between them."""
        wanted = (layer_map(LAYER, (4, 4), "a"), layer_map("blocks.1", (9, 9), "b"), layer_map(LAYER, (1, 2), "c"))
        teacher = opened(words["file"], logits=False, features=wanted)
        assert teacher.columns == {"a": (32, 4, 4), "b": (24, 8, 8), "c": (32, 1, 2)}
        said = teacher.ask(LEVELS)
        close(said["c"][:, :, 0], said["a"].reshape(len(LEVELS), 32, 4, 2, 2).mean((2, 4)))
        for features in wanted:
            alone = opened(words["file"], logits=False, features=(features,)).ask(LEVELS)
            assert torch.equal(alone[features.name], said[features.name])

    def test_what_a_layer_puts_out_is_not_what_the_next_one_makes_of_it(self):
        """An activation may work in place."""
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3600, 4))
        teacher = made(copy.deepcopy(network), logits=False, features=(layer_map("0", (30, 30)),))
        with torch.no_grad():
            close(teacher.ask(LEVELS)[MAP], network[0](normalised()))

    def test_everything_at_once(self, words, logits):
        teacher = opened(words["run"], CLASSES[:3], **EVERYTHING)
        assert teacher.columns == {LOGITS: (3,), EMBEDDING: (256,), MAP: (32, 2, 2)}
        said = teacher.ask(LEVELS)
        assert {name: tuple(values.shape[1:]) for name, values in said.items()} == teacher.columns
        close(said[LOGITS], logits[:, :3])

    @pytest.mark.parametrize("layer", ["blocks.9", "block", "blocks.", "auto"])
    @pytest.mark.parametrize("kind", ["run", "pth"])
    def test_a_layer_that_is_not_there(self, words, kind, layer):
        with pytest.raises(UsageError, match=f"no layer '{layer}'") as caught:
            opened(words[kind], features=(layer_map(LAYER, name="b"), layer_map(layer)))
        assert "global_pool, embedding, classifier" in str(caught.value)

    @pytest.mark.parametrize("layer", ["classifier", "global_pool", EMBEDDING])
    def test_a_layer_without_a_map(self, words, layer):
        with pytest.raises(UsageError, match=f"{layer} puts out no map; name another layer"):
            opened(words["file"], features=(layer_map(LAYER, name="b"), layer_map(layer)))

    @pytest.mark.parametrize(
        "wanted", [{"features": LAST_MAP}, {"embedding": True}, {"logits": False, "features": (layer_map("x"),)}]
    )
    def test_an_onnx_file_has_no_inside(self, words, wanted):
        with pytest.raises(UsageError, match=r"net\.onnx shows logits only.*give a model file"):
            opened(words["onnx"], **wanted)


class TestAsking:
    def test_changes_nothing(self):
        """A teacher that comes in training mode, with dropout and statistics that would follow the images."""
        model = taught(drop_rate=0.5).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        teacher = made(model, **EVERYTHING)
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        random = torch.get_rng_state()
        first, second = teacher.ask(LEVELS), teacher.ask(LEVELS)
        assert torch.equal(torch.get_rng_state(), random)
        assert not any(module.training for module in model.modules())
        assert all(torch.equal(first[name], second[name]) for name in first)
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())

    def test_of_an_onnx_file_draws_nothing(self, words):
        teacher, random = opened(words["onnx"]), torch.get_rng_state()
        assert torch.equal(teacher.ask(LEVELS)[LOGITS], teacher.ask(LEVELS)[LOGITS])
        assert torch.equal(torch.get_rng_state(), random)

    @pytest.mark.parametrize("kind", ["file", "pth", "onnx"])
    def test_leaves_no_graph(self, words, kind):
        """Not even where the images are part of one."""
        teacher = opened(words[kind], **({} if kind == "onnx" else EVERYTHING))
        with torch.enable_grad():
            said = teacher.ask(LEVELS.float().requires_grad_())
        for values in said.values():
            assert not values.requires_grad
            assert values.grad_fn is None

    @pytest.mark.parametrize("kind", ["file", "onnx"])
    def test_gives_float32_where_others_compute_in_half_precision(self, words, kind):
        teacher = opened(words[kind], **({} if kind == "onnx" else EVERYTHING))
        with torch.autocast("cpu", torch.bfloat16):
            said = teacher.ask(LEVELS)
        assert {name: values.dtype for name, values in said.items()} == dict.fromkeys(teacher.columns, torch.float32)

    @pytest.mark.parametrize("kind", ["file", "onnx"])
    def test_does_not_mind_how_images_lie_in_memory(self, words, kind):
        teacher = opened(words[kind], **({} if kind == "onnx" else EVERYTHING))
        planes, pixels = (LEVELS.contiguous(memory_format=f) for f in (torch.contiguous_format, torch.channels_last))
        expected = teacher.ask(planes)
        for name, values in teacher.ask(pixels).items():
            close(values, expected[name])

    @pytest.mark.parametrize("kind", ["file", "onnx"])
    def test_about_one_image_is_asking_about_many(self, words, kind):
        teacher = opened(words[kind], **({} if kind == "onnx" else EVERYTHING))
        together = teacher.ask(LEVELS)
        kept = {name: values.clone() for name, values in together.items()}
        for row in range(len(LEVELS)):
            for name, values in teacher.ask(LEVELS[row : row + 1]).items():
                close(values, kept[name][row : row + 1])
        assert all(torch.equal(together[name], kept[name]) for name in kept), "later answers took the place of earlier"

    @pytest.mark.parametrize("kind", KINDS)
    def test_about_float_levels_is_the_same(self, words, kind):
        teacher = opened(words[kind])
        assert torch.equal(teacher.ask(LEVELS.float())[LOGITS], teacher.ask(LEVELS)[LOGITS])

    def test_an_onnx_file_about_levels_that_went_through_a_format_and_back(self, words):
        """They are whole up to rounding, and may lie outside of 0 to 255."""
        teacher, levels = opened(words["onnx"]), LEVELS.clone()
        levels[0], levels[1] = 0, 255
        expected = teacher.ask(levels)[LOGITS]
        for error in (-0.3, 0.3):
            assert torch.equal(teacher.ask(levels + error)[LOGITS], expected)
        outside = torch.stack((levels[0] - 1.5, levels[1] + 1.5))
        assert torch.equal(teacher.ask(outside)[LOGITS], expected[:2])

    def test_about_levels_between_whole_ones_counts_them(self, words, network):
        """An enlarged image has such."""
        with torch.no_grad():
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CARD.mean, CARD.std))
            expected = network(((LEVELS / 2 + 0.3) / 255 - mean) / std)
        close(opened(words["file"]).ask(LEVELS / 2 + 0.3)[LOGITS], expected)


def one_weight_changed(kind, words, network, folder):
    """By the last bit."""
    if kind == "onnx":
        model = onnx.load(words["onnx"])
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weights.raw_data = bytes([weights.raw_data[0] ^ 1]) + weights.raw_data[1:]
        onnx.save(model, folder / "net.onnx")
        return folder / "net.onnx"
    other = copy.deepcopy(network)
    with torch.no_grad():
        bits = other.conv_stem.weight.view(torch.int32).view(-1)
        bits[5] ^= 1
    if kind == "file":
        save_model(folder / "small.safetensors", other, CARD)
        return folder / "small.safetensors"
    torch.save(other.state_dict(), folder / "state.pth")
    return f"{NAME}={folder / 'state.pth'}"


class TestFingerprint:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_the_same_file_is_the_same(self, words, kind):
        found = opened(words[kind]).fingerprint
        assert len(found) == 64
        assert opened(words[kind]).fingerprint == found

    @pytest.mark.parametrize("kind", ["file", "onnx", "pth"])
    def test_goes_with_the_file(self, words, tmp_path, kind):
        name, equals, path = str(words[kind]).rpartition("=")
        moved = shutil.copy(path, tmp_path / f"moved.{kind.replace('file', 'safetensors')}")
        assert opened(f"{name}{equals}{moved}").fingerprint == opened(words[kind]).fingerprint

    @pytest.mark.parametrize("kind", ["file", "onnx", "pth"])
    def test_of_another_weight_is_another(self, words, network, tmp_path, kind):
        changed = one_weight_changed(kind, words, network, tmp_path)
        assert opened(changed).fingerprint != opened(words[kind]).fingerprint

    def test_changes_with_what_is_wanted(self, words):
        wanted = [
            {},
            {"embedding": True},
            {"logits": False, "embedding": True},
            {"features": (layer_map(LAYER),)},
            {"features": (layer_map(LAYER, (2, 2)),)},
            {"features": (layer_map(LAYER, (2, 4)),)},
            {"features": (layer_map("blocks.2.0"),)},  # of the same shape
            {"features": (layer_map("blocks.2.0.bn2"), layer_map(LAYER, name="b"))},
            {"features": (layer_map(LAYER), layer_map("blocks.2.0.bn2", name="b"))},
        ]
        assert len({opened(words["file"], **options).fingerprint for options in wanted}) == len(wanted)

    @pytest.mark.parametrize("kind", ["file", "onnx"])
    def test_changes_with_the_order_of_the_classes(self, words, kind):
        orders = [CLASSES, CLASSES[::-1], CLASSES[:2], CLASSES[2:]]
        assert len({opened(words[kind], classes).fingerprint for classes in orders}) == len(orders)

    @pytest.mark.parametrize("origin", ["plain weights", "the hub"])
    def test_does_not_depend_on_a_classifier_that_is_not_asked(self, words, monkeypatch, origin):
        """It is a fresh one, drawn at random: another process would ask again for what is kept already."""
        monkeypatch.setattr(start, "_from_hub", lambda _: taught(10).state_dict())
        name = words["pth"] if origin == "plain weights" else NAME
        found = [opened(name, CLASSES[:2], logits=False, features=LAST_MAP) for _ in range(2)]
        assert torch.equal(*(teacher.ask(LEVELS)[MAP] for teacher in found))
        assert found[0].fingerprint == found[1].fingerprint


def cut(source, target):
    data = source.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    return target


def text(path):
    path.write_text("not a network\n")
    return path


def folder(path):
    path.mkdir()
    return path


WRONG = {
    "no such path": (lambda _, at: at / "nobody", "neither a run folder nor a model file nor an ONNX file"),
    "no such name": (lambda _, __: "efficientnot", "neither a run folder .* as a name: unknown model"),
    "no such name with a file": (lambda w, _: str(w["pth"]).replace(NAME, "efficientnot"), "unknown model"),
    "no such model file": (lambda _, at: at / "a.safetensors", r"a\.safetensors does not exist"),
    "no such ONNX file": (lambda _, at: at / "a.onnx", r"a\.onnx does not exist"),
    "no such weights": (lambda _, at: f"{NAME}={at / 'a.pth'}", r"a\.pth do not exist"),
    "nothing behind the =": (lambda _, __: f"{NAME}=", "after the = stands a file of weights"),
    "nothing before the =": (lambda w, _: str(w["pth"]).removeprefix(NAME), "unknown model ''"),
    "a folder without a model": (lambda _, at: folder(at / "run"), r"run.best\.safetensors does not exist"),
    "a folder called .onnx": (lambda _, at: folder(at / "a.onnx"), r"a\.onnx does not exist"),
    "half a model file": (lambda w, at: cut(w["file"], at / "a.safetensors"), r"a\.safetensors is no Tacopress model"),
    "half an ONNX file": (lambda w, at: cut(w["onnx"], at / "a.onnx"), r"a\.onnx is no ONNX file"),
    "half a run": (lambda w, at: cut(w["last"], folder(at / "run") / "best.safetensors").parent, "is no Tacopress"),
    "text called .onnx": (lambda _, at: text(at / "a.onnx"), r"a\.onnx is no ONNX file"),
    "text called .safetensors": (lambda _, at: text(at / "a.safetensors"), r"a\.safetensors is no Tacopress model"),
    "text called something": (lambda _, at: text(at / "a.txt"), r"a\.txt is no Tacopress model"),
    "text as weights": (lambda _, at: f"{NAME}={text(at / 'a.pth')}", r"a\.pth holds no weights"),
    "a model file without a card": (lambda w, _: str(w["state"]).partition("=")[2], "is no Tacopress model file"),
    "weights of another network": (
        lambda w, _: str(w["pth"]).replace(NAME, "test_resnet"),
        r"state\.pth does not fit the model",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_teacher_is_refused_with_a_reason(words, tmp_path, case):
    make, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        opened(make(words, tmp_path))


def test_an_onnx_file_of_somebody_else_is_refused(words, tmp_path):
    model = onnx.load(words["onnx"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="was not exported by Tacopress"):
        opened(tmp_path / "a.onnx")


def test_images_that_a_named_network_cannot_take_are_refused(words):
    with pytest.raises(UsageError, match="vit_tiny_patch16_224 cannot take images of 48 px"):
        opened(str(words["pth"]).replace(NAME, "vit_tiny_patch16_224"), spec=RenderSpec(48))


POLICY = Policy.repeated("one", (Choice("Brightness", 0.0, 0.5),))
FLIP, CROP, BOTH = View(flip=True), View(min_area=0.6), View(flip=True, min_area=0.6)
MIXED, UNMIXED = MixOptions(mixup=0.4), MixOptions(mixup=0.4, cutmix=1.0, probability=0.0)
BALANCED = "balanced"
# Options of a loader; whether its images are fixed; what stands in the way; whether `auto` keeps answers.
TABLE = {
    "nothing": ({}, True, "", True),
    "evaluation": ({"train": False}, True, "", True),
    "an aspect that no crop uses": ({"view": View(max_aspect=2.0)}, True, "", True),
    "flips": ({"view": FLIP}, False, "", False),
    "crops": ({"view": CROP}, False, "", False),
    "almost no crops": ({"view": View(min_area=0.99)}, False, "", False),
    "augmentation": ({"policy": POLICY}, False, "", False),
    "flips and crops": ({"view": BOTH}, False, "", False),
    "flips that come again": ({"view": FLIP, "repeat": 3}, False, "", True),
    "crops that come again": ({"view": CROP, "repeat": 1}, False, "", True),
    "augmentation that comes again": ({"policy": POLICY, "repeat": 2}, False, "", True),
    "nothing comes again": ({"repeat": 2}, True, "", True),
    "mixed": ({"mix": MIXED}, True, "--mix", False),
    "cutmix": ({"mix": MixOptions(cutmix=1.0)}, True, "--mix", False),
    "mixed and coming again": ({"mix": MIXED, "view": BOTH, "repeat": 2}, False, "--mix", False),
    "never mixed": ({"mix": UNMIXED}, True, "", True),
    "balanced": ({"order": BALANCED}, True, "--data.order balanced", False),
    "balanced and coming again": (
        {"order": BALANCED, "view": FLIP, "repeat": 2},
        False,
        "--data.order balanced",
        False,
    ),
    "sequential": ({"order": "sequential", "view": FLIP, "repeat": 2}, False, "", True),
}


@pytest.mark.parametrize("case", TABLE)
def test_whether_answers_can_be_kept(case):
    changes, fixed, words, auto = TABLE[case]
    options = LoaderOptions(**{"batch_size": 8, "train": True, **changes})
    assert is_fixed(options) is fixed
    assert bool(obstacle(options)) is bool(words)
    assert words in obstacle(options)
    assert keeps("auto", options) is auto
    assert keeps("online", options) is False
    if words:
        with pytest.raises(UsageError, match=f"--teacher.outputs cached: .*{words}.*; take online"):
            keeps("cached", options)
    else:
        assert keeps("cached", options) is True
