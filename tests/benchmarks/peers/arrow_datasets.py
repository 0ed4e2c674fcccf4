"""Hugging Face datasets: an Arrow file on disk, with_transform, PyTorch's DataLoader.

https://huggingface.co/docs/datasets/use_with_pytorch ("Optimize data loading": save_to_disk, load_from_disk, workers)
and https://huggingface.co/docs/datasets/image_process (transforms on the fly, a whole batch at a time). JPEG files are
an `Image` column, which holds their bytes; raw pixels are a binary column, because lists and arrays of numbers are read
far more slowly.
"""

import os
import shutil

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # before the import, which looks

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value, load_from_disk
from PIL import Image as Pillow
from protocol import Batches, Epochs, Options, Peer, flipped, samples, serve
from torch.utils.data import DataLoader


def convert(options: Options) -> None:
    """Write the Arrow files."""
    files = samples(options.images)
    labels = ClassLabel(num_classes=1 + max(label for _, label in files))
    if options.encoding == "jpeg":
        columns = {"image": [file for file, _ in files], "label": [label for _, label in files]}
        dataset = Dataset.from_dict(columns, features=Features({"image": Image(), "label": labels}))
    else:
        features = Features({"image": Value("binary"), "label": labels})
        dataset = Dataset.from_generator(
            _rows, features=features, gen_kwargs={"files": files}, cache_dir=str(options.work / "cache")
        )
    dataset.save_to_disk(str(options.work / "arrow"))
    shutil.rmtree(options.work / "cache", ignore_errors=True)  # where the generator's rows were first


def _rows(files: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    for file, label in files:
        with Pillow.open(file) as image:
            yield {"image": np.asarray(image.convert("RGB")).transpose(2, 0, 1).tobytes(), "label": label}


def open_epochs(options: Options) -> Epochs:
    """The loader."""
    shape = (3, options.size, options.size)

    def prepared(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if options.encoding == "raw":
            images = [torch.frombuffer(bytearray(data), dtype=torch.uint8).view(shape) for data in batch["image"]]
        else:
            images = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in batch["image"]]
        return {"image": [flipped(image) for image in images], "label": batch["label"]}

    dataset = load_from_disk(str(options.work / "arrow")).with_transform(prepared)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=options.batch, shuffle=True, num_workers=options.workers, persistent_workers=True
    )

    def epochs() -> Batches:
        for batch in loader:
            yield batch["image"], batch["label"]

    return epochs


if __name__ == "__main__":
    serve(Peer(packages=("datasets", "pyarrow", "torch", "pillow"), open=open_epochs, convert=convert))
