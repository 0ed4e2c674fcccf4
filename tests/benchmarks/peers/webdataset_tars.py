"""WebDataset: tar shards, decoded and batched in the workers of a WebLoader.

https://webdataset.github.io/webdataset/gettingstarted/ ("the recommended way of using IterableDataset with DataLoader
is to do the batching explicitly in the Dataset") and https://github.com/tmbdev/wds-distributed: shuffle the shards and
a buffer of 1,000 samples, batch inside the workers. The shuffle between workers that they offer besides
(`.unbatched().shuffle(1000).batched(n)`) is left out: it only costs. Raw pixels are stored as plain bytes, which
WebDataset hands over as they are; its `.npy` would parse a header per image.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds  # type: ignore[import-untyped]
from PIL import Image
from protocol import Epochs, Options, Peer, flipped, samples, serve

SHARDS = 8
"""Of equal numbers of images: each worker must have several."""
BUFFER = 1000


def convert(options: Options) -> None:
    """Deal the images to shards as they come in a random order, so that each shard has every class."""
    files = samples(options.images)
    order = np.random.default_rng(options.seed).permutation(len(files))
    per_shard = -(-len(files) // SHARDS)
    with wds.ShardWriter(str(options.work / "images-%03d.tar"), maxcount=per_shard, verbose=0) as writer:
        for key, index in enumerate(order.tolist()):
            file, label = files[index]
            writer.write({"__key__": f"{key:06d}", "cls": str(label), **_image(file, options.encoding)})


def _image(file: str, encoding: str) -> dict[str, bytes]:
    data = Path(file).read_bytes()
    if encoding == "jpeg":
        return {"jpg": data}
    with Image.open(io.BytesIO(data)) as image:
        return {"rgb": np.asarray(image.convert("RGB")).transpose(2, 0, 1).tobytes()}


def open_epochs(options: Options) -> Epochs:
    """The loader."""

    def prepared(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        if options.encoding == "raw":
            pixels = torch.frombuffer(bytearray(sample["rgb"]), dtype=torch.uint8).view(3, options.size, options.size)
        else:
            pixels = torch.from_numpy(sample["jpg"]).permute(2, 0, 1)
        return flipped(pixels), int(sample["cls"])

    dataset = wds.WebDataset(
        sorted(map(str, options.work.glob("images-*.tar"))), shardshuffle=SHARDS, seed=options.seed
    ).shuffle(BUFFER)
    dataset = dataset.decode("rgb8") if options.encoding == "jpeg" else dataset
    dataset = dataset.map(prepared).batched(options.batch, collation_fn=_collate)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=options.workers, persistent_workers=True)
    return lambda: loader


def _collate(pairs: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*pairs, strict=True)
    return torch.stack(images), torch.tensor(labels)


if __name__ == "__main__":
    serve(Peer(packages=("webdataset", "torch", "pillow"), open=open_epochs, convert=convert))
