"""Model files: round trip, and everything that is no model file."""

import json
import pickle
from typing import ClassVar

import pytest
import safetensors
import safetensors.torch
import torch

from pipelines.errors import UsageError
from training.model.card import ModelCard
from training.model.create import create_model, preprocessing
from training.model.model_file import find_model, load_model, read_card, save_model

CARD = ModelCard(
    architecture="test_efficientnet",
    classes=("a", "b", "c"),
    size=32,
    fit="pad",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    provenance={"epoch": 3},
)


def test_round_trip(tmp_path):
    model = create_model("test_efficientnet", 3).eval()
    save_model(tmp_path / "model.safetensors", model, CARD)
    loaded, card = load_model(tmp_path / "model.safetensors")
    assert card == CARD
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), loaded(images))


def test_same_model_same_bytes(tmp_path):
    model = create_model("test_efficientnet", 3)
    for name in ("a", "b"):
        save_model(tmp_path / name, model, CARD)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class TestDefinition:
    VALUE: ClassVar = {
        "backbone": [[1, "Conv", [8, 3, 2]], [1, "GlobalAvgPool", []], [1, "Flatten", []], [1, "Linear", [9]]]
    }

    def test_rebuilds_the_model_without_its_yaml(self, tmp_path):
        card = ModelCard(**{**CARD.__dict__, "architecture": "gone.yaml", "definition": self.VALUE})
        model = create_model("gone.yaml", 3, definition=self.VALUE).eval()
        save_model(tmp_path / "model.safetensors", model, card)
        loaded, read = load_model(tmp_path / "model.safetensors")
        assert read == card
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(model(images), loaded(images))

    def test_models_that_their_name_rebuilds_have_the_header_that_they_always_had(self, tmp_path):
        save_model(tmp_path / "model.safetensors", create_model("test_efficientnet", 3), CARD)
        with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
            header = json.loads(file.metadata()["tacopress"])
        assert header["version"] == 1
        assert "definition" not in header
        assert read_card(tmp_path / "model.safetensors").definition is None

    @pytest.mark.parametrize("value", [[], "x", {"backbone": [[1, "Evil", []]]}])
    def test_wrong_definition(self, tmp_path, value):
        fields = {key: list(item) if isinstance(item, tuple) else item for key, item in CARD.__dict__.items()}
        header = {"format": "tacopress-model", "version": 1, **fields, "definition": value}
        path = tmp_path / "model.safetensors"
        tensors = safetensors.torch.save({"x": torch.zeros(1)}, metadata={"tacopress": json.dumps(header)})
        path.write_bytes(tensors)
        with pytest.raises(UsageError, match=r"no Tacopress model file|Evil"):
            load_model(path)


def test_unknown_edits_and_versions_are_refused(tmp_path):
    model = create_model("test_efficientnet", 3)
    path = tmp_path / "model.safetensors"
    save_model(path, model, ModelCard(**{**CARD.__dict__, "edits": ({"kind": "teleport"},)}))
    with pytest.raises(UsageError, match="teleport"):
        load_model(path)
    header = {"tacopress": json.dumps({"format": "tacopress-model", "version": 99})}
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, metadata=header))
    with pytest.raises(UsageError, match="version 99"):
        read_card(path)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize(
    "content", [b"", b"garbage", pickle.dumps({"a": 1}), safetensors.torch.save({"x": torch.zeros(1)})]
)
def test_what_is_no_model_file(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no Tacopress model file"):
        load_model(path)


def test_missing_file_and_run_folder(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_model(tmp_path / "none.safetensors")
    assert find_model(tmp_path) == tmp_path / "best.safetensors"


class TestWeights:
    def test_other_classifier_is_left_out(self, tmp_path):
        donor = create_model("test_efficientnet", 10)
        torch.save(donor.state_dict(), tmp_path / "donor.pth")
        model = create_model("test_efficientnet", 3, weights=tmp_path / "donor.pth")
        assert torch.equal(model.state_dict()["conv_stem.weight"], donor.state_dict()["conv_stem.weight"])
        assert model.state_dict()["classifier.weight"].abs().max() < 0.1

    def test_pickles_are_refused_unexecuted(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
        with pytest.raises(UsageError, match="read safely"):
            create_model("test_efficientnet", 3, weights=tmp_path / "bomb.pth")
        assert not (tmp_path / "exploded").exists()

    def test_weights_of_another_architecture_are_refused(self, tmp_path):
        torch.save(create_model("test_resnet", 3).state_dict(), tmp_path / "other.pth")
        with pytest.raises(UsageError, match="does not fit"):
            create_model("test_efficientnet", 3, weights=tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "tf_efficientnet_lite0", "test_resnet"])
def test_logits_start_near_zero(name):
    """timm's own start for six classes has logits of several units, a loss near 5 instead of ln 6 = 1.79."""
    torch.manual_seed(0)
    model = create_model(name, 6)
    loss = torch.nn.functional.cross_entropy(model(torch.randn(16, 3, 64, 64)), torch.arange(16) % 6)
    assert loss < 2.0


def test_preprocessing_is_the_weights_own():
    assert preprocessing(create_model("tf_efficientnet_lite0", 6)) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert preprocessing(create_model("resnet18", 6))[0] == (0.485, 0.456, 0.406)
