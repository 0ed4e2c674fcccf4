"""ONNX files: they answer as the model does, carry its card, and are refused with a reason where they would not."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pipelines.errors import UsageError
from training.model import onnx_file
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.onnx_file import ExportError, FromLevels, export_onnx
from training.runtimes.onnx_runtime import OnnxRuntime

CARD = ModelCard(
    architecture="test_efficientnet",
    classes=("a", "b", "ç"),
    size=32,
    fit="crop",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    provenance={"epoch": 3},
)
IMAGES = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def seeded(name="test_efficientnet"):
    torch.manual_seed(0)
    return create_model(name, 3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    model = seeded()
    error = export_onnx(path, model, CARD)
    return path, model, error


def test_answers_as_the_model_does(exported):
    path, model, error = exported
    runtime = OnnxRuntime(path)
    network = copy.deepcopy(model).eval()
    normalised = (torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255 - torch.tensor(CARD.mean).view(3, 1, 1)) / (
        torch.tensor(CARD.std).view(3, 1, 1)
    )
    with torch.inference_mode():
        expected = network(normalised).numpy()
    for count in (1, 5):
        np.testing.assert_allclose(runtime.logits(IMAGES[:count]), expected[:count], rtol=1e-4, atol=1e-5)
    assert 0 <= error <= 1e-4


def test_carries_the_card(exported):
    runtime = OnnxRuntime(exported[0])
    assert runtime.card == CARD
    assert (runtime.name, runtime.size, runtime.classes) == ("onnxruntime-fp32", 32, CARD.classes)


def test_leaves_the_model_as_it_was(tmp_path):
    model = seeded()
    model.train()
    model.conv_stem.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    export_onnx(tmp_path / "model.onnx", model, CARD)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert set(before) == set(model.state_dict())


def test_same_model_same_bytes_and_no_paths_in_them(exported, tmp_path):
    export_onnx(tmp_path / "again.onnx", seeded(), CARD)
    data = (tmp_path / "again.onnx").read_bytes()
    assert data == exported[0].read_bytes()
    assert b"site-packages" not in data
    assert b".py" not in data


class Shuffled(nn.Module):
    """Answers by its own mood in training and by a constant that export bakes in."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 32)

    def forward(self, images):
        return self.layer(images).flatten(1) + torch.rand(3)


def test_a_file_that_answers_otherwise_is_not_written(tmp_path):
    with pytest.raises(ExportError, match=r"model.onnx was not written: .* answers otherwise in ONNX"):
        export_onnx(tmp_path / "model.onnx", Shuffled(), CARD)
    assert list(tmp_path.iterdir()) == []


class Unspeakable(nn.Module):
    def forward(self, images):
        values, counts = torch.unique(images, return_counts=True)
        return images.flatten(1)[:, : 3 + int(counts.max() > 10**9)] * values[0]


def test_what_cannot_be_expressed_is_said_in_one_line(tmp_path):
    with pytest.raises(ExportError, match="cannot be expressed in ONNX") as caught:
        export_onnx(tmp_path / "model.onnx", Unspeakable(), CARD)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_levels_are_normalised_as_the_loader_does_it():
    from pipelines.tensors import TensorFormat

    images = torch.from_numpy(IMAGES)
    expected = TensorFormat("float32", CARD.mean, CARD.std)(images.permute(0, 3, 1, 2))
    assert torch.equal(FromLevels(nn.Identity(), CARD)(images), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda data: None, "does not exist"),
        (lambda data: b"", "no ONNX file that onnxruntime can run"),
        (lambda data: b"\x00\x01garbage" * 50, "no ONNX file that onnxruntime can run"),
        (lambda data: data[: len(data) // 2], "no ONNX file that onnxruntime can run"),
        (lambda data: without_card(data), "was not exported by Tacopress"),
        (lambda data: data.replace(b'"version": 1', b'"version": 9'), "has format version 9"),
    ],
    ids=["missing", "empty", "garbage", "half", "foreign", "newer"],
)
def test_other_files_are_refused(exported, tmp_path, make, words):
    data = make(exported[0].read_bytes())
    if data is not None:
        (tmp_path / "other.onnx").write_bytes(data)
    with pytest.raises(UsageError, match=words) as caught:
        OnnxRuntime(tmp_path / "other.onnx")
    assert "other.onnx" in str(caught.value)


def without_card(data):
    proto = onnx.load_from_string(data)
    proto.ClearField("metadata_props")
    return proto.SerializeToString()


def test_onnxruntime_without_a_gpu_says_so(exported, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match="onnxruntime-gpu"):
        OnnxRuntime(exported[0], device="cuda")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet_g3_x025_2_5_2", "mobilenetv3_small_050", "mobilenetv3_large", "resnet18"])
def test_networks_of_every_origin(tmp_path, name):
    card = ModelCard(**{**CARD.__dict__, "architecture": name, "size": 64})
    assert export_onnx(tmp_path / "model.onnx", seeded(name), card) <= onnx_file.TOLERANCE
