"""What others do: the whole set resident on the GPU and augmented in batches there, and torchvision's DataLoader."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from augment_cache.format.source import CacheSource
from pipelines.tensors import IMAGENET_MEAN, IMAGENET_STD, TensorFormat, scale_and_offset

Pair = tuple[torch.Tensor, torch.Tensor]


def airbench(source: CacheSource, device: torch.device, batch: int, repeat: int, pad: int = 4) -> Iterator[Pair]:
    """Epochs in the manner of cifar10-airbench (https://github.com/KellerJordan/cifar10-airbench).

    The set lies on the device normalised, in half precision and padded by reflection; each epoch shifts every image at
    random and mirrors all of them in every second epoch, half of them in the first place; batches are rows of that.

    Args:
        source: Raw pixels.
        device: Where the set lies.
        batch: Images per batch.
        repeat: How often the rows come in an epoch.
        pad: Largest shift in px.
    """
    rows = np.tile(np.arange(len(source.labels), dtype=np.int64), repeat)
    images = torch.from_numpy(np.stack(list(source.fetch(rows)))).to(device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(source.labels[rows]).to(device)
    scale, offset = (number.to(device) for number in scale_and_offset(IMAGENET_MEAN, IMAGENET_STD))
    parts = [(part * scale + offset).half() for part in images.split(4096)]
    images = torch.cat(parts).to(memory_format=torch.channels_last)
    images = torch.where(torch.rand(len(images), 1, 1, 1, device=device) < 0.5, images.flip(-1), images)
    padded = functional.pad(images, (pad,) * 4, "reflect")
    epoch = 0
    while True:
        shown = shifted(padded, images.shape[-1])
        shown = shown.flip(-1) if epoch % 2 else shown
        epoch += 1
        order = torch.randperm(len(shown), device=device)
        for start in range(0, len(shown) - batch + 1, batch):
            chosen = order[start : start + batch]
            yield shown[chosen], labels[chosen]


def shifted(padded: torch.Tensor, size: int) -> torch.Tensor:
    """A random window of each image: rows first, then columns, all images with the same shift at once."""
    count, channels, tall, _ = padded.shape
    most = tall - size
    shifts = torch.randint(0, most + 1, (2, count), device=padded.device)
    half = torch.empty((count, channels, size, tall), dtype=padded.dtype, device=padded.device)
    out = torch.empty((count, channels, size, size), dtype=padded.dtype, device=padded.device)
    half, out = (each.to(memory_format=torch.channels_last) for each in (half, out))
    for shift in range(most + 1):
        chosen = shifts[0] == shift
        half[chosen] = padded[chosen, :, shift : shift + size]
    for shift in range(most + 1):
        chosen = shifts[1] == shift
        out[chosen] = half[chosen, :, :, shift : shift + size]
    return out


class TorchvisionFeed:
    """torchvision's ImageFolder behind torch's DataLoader; workers start at once, before CUDA does, by forking.

    Args:
        folder: Of class folders of files that have the right size already.
        device: Where batches go, to be normalised there.
        batch: Images per batch.
        workers: Processes.
        op: Also one op of RandAugment on each image.
    """

    def __init__(self, folder: Path, device: torch.device, batch: int, workers: int, *, op: bool) -> None:
        steps = [v2.PILToTensor(), v2.RandomHorizontalFlip(), *([v2.RandAugment(num_ops=1)] if op else [])]
        self._device, self._format = device, TensorFormat("float16")
        self._loader = DataLoader(
            ImageFolder(str(folder), transform=v2.Compose(steps), allow_empty=True),
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        self._first = iter(self._loader)

    def batches(self) -> Iterator[Pair]:
        """Epoch after epoch."""
        epoch = self._first
        while True:
            for images, labels in epoch:
                levels = images.to(self._device, non_blocking=True, memory_format=torch.channels_last)
                yield self._format(levels), labels.to(self._device, non_blocking=True)
            epoch = iter(self._loader)
