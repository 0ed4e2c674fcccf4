"""From levels to what a network eats: scaled, shifted, in the wanted type and memory format."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

DType = Literal["uint8", "float32", "float16", "bfloat16"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def on_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """An array as a tensor on a device.

    Does not wait for what a GPU has yet to do: a plain `.to` would, in every step. CUDA has copied ordinary memory
    aside when the call returns, so the array may change afterwards.
    """
    return torch.from_numpy(array).to(device, non_blocking=True)


def batch_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised memory for a batch: a contiguous tensor.

    On the host it is numpy's. PyTorch's is aligned by posix_memalign, which leaves a gap before each block; where a
    caller keeps a few small tensors of each batch (labels, answers), they come to lie in what was freed, and the next
    batch needs new memory: gigabytes in a thousand batches, with glibc. Mixing, where nothing is kept of a batch, and
    batches from which damaged samples are left out still take PyTorch's.
    """
    if device.type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return torch.from_numpy(np.empty(tuple(shape), f"i{dtype.itemsize}")).view(dtype)


@dataclass
class TensorFormat:
    """Turns rendered pixels into tensors; the numbers it needs are put on a device once, not once a batch.

    Attributes:
        dtype: `uint8` leaves levels 0 … 255 as they are; a float type gives (level / 255 - mean) / std, calculated in
            float32.
        mean: Per channel, for levels in [0, 1].
        std: Per channel, above 0.
        channels_last: Leave the memory as the engines write it: the pixels of a row side by side, which is what
            convolutions on GPUs and on most CPUs are fastest with. False copies every batch into planes.

    Raises:
        ValueError: An unknown type, or a deviation that is not above 0.
    """

    dtype: DType = "uint8"
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    channels_last: bool = True
    _placed: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in get_args(DType):
            raise ValueError(f"unknown dtype {self.dtype!r}; it is one of {', '.join(get_args(DType))}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} must be three numbers each, std above 0")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Convert a batch.

        Args:
            images: uint8 [n, 3, height, width], any memory format.

        Returns:
            [n, 3, height, width] on the same device: the tensor itself where nothing is to be done.
        """
        if self.dtype == "uint8":
            done = self.channels_last or images.is_contiguous()
            return images if done else self._like(images, torch.uint8).copy_(images)
        scale, offset = self._numbers(images.device)
        floats = self._like(images, torch.float32).copy_(images)
        torch.addcmul(offset, floats, scale, out=floats)
        dtype = getattr(torch, self.dtype)
        return floats if dtype == torch.float32 else self._like(images, dtype).copy_(floats)

    def _like(self, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Memory for converted images: in their own order, or in planes."""
        n, channels, height, width = images.shape
        if self.channels_last and images.stride(1) == 1:
            return batch_memory((n, height, width, channels), dtype, images.device).permute(0, 3, 1, 2)
        return batch_memory(images.shape, dtype, images.device)

    def _numbers(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """1 / (255 std) and -mean / std, float32 [1, 3, 1, 1]."""
        if device not in self._placed:
            scale, offset = scale_and_offset(self.mean, self.std)
            self._placed[device] = scale.to(device), offset.to(device)
        return self._placed[device]


def scale_and_offset(mean: Sequence[float], std: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and -mean / std, float32 [1, 3, 1, 1]: a level times the one plus the other is normalised."""
    scale = torch.tensor([1 / (255 * s) for s in std]).view(1, -1, 1, 1)
    return scale, torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, -1, 1, 1)
