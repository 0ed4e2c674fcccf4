"""FFCV: one .beton file, threads, compiled transforms.

https://docs.ffcv.io/quickstart.html, https://docs.ffcv.io/making_dataloaders.html (order RANDOM),
https://docs.ffcv.io/parameter_tuning.html (a set that fits into memory: os_cache) and
https://docs.ffcv.io/working_with_images.html: write_mode `jpg` (it encodes anew, quality 90 here as everywhere) or
`raw`; images of one size need `SimpleRGBImageDecoder` only. `ToTorchImage` gives channels-last tensors, its default.
Its decoder asks libjpeg-turbo for the fast, less exact inverse DCT (libffcv.cpp): decoded levels are about one off.
"""

import numpy as np
from ffcv.fields import IntField, RGBImageField  # type: ignore[import-not-found]
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder  # type: ignore[import-not-found]
from ffcv.loader import Loader, OrderOption  # type: ignore[import-not-found]
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage  # type: ignore[import-not-found]
from ffcv.writer import DatasetWriter  # type: ignore[import-not-found]
from numpy.typing import NDArray
from PIL import Image
from protocol import Epochs, Options, Peer, samples, serve

QUALITY = 90


class Images:
    """The indexed dataset that a writer asks for."""

    def __init__(self, files: list[tuple[str, int]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        file, label = self.files[index]
        with Image.open(file) as image:
            return np.array(image.convert("RGB")), label


def convert(options: Options) -> None:
    """Write the file."""
    mode = "raw" if options.encoding == "raw" else "jpg"
    image = RGBImageField(write_mode=mode, max_resolution=options.size, jpeg_quality=QUALITY)
    fields = {"image": image, "label": IntField()}
    writer = DatasetWriter(str(options.work / "images.beton"), fields, num_workers=options.workers)
    writer.from_indexed_dataset(Images(samples(options.images)))


def open_epochs(options: Options) -> Epochs:
    """The loader."""
    loader = Loader(
        str(options.work / "images.beton"),
        batch_size=options.batch,
        num_workers=options.workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,
        seed=options.seed,
        pipelines={
            "image": [SimpleRGBImageDecoder(), RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    return lambda: loader


if __name__ == "__main__":
    serve(Peer(packages=("ffcv", "numba", "torch", "opencv-python-headless"), open=open_epochs, convert=convert))
