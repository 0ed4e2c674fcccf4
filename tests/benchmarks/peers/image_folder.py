"""torchvision: ImageFolder and PyTorch's DataLoader.

Pillow decodes, and the flip works on uint8 tensors, as https://pytorch.org/vision/stable/transforms.html advises
("Performance considerations"); here that is a little faster than mirroring Pillow's images. Workers stay between
epochs, as https://pytorch.org/docs/stable/data.html offers it.
"""

from protocol import Batches, Epochs, Options, Peer, serve
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


def open_epochs(options: Options) -> Epochs:
    """The loader."""
    transform = v2.Compose([v2.PILToTensor(), v2.RandomHorizontalFlip()])
    loader: DataLoader[Batches] = DataLoader(
        ImageFolder(str(options.images), transform=transform),
        batch_size=options.batch,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=True,
    )
    return lambda: loader


if __name__ == "__main__":
    serve(Peer(packages=("torch", "torchvision", "pillow"), open=open_epochs, encodings=("jpeg",)))
