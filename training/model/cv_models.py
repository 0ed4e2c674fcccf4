"""Models of pytorchcv, for images of any size and any number of classes, and the competition's seed network."""

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.errors import UsageError
from training.model.replace import replace_module

SEED = "shufflenet_g3_x025"
"""ShuffleNetV1 with 3 groups at a quarter of the width; pytorchcv's own `shufflenet_g3_wd4` is its 4-8-4."""

_SEED_NAME = re.compile(SEED + r"(?:_(\d{1,2})_(\d{1,2})_(\d{1,2}))?(_conv)?")
_NO_CLASSIFIER = re.compile(
    r"\w+_(ade20k|celebamaskhq|cityscapes|coco|voc|widerface)|(jasper|msdnet|ntsnet|pfpcnet|prnet|propainter|quartznet)\w*"
    r"|(nvpattexp|raft|superpointnet|visemenet|voca)\w*"
)
"""pytorchcv's names for segmentation, detection, poses, speech, video, and classifiers with several outputs."""


@lru_cache(maxsize=1)
def cv_names() -> tuple[str, ...]:
    """The classifiers of pytorchcv. The import takes seconds, so nobody pays for it who does not ask."""
    return tuple(sorted(name for name in _constructors() if not _NO_CLASSIFIER.fullmatch(name)))


def _constructors() -> dict[str, Callable[..., nn.Module]]:
    from pytorchcv import model_provider

    return model_provider._models


def cv_family(name: str) -> str:
    """The family of a classifier of pytorchcv: the file that it stands in, whatever data set it is for."""
    return re.sub(r"_(cifar|cub|svhn)\d*$", "", _constructors()[name].__module__.rpartition(".")[2])


def is_seed_name(name: str) -> bool:
    """Whether a name means the seed network: `shufflenet_g3_x025[_A_B_C][_conv]`."""
    return _SEED_NAME.fullmatch(name) is not None


def create_cv_model(name: str, num_classes: int, *, drop_rate: float = 0.0) -> nn.Module:
    """Make a model of pytorchcv with random weights.

    Its last average pooling has the size that the features have at the size the model was made for; it becomes a global
    one, which is the same there and works at every other size.

    Args:
        name: One of `cv_names`.
        num_classes: Outputs.
        drop_rate: Dropout before the head, beside any that the model has.

    Raises:
        UsageError: The model is no classifier.
    """
    if _NO_CLASSIFIER.fullmatch(name):
        raise UsageError(f"{name} of pytorchcv is no image classifier; name another model")
    model = _construct(_constructors()[name], num_classes)
    if not isinstance(getattr(model, "features", None), nn.Module) or not hasattr(model, "output"):
        raise UsageError(f"{name} of pytorchcv is no image classifier; name another model")
    for path, pool in list(model.named_modules()):
        if _is_last_pool(path, pool):
            replace_module(model, path, nn.AdaptiveAvgPool2d(1))
    if drop_rate:
        _drop_features(model, name, drop_rate)
    return model


def _construct(constructor: Callable[..., nn.Module], num_classes: int) -> nn.Module:
    try:
        return constructor(num_classes=num_classes)
    except AssertionError:  # the CIFAR families take the 10 or 100 classes of their data sets and nothing else
        model = constructor()
        output: Any = model.output
        model.output = nn.Linear(output.in_features, num_classes)
        model.num_classes = num_classes  # type: ignore[assignment] # an attribute, not a tensor
        return model


def _is_last_pool(path: str, module: nn.Module) -> bool:
    """Whether a module shrinks features of one certain size to a single pixel.

    pytorchcv flattens what comes out into exactly as many values as there are channels, so with stride 1 and no
    padding its kernel is as large as the features are at the model's own size: there it is the global average.
    """
    if not isinstance(module, nn.AvgPool2d) or module.kernel_size in (1, (1, 1)):
        return False
    at_the_end = path.startswith("output.") or path.startswith("features.final")
    return at_the_end and module.stride in (1, (1, 1)) and module.padding in (0, (0, 0))


def _drop_features(model: nn.Module, name: str, rate: float) -> None:
    """Add dropout behind the features; it has no weights, so names in a state dict stay what they are."""
    if type(model.features) is not nn.Sequential:
        raise UsageError(f"{name} of pytorchcv takes no dropout; leave drop_rate at 0 or name another model")
    model.features.add_module("dropout", nn.Dropout(rate))


def create_seed_model(name: str, num_classes: int, *, drop_rate: float = 0.0) -> nn.Module:
    """Make the competition's seed network, whole or with fewer units, with random weights.

    Args:
        name: `shufflenet_g3_x025`, 4-8-4 units, or for example `shufflenet_g3_x025_2_5_2`; a stage of 0 units is left
            out, from the back. `_conv` at the end makes the classifier a 1x1 convolution without bias.
        num_classes: Outputs.
        drop_rate: Dropout before the classifier.

    Raises:
        UsageError: An impossible number of units.
    """
    match = _SEED_NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} names no seed network; write for example {SEED}_2_5_2")
    units = [int(part) for part in match.groups()[:3]] if match[1] else [4, 8, 4]
    if units[0] == 0 or any(later and not earlier for earlier, later in pairwise(units)):
        raise UsageError(f"{name}: stages can be left out from the back only; name at least one unit in those before")
    model = _shufflenet(units, num_classes)
    if match[4]:
        model = _ConvHead(model)
    if drop_rate:
        _drop_features(model, name, drop_rate)
    return model


def _shufflenet(units: list[int], num_classes: int) -> nn.Module:
    from pytorchcv.models.shufflenet import ShuffleNet

    channels = [[width] * count for width, count in zip((60, 120, 240), units, strict=True) if count]
    model: nn.Module = ShuffleNet(channels=channels, init_block_channels=6, groups=3, num_classes=num_classes)
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # type: ignore[union-attr] # pytorchcv is not typed
    return model


class _ConvHead(nn.Module):
    """A ShuffleNet whose classifier is a 1x1 convolution without bias.

    Args:
        model: With a linear classifier, whose place the convolution takes.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - pytorchcv is not typed
        super().__init__()
        self.num_classes: int = model.num_classes
        self.features = model.features
        self.output = nn.Conv2d(model.output.in_features, model.num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: float [n, 3, h, w].
        """
        return torch.flatten(self.output(self.features(x)), 1)
