"""From levels to what a network eats."""

import pytest
import torch
from torchvision import transforms

from pipelines.tensors import IMAGENET_MEAN, IMAGENET_STD, TensorFormat

LEVELS = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("mean", "std"),
    [(IMAGENET_MEAN, IMAGENET_STD), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.0, 0.1, 1.0), (1.0, 0.2, 0.3))],
)
def test_it_is_what_torchvision_does(mean, std):
    image = LEVELS[0].permute(1, 2, 0).numpy()
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])(image)
    result = TensorFormat("float32", mean, std)(LEVELS)
    assert result.dtype == torch.float32
    assert result.shape == LEVELS.shape
    torch.testing.assert_close(result[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_keeps_the_memory_format(memory_format, dtype):
    images = LEVELS.repeat(2, 1, 1, 1).contiguous(memory_format=memory_format)
    result = TensorFormat(dtype)(images)
    assert result.dtype == getattr(torch, dtype)
    assert result.is_contiguous(memory_format=memory_format)
    assert torch.equal(result, TensorFormat("float32")(images).to(result.dtype))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_planes_on_demand(dtype):
    images = LEVELS.repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    result = TensorFormat(dtype, channels_last=False)(images)
    assert result.is_contiguous()
    assert torch.equal(result, TensorFormat(dtype)(images))


def test_levels_are_left_alone():
    assert TensorFormat()(LEVELS) is LEVELS


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"std": (0.5, 0.5)}, "three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "above 0"),
    ],
)
def test_nonsense_is_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        TensorFormat(**options)
