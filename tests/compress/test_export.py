"""The export job."""

import json
import subprocess
import sys

import pytest
import torch

from compress.export import ExportConfig, export, table
from pipelines.errors import UsageError
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.model_file import save_model
from training.runtimes.onnx_runtime import OnnxRuntime

CARD = ModelCard(
    architecture="test_efficientnet", classes=("a", "b"), size=32, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3
)


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    save_model(tmp_path / "run" / "best.safetensors", create_model("test_efficientnet", 2), CARD)
    return tmp_path / "run"


def test_a_run_folder_gets_its_file_beside_the_model(run):
    report = export(ExportConfig(model=run))
    assert report["out"] == str(run / "best.onnx")
    assert report["bytes"] == (run / "best.onnx").stat().st_size
    assert report["error"] <= 1e-4
    assert OnnxRuntime(run / "best.onnx").card == CARD
    assert "best.onnx" in table(report)


def test_the_command(run, tmp_path):
    words = [sys.executable, "-m", "compress.export", "--model", run, "--out", tmp_path / "m.onnx", "--json"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == str(tmp_path / "m.onnx")
    assert done.stderr == ""


def test_what_makes_no_sense(run, tmp_path):
    with pytest.raises(UsageError, match=r"must end in \.onnx"):
        ExportConfig(model=run, out=tmp_path / "m.pt")
    with pytest.raises(UsageError, match="does not exist"):
        export(ExportConfig(model=tmp_path / "nosuch"))
