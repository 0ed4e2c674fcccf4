"""timm: create_dataset and create_loader.

https://huggingface.co/docs/timm/reference/data and timm/data/loader.py. With its prefetcher timm collates uint8 images
(`fast_collate`) and normalises them on the device; what is measured is the uint8 batch before that, because nobody here
normalises. On a CPU the prefetcher has no stream to work on. The transforms are what `create_transform` gives with a
prefetcher (flip, `ToNumpy`), less the resizing of images that have their size already.
"""

import torch
from protocol import Epochs, Options, Peer, serve
from timm.data import create_dataset, create_loader
from timm.data.transforms import ToNumpy
from torchvision.transforms import Compose, RandomHorizontalFlip


def open_epochs(options: Options) -> Epochs:
    """The loader."""
    dataset = create_dataset("", root=str(options.images))
    loader = create_loader(
        dataset,
        input_size=(3, options.size, options.size),
        batch_size=options.batch,
        is_training=True,
        num_workers=options.workers,
        persistent_workers=True,
        use_prefetcher=True,
        device=torch.device("cpu"),
    )
    dataset.transform = Compose([RandomHorizontalFlip(), ToNumpy()])
    return lambda: loader.loader


if __name__ == "__main__":
    serve(Peer(packages=("timm", "torch", "torchvision", "pillow"), open=open_epochs, encodings=("jpeg",)))
