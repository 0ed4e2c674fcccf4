"""Batch normalisation over processes, with one process: torch's own numbers."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from tests.training.runs import config
from training.engine import setup
from training.engine.optimization import keep_frozen_in_eval
from training.engine.setup import Network
from training.engine.sync_batchnorm import synchronise
from training.model.card import ModelCard
from training.model.create import create_model


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, BatchNormAct2d])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_equal_to_torch(group, layer, options):
    if layer is BatchNormAct2d and "affine" not in options and options:
        pytest.skip("timm's layer has no such option")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), layer(5, **options), nn.Conv2d(5, 2, 1)).train()
    synced = synchronise(copy.deepcopy(plain), torch.device("cpu"))
    for _ in range(3):
        images = torch.randn(4, 3, 8, 8) * 3 + 1
        outputs = [network(images) for network in (plain, synced)]
        assert torch.allclose(*outputs, atol=1e-5)
        for network, output in zip((plain, synced), outputs, strict=True):
            network.zero_grad()
            (output**2).sum().backward()
    for mine, other in zip(synced.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=1e-3, atol=1e-3)
    for (name, mine), other in zip(synced.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(mine.float(), other.float(), atol=1e-5), name
    images = torch.randn(2, 3, 8, 8)
    assert torch.allclose(synced.eval()(images), plain.eval()(images), atol=1e-4)


# Once a bug: on GPUs other modules take the place of the frozen ones, whose statistics then went on moving.
def test_frozen_layers_that_are_replaced_stay_frozen(monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "synchronise", lambda model, device: nn.SyncBatchNorm.convert_sync_batchnorm(model))
    model = create_model("tf_efficientnet_lite0", 6)
    card = ModelCard(architecture="x", classes=("a",), size=64, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3)
    network = Network(model=model, card=card, freeze=("conv_stem", "bn1"), sync_batchnorm=True)
    machine = SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu")), process=SimpleNamespace(world=2))
    placed, frozen = setup._placed(config(tmp_path, tmp_path), machine, network)
    placed.train()
    keep_frozen_in_eval(frozen)
    assert isinstance(placed.bn1, nn.SyncBatchNorm)
    assert not placed.bn1.training
    assert placed.blocks[0][0].bn1.training


def test_names_stay_and_other_layers_are_left_alone(group):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(3), nn.GroupNorm(1, 3))
    names = list(network.state_dict())
    assert list(synchronise(network, torch.device("cpu")).state_dict()) == names
    assert [type(layer).__name__ for layer in network] == ["_SyncedBatchNorm2d", "BatchNorm1d", "GroupNorm"]
