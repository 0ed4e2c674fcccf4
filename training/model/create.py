"""Make a model from its name, with or without weights to start from."""

import difflib
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from pipelines.errors import UsageError


def create_model(name: str, num_classes: int, *, drop_rate: float = 0.0, weights: Path | None = None) -> nn.Module:
    """Make a model.

    Args:
        name: A timm name, for example `mobilenetv3_small_050`.
        num_classes: Outputs.
        drop_rate: Dropout before the classifier.
        weights: State dict to start from, `.safetensors` or `.pth` of the same architecture; tensors of another
            classifier are left out. None starts from random weights. Nothing is downloaded.

    Returns:
        The model on the CPU, in training mode. `preprocessing` tells what it expects.

    Raises:
        UsageError: No such model, or weights that don't belong to it.
    """
    if name not in timm.list_models():
        raise UsageError(f"unknown model {name!r}{_near_misses(name)}; names are those of timm {timm.__version__}")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, drop_rate=drop_rate)
    _calm_classifier(model)
    if weights is not None:
        load_weights(model, weights)
    return model


def check_input_size(model: nn.Module, name: str, size: int) -> None:
    """See whether the network can take images of a size.

    Raises:
        UsageError: It cannot.
    """
    was_training = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"{name} cannot take images of {size} px ({error}); choose another size or model") from error
    finally:
        model.train(was_training)


def _calm_classifier(model: nn.Module) -> None:
    """Start the classifier near zero.

    timm's EfficientNet family scales its initial weights by the number of outputs (1 / sqrt(6) for six classes), which
    starts training at logits of several units and a loss near 5 instead of ln 6 = 1.8.
    """
    for name in _classifier_names(model):
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _near_misses(name: str) -> str:
    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def preprocessing(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) per channel that a timm model's weights were trained with, for levels in [0, 1]."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    return tuple(config.get("mean", (0.485, 0.456, 0.406))), tuple(config.get("std", (0.229, 0.224, 0.225)))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into a model, all but the classifier where the number of classes differs.

    Raises:
        UsageError: The file is missing, no state dict, or does not fit the model.
    """
    state = read_state_dict(path)
    own = model.state_dict()
    classifier = tuple(f"{name}." for name in _classifier_names(model))
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    missing = [key for key in own if key not in fitting and not key.startswith(classifier)]
    if missing:
        raise UsageError(
            f"{path} does not fit the model: {len(missing)} of {len(own)} tensors are missing or have another shape "
            f"(first: {missing[0]}); give weights of the same architecture"
        )
    model.load_state_dict(fitting, strict=False)


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "pretrained_cfg", {}).get("classifier", ())
    return (names,) if isinstance(names, str) else tuple(names or ())


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors from `.safetensors`, or from a `.pth` file without unpickling anything but tensors.

    Raises:
        UsageError: The file is missing or holds something else.
    """
    if not path.is_file():
        raise UsageError(f"weights {path} do not exist; give a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state) if isinstance(state, dict) else state
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("no state dict in it")
        return state
    except Exception as error:  # damaged zip, refused pickle, wrong header: many kinds, one meaning
        raise UsageError(
            f"{path} holds no weights that can be read safely ({error}); give a plain state dict"
        ) from error
