"""Batch normalisation over processes, with one process: torch's own numbers."""

import copy

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from training.engine.sync_batchnorm import synchronise


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


def test_names_stay_and_other_layers_are_left_alone(group):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(3), nn.GroupNorm(1, 3))
    names = list(network.state_dict())
    assert list(synchronise(network, torch.device("cpu")).state_dict()) == names
    assert [type(layer).__name__ for layer in network] == ["_SyncedBatchNorm2d", "BatchNorm1d", "GroupNorm"]
