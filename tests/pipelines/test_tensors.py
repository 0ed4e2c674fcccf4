"""From levels to what a network eats."""

import sys

import numpy as np
import pytest
import torch
from torchvision import transforms

from pipelines.tensors import IMAGENET_MEAN, IMAGENET_STD, TensorFormat, scale_and_offset
from tests.memory import MIB, resident_bytes

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


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_numbers_are_those_of_one_multiplication_and_addition(count, dtype, channels_last):
    images = torch.randint(0, 256, (count, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scale, offset = scale_and_offset(IMAGENET_MEAN, IMAGENET_STD)
    pixels = images.permute(0, 3, 1, 2)
    expected = torch.addcmul(offset, pixels.to(torch.float32), scale).to(getattr(torch, dtype))
    result = TensorFormat(dtype, channels_last=channels_last)(pixels)
    assert torch.equal(result, expected)
    assert result.dtype == expected.dtype
    assert torch.equal(images, pixels.permute(0, 2, 3, 1))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counted in /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_stays_where_it_is_though_the_caller_keeps_something_small_of_each_batch(dtype, channels_last):
    wanted, kept, seen = TensorFormat(dtype, channels_last=channels_last), [], []
    for number in range(300):
        images = torch.from_numpy(np.full((128, 64, 64, 3), number % 256, np.uint8))
        kept.append(wanted(images.permute(0, 3, 1, 2))[:, 0, 0, 0].clone())
        if number in (20, 299):
            seen.append(resident_bytes())
    assert seen[1] - seen[0] < 100 * MIB, "each batch has 6 MiB of float32"


def test_levels_are_left_alone():
    assert TensorFormat()(LEVELS) is LEVELS
    assert TensorFormat(channels_last=False)(LEVELS) is LEVELS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_part_of_images_keeps_their_order(dtype):
    part = torch.zeros((2, 9, 8, 3), dtype=torch.uint8).permute(0, 3, 1, 2)[:, :, 2:7, 1:6]
    assert TensorFormat(dtype)(part).is_contiguous(memory_format=torch.channels_last)


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
