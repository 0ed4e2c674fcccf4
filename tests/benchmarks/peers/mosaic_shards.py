"""MosaicML Streaming: MDS shards, StreamingDataset and PyTorch's DataLoader.

https://docs.mosaicml.com/projects/streaming/en/stable/getting_started/quick_start.html, and
https://docs.mosaicml.com/projects/streaming/en/latest/preparing_datasets/basic_dataset_conversion.html for the columns:
`jpeg` stores a JPEG file's own bytes, `ndarray:uint8:3,S,S` pixels of a known shape, without a header. No compression:
the shards are local. `batch_size` is given to the dataset as well as to the loader, as the guide asks.
"""

from typing import Any

import numpy as np
import streaming  # type: ignore[import-not-found]
import torch
from PIL import Image
from protocol import Epochs, Options, Peer, flipped, samples, serve
from torch.utils.data import DataLoader


def convert(options: Options) -> None:
    """Write the shards."""
    raw = options.encoding == "raw"
    columns = {"image": f"ndarray:uint8:3,{options.size},{options.size}" if raw else "jpeg", "label": "int"}
    with streaming.MDSWriter(out=str(options.work / "shards"), columns=columns) as writer:
        for file, label in samples(options.images):
            with Image.open(file) as image:
                writer.write({"image": _pixels(image) if raw else image, "label": label})


def _pixels(image: Image.Image) -> Any:
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


class Images(streaming.StreamingDataset):  # type: ignore[misc]
    """Samples as tensors, prepared in `__getitem__` as the guide does it."""

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        """One sample."""
        sample = super().__getitem__(at)
        image = sample["image"]
        if isinstance(image, Image.Image):
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        else:
            pixels = torch.from_numpy(image.copy())  # it cannot be written to, which torch warns about
        return flipped(pixels), sample["label"]


def open_epochs(options: Options) -> Epochs:
    """The loader."""
    streaming.base.util.clean_stale_shared_memory()  # what a killed run left would stop this one
    dataset = Images(
        local=str(options.work / "shards"), shuffle=True, shuffle_seed=options.seed, batch_size=options.batch
    )
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=options.batch, num_workers=options.workers, persistent_workers=True
    )
    return lambda: loader


if __name__ == "__main__":
    serve(Peer(packages=("mosaicml-streaming", "torch", "numpy", "pillow"), open=open_epochs, convert=convert))
