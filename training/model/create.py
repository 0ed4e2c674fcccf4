"""Make a model from its name, with or without weights to start from."""

from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from pipelines.errors import UsageError
from training.model.classifier import calm_classifier, classifier_names
from training.model.cv_models import create_cv_model, create_seed_model
from training.model.names import definition_of as definition_of
from training.model.names import resolve
from training.model.summed import SummedModel
from training.model.zoo.build import build_model
from training.model.zoo.schema import read_definition


def create_model(
    name: str,
    num_classes: int,
    *,
    drop_rate: float = 0.0,
    drop_path: float = 0.0,
    weights: Path | None = None,
    definition: dict[str, Any] | None = None,
) -> nn.Module:
    """Make a model.

    Args:
        name: A name of timm (`mobilenetv3_small_050`), of a definition that comes with Tacopress
            (`mobilenetv3_large`), of pytorchcv (`shufflenet_g3_wd4`), of the seed network (`shufflenet_g3_x025_2_5_2`),
            or a YAML file; `sum:A+B` adds up the logits of two networks of timm or pytorchcv. Where two have a name,
            timm wins; `timm:`, `yaml:` and `pytorchcv:` before it decide.
        num_classes: Outputs; they win over the number that a definition names for its last layer.
        drop_rate: Dropout before the classifier.
        drop_path: Stochastic depth: how often the last shortcut drops its block in training.
        weights: State dict to start from, `.safetensors` or `.pth` of the same architecture; tensors of another
            classifier are left out. None starts from random weights. Nothing is downloaded.
        definition: Build this definition; `name` is then only what messages call it.

    Returns:
        The model on the CPU, in training mode. `preprocessing` tells what it expects.

    Raises:
        UsageError: No such model, a wrong definition, or weights that don't belong to it.
    """
    if definition is not None:
        model: nn.Module = build_model(definition, num_classes, source=name, drop_rate=drop_rate, drop_path=drop_path)
    else:
        model = _from_name(name, num_classes, drop_rate, drop_path)
    calm_classifier(model)
    if weights is not None:
        load_weights(model, weights)
    return model


def _from_name(name: str, num_classes: int, drop_rate: float, drop_path: float) -> nn.Module:
    origin, bare = resolve(name)
    if origin == "timm":
        return _from_timm(bare, num_classes, drop_rate, drop_path)
    if origin == "yaml":
        value = read_definition(Path(bare))
        return build_model(value, num_classes, source=bare, drop_rate=drop_rate, drop_path=drop_path)
    if origin == "sum":
        return _sum_of(bare, num_classes, drop_rate, drop_path)
    if drop_path:
        raise UsageError(f"{name} has no stochastic depth; leave drop_path at 0 or name a model of timm")
    make = create_seed_model if origin == "seed" else create_cv_model
    return make(bare, num_classes, drop_rate=drop_rate)


def _sum_of(names: str, num_classes: int, drop_rate: float, drop_path: float) -> nn.Module:
    """Two networks as one."""
    both = names.split("+")
    if len(both) != 2 or any(resolve(name)[0] in ("yaml", "sum") for name in both):
        raise UsageError(
            f"sum:{names}: name two networks of timm or pytorchcv with a + between, for example "
            "sum:shufflenet_g3_x025_2_5_2+shufflenet_g3_x025_1_1_1"
        )
    first, second = (_from_name(name, num_classes, drop_rate, drop_path) for name in both)
    if preprocessing(first) != preprocessing(second):
        raise UsageError(f"sum:{names}: the two expect images normalised in different ways; name others")
    return SummedModel(first, second, *preprocessing(first))


def _from_timm(name: str, num_classes: int, drop_rate: float, drop_path: float) -> nn.Module:
    options: dict[str, float] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, drop_rate=drop_rate, **options
        )
    except TypeError as error:
        if not drop_path or "drop_path_rate" not in str(error):
            raise
        raise UsageError(f"{name} has no stochastic depth; leave drop_path at 0 or name another model") from error
    return model


def check_input_size(model: nn.Module, name: str, size: int) -> None:
    """See whether the network can take images of a size.

    Raises:
        UsageError: It cannot.
    """
    was_training = model.training
    try:
        with torch.inference_mode():
            logits = model.eval()(torch.zeros(1, 3, size, size))
        if not isinstance(logits, torch.Tensor) or logits.shape != (1, getattr(model, "num_classes", logits.shape[-1])):
            raise ValueError("it does not give one row of logits for an image")
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"{name} cannot take images of {size} px{_own_size(model)} ({error}); choose another size or model"
        ) from error
    finally:
        model.train(was_training)


def _own_size(model: nn.Module) -> str:
    """Models of pytorchcv know the size they were made for, and the layers of some depend on it."""
    size = getattr(model, "in_size", None)
    return f", it is built for {size[0]} px" if isinstance(size, tuple) else ""


def preprocessing(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) per channel that a model's weights were trained with, for levels in [0, 1].

    Models of pytorchcv and definitions have ImageNet's.
    """
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    return tuple(config.get("mean", (0.485, 0.456, 0.406))), tuple(config.get("std", (0.229, 0.224, 0.225)))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the state dict in a file into a model, all but the classifier where the number of classes differs.

    Raises:
        UsageError: The file is missing, no state dict, or does not fit the model.
    """
    load_state(model, read_state_dict(path), str(path))


def load_state(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict into a model, all but the classifier where the number of classes differs.

    Args:
        model: Gets the weights.
        state: Tensors by name.
        source: Where they come from, for messages.

    Raises:
        UsageError: They do not fit the model.
    """
    own = model.state_dict()
    classifier = tuple(f"{name}." for name in classifier_names(model))
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    missing = [key for key in own if key not in fitting and not key.startswith(classifier)]
    if missing:
        raise UsageError(
            f"{source} does not fit the model: {len(missing)} of {len(own)} tensors are missing or have another shape "
            f"(first: {missing[0]}); give weights of the same architecture"
        )
    model.load_state_dict(fitting, strict=False)


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
