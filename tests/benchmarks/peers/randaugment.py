"""torchvision v2's RandAugment with one op per image in PyTorch's DataLoader.

As in torchvision's own training reference (references/classification/presets.py, backend "PIL", the default;
https://github.com/pytorch/vision): flip, then `RandAugment` with bilinear interpolation on Pillow's images, then
`PILToTensor`; with `num_ops=1` instead of 2. On tensors it is less than half as fast here. The variant `nearest` leaves
interpolation and fill at their defaults, which is rougher and faster. See
https://pytorch.org/vision/stable/generated/torchvision.transforms.v2.RandAugment.html.
"""

from protocol import Batches, Epochs, Options, Peer, serve
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

GREY = (128, 128, 128)


def open_epochs(options: Options) -> Epochs:
    """The loader."""
    if options.variant == "nearest":
        augment = v2.RandAugment(num_ops=1)
    else:
        augment = v2.RandAugment(num_ops=1, interpolation=InterpolationMode.BILINEAR, fill=GREY)
    loader: DataLoader[Batches] = DataLoader(
        ImageFolder(str(options.images), transform=v2.Compose([v2.RandomHorizontalFlip(), augment, v2.PILToTensor()])),
        batch_size=options.batch,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=True,
    )
    return lambda: loader


if __name__ == "__main__":
    serve(Peer(packages=("torch", "torchvision", "pillow"), open=open_epochs, encodings=("jpeg",)))
