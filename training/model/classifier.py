"""Which layer of a model is its classifier, and how it starts."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Paths of the layers that turn features into logits.

    timm says so itself. Elsewhere it is the last fully connected layer or convolution with as many outputs as the
    model has classes (`num_classes`), and the batch normalization right behind it if there is one.
    """
    names = getattr(model, "pretrained_cfg", {}).get("classifier", ())
    if names:
        return (names,) if isinstance(names, str) else tuple(names)
    count = getattr(model, "num_classes", None)
    paths = [path for path, module in model.named_modules() if count is not None and _outputs(module) == count]
    return (paths[-1], *_normalization_behind(model, paths[-1])) if paths else ()


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def calm_classifier(model: nn.Module) -> None:
    """Start the classifier near zero.

    timm's EfficientNet family scales its initial weights by the number of outputs (1 / sqrt(6) for six classes), which
    starts training at logits of several units and a loss near 5 instead of ln 6 = 1.8. A convolution with batch
    normalization behind it is left alone: normalization takes the scale away again, and tiny weights only make its
    gradients huge.
    """
    for name in classifier_names(model):
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear | nn.Conv2d) and not _normalization_behind(model, name):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _normalization_behind(model: nn.Module, name: str) -> tuple[str, ...]:
    leaves = [(path, module) for path, module in model.named_modules() if not list(module.children())]
    index = [path for path, _ in leaves].index(name)
    return tuple(path for path, module in leaves[index + 1 : index + 2] if isinstance(module, _BatchNorm))
