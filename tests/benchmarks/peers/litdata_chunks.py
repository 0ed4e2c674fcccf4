"""LitData: chunks written by `optimize`, read by StreamingDataset and StreamingDataLoader.

https://github.com/Lightning-AI/litData (README: "Optimize images as JPEG", "Shuffle, seed, and drop_last",
"StreamingDataset & StreamingDataLoader knobs"): a `JpegImageFile` is stored as the bytes of its file and comes back as
a decoded tensor; raw pixels are stored as torch tensors. The README's chunks of 64 MB would leave a small set in one
chunk, for one worker; here each worker has several.
"""

from typing import Any

import litdata  # type: ignore[import-not-found]
import numpy as np
import torch
from PIL import Image
from protocol import Batches, Epochs, Options, Peer, flipped, folder_bytes, samples, serve

CHUNKS = 16
LEAST_CHUNK = 1 << 20


def _jpeg(sample: tuple[str, int]) -> dict[str, Any]:
    return {"image": Image.open(sample[0]), "label": sample[1]}


def _raw(sample: tuple[str, int]) -> dict[str, Any]:
    with Image.open(sample[0]) as image:
        pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return {"image": torch.from_numpy(np.ascontiguousarray(pixels)), "label": sample[1]}


def convert(options: Options) -> None:
    """Write the chunks."""
    files = samples(options.images)
    raw = options.encoding == "raw"
    total = len(files) * 3 * options.size**2 if raw else folder_bytes(options.images)
    litdata.optimize(
        fn=_raw if raw else _jpeg,
        inputs=files,
        output_dir=str(options.work / "chunks"),
        num_workers=options.workers,
        chunk_bytes=max(LEAST_CHUNK, total // CHUNKS),
    )


def _prepared(sample: dict[str, Any]) -> tuple[Any, int]:
    return flipped(sample["image"]), sample["label"]


def open_epochs(options: Options) -> Epochs:
    """The loader."""
    dataset = litdata.StreamingDataset(
        str(options.work / "chunks"), shuffle=True, drop_last=False, seed=options.seed, transform=_prepared
    )
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=options.batch, num_workers=options.workers, persistent_workers=True
    )

    def epochs() -> Batches:
        yield from loader

    return epochs


if __name__ == "__main__":
    serve(Peer(packages=("litdata", "torch", "torchvision", "pillow"), open=open_epochs, convert=convert))
