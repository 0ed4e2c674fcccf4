"""Images that lie on the engine's device already."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.engines.base import Image
from pipelines.tensors import on_device


class DeviceRows(Sequence[Image]):
    """Rows of an array of raw images that lies on the engine's device, so that nothing has to travel there.

    Args:
        images: uint8 [n, height, width, 3], contiguous; nothing that was queued on the device has yet to write them.
        rows: int64 [k]; which of them.
    """

    def __init__(self, images: torch.Tensor, rows: NDArray[np.int64]) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image:  # type: ignore[override]
        image: Image = self.images[int(self.rows[index])].cpu().numpy()
        return image

    def gather(self) -> torch.Tensor:
        """The rows: uint8 [k, height, width, 3], in memory of their own on the device."""
        return self.images.index_select(0, on_device(self.rows, self.images.device))


def mirrored(pixels: torch.Tensor, flip: NDArray[np.bool_]) -> torch.Tensor:
    """Some images left to right, on their device.

    Args:
        pixels: uint8 [k, height, width, 3].
        flip: bool [k]; which.
    """
    if not flip.any():
        return pixels
    which = on_device(flip, pixels.device).view(-1, 1, 1, 1)
    return torch.where(which, pixels.flip(2), pixels)


def versions(pixels: torch.Tensor, flip: NDArray[np.bool_]) -> torch.Tensor:
    """Images that are shown as they are, or mirrored, once for each round.

    Args:
        pixels: uint8 [k, height, width, 3].
        flip: bool [rounds, k].

    Returns:
        uint8 [rounds, k, height, width, 3].
    """
    return torch.stack([mirrored(pixels, row) for row in flip]) if len(flip) > 1 else mirrored(pixels, flip[0])[None]
