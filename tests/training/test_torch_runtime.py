"""PyTorch as a runtime: the logits of a plain forward pass, and nothing changed by it."""

import copy
import functools
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.tensors import TensorFormat
from training.model.card import ModelCard
from training.model.create import create_model
from training.runtimes.base import Runtime
from training.runtimes.torch_runtime import TorchRuntime, torch_threads

CARD = ModelCard(
    architecture="test_efficientnet", classes=("a", "b", "c"), size=32, fit="pad",
    mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
)  # fmt: skip


class Small(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def plain(model: nn.Module, images) -> np.ndarray:
    pixels = TensorFormat("float32", CARD.mean, CARD.std)(torch.from_numpy(images).permute(0, 3, 1, 2))
    with torch_threads(1), torch.no_grad():
        return copy.deepcopy(model).eval()(pixels).numpy()


def test_logits_are_those_of_a_plain_forward_pass(images):
    model = create_model("test_efficientnet", 3)
    runtime: Runtime = TorchRuntime(model, CARD)
    logits = runtime.logits(images)
    assert (runtime.name, runtime.threads, runtime.size, runtime.classes) == ("torch-eager", 1, 32, ("a", "b", "c"))
    assert (logits.shape, logits.dtype) == ((5, 3), np.float32)
    assert logits.tobytes() == plain(model, images).tobytes()
    assert logits.tobytes() == runtime.logits(images).tobytes()


def test_the_model_and_its_mode_stay_as_they_are(images):
    model = create_model("test_efficientnet", 3)
    model.conv_stem.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runtime = TorchRuntime(model, CARD)
    first = runtime.logits(images)
    assert model.training
    assert not model.conv_stem.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (runtime.logits(images) == first).all()


class Spy(Small):
    """Notes in what state it runs."""

    def forward(self, x):
        SEEN.append(
            (torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), self.training)
        )
        return super().forward(x)


SEEN: list[tuple[int, bool, bool, bool]] = []


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_global_state_of_torch_is_put_back(images, threads):
    before = torch.get_num_threads()
    SEEN.clear()
    TorchRuntime(Spy(), CARD, threads=threads).logits(images)
    (seen,) = SEEN
    assert seen == (threads, False, True, False)
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (
        before,
        True,
        False,
    )


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()
    inside = []

    def fail():
        with torch_threads(before + 1):
            inside.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_every_one_of_many_widths_is_compiled(images, monkeypatch):
    """torch.compile runs the ninth version of the same code uncompiled, without an error."""
    compiled, ran = [], []

    def backend(graph, _):
        compiled.append(graph)
        number = len(compiled)

        def run(*inputs):
            ran.append(number)
            return graph(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    models = [Small(width) for width in range(4, 14)]
    runtimes = [TorchRuntime(model, CARD, compile=True) for model in models]
    for model, runtime in zip(models, runtimes, strict=True):
        assert runtime.name == "torch-compile"
        assert np.allclose(runtime.logits(images), plain(model, images), atol=1e-6)
    assert ran == list(range(1, 11))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="NOT TESTED, torch.compile: no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_logits_are_close(images):
    model = Small()
    logits = TorchRuntime(model, CARD, compile=True).logits(images)
    assert np.allclose(logits, plain(model, images), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED, PyTorch on a GPU: there is none")
def test_on_a_gpu(images):
    model = create_model("test_efficientnet", 3)
    runtime = TorchRuntime(model, CARD, device="cuda")
    assert runtime.name == "torch-eager-cuda"
    assert np.allclose(runtime.logits(images), plain(model, images), atol=1e-3)
    assert next(model.parameters()).device.type == "cpu"
