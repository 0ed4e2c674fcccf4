"""Which layers of a network may be factorized, and why the others may not."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from compress.factor.work import Positions
from pipelines.errors import UsageError
from training.model.classifier import classifier_names
from training.model.edits.factor import CONVOLUTIONS, LINEARS, Layer
from training.model.replace import replace_module


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which layers to look at.

    Attributes:
        patterns: Globs over module paths, `layer1.*` for example; one must match.
        classifier: Also the classifier.
        stem: Also the first convolution.
    """

    patterns: tuple[str, ...] = ("*",)
    classifier: bool = False
    stem: bool = False


def check_patterns(model: nn.Module, patterns: Sequence[str], name: str) -> None:
    """See whether each pattern means a layer.

    Raises:
        UsageError: One means none.
    """
    paths = [path for path, module in model.named_modules() if isinstance(module, Layer)]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise UsageError(
                f"--layers {pattern} is no layer of {name}; it has {', '.join(paths[:4])}{', …' * (len(paths) > 4)}"
            )


def choose_layers(
    model: nn.Module, choice: Choice, positions: Mapping[str, Positions], size: int
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Tell the layers that may be factorized from those that may not.

    Args:
        model: In evaluation mode.
        choice: Which layers to look at.
        positions: Of the layers that run, in the order in which they do, see `measure_work`.
        size: Side of the images, px.

    Returns:
        Module path → layer, and module path → why not; only convolutions and fully connected layers are named.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, Layer)}
    reasons = {path: _reason(model, path, layers, choice, positions) for path in layers}
    taken = {path: layer for path, layer in layers.items() if reasons[path] is None}
    read = _read_by_parents(model, tuple(taken), size)
    skipped = {path: reason for path, reason in reasons.items() if reason is not None}
    skipped |= dict.fromkeys(read, "its parent reads more of it than its answer")
    return {path: layer for path, layer in taken.items() if path not in read}, skipped


def _reason(
    model: nn.Module, path: str, layers: Mapping[str, Layer], choice: Choice, positions: Mapping[str, Positions]
) -> str | None:
    layer = layers[path]
    if not any(fnmatchcase(path, pattern) for pattern in choice.patterns):
        return "--layers leaves it out"
    if path not in positions:
        return "it does not run by itself: its parent uses its weight, or nobody does"
    names = classifier_names(model)
    if not choice.classifier and any(path == name or path.startswith(f"{name}.") for name in names):
        return "the classifier; --classifier takes it too"
    if not choice.stem and path == _first_convolution(layers, positions):
        return "the first convolution; --stem takes it too"
    if type(layer) not in (*CONVOLUTIONS, *LINEARS):
        return f"a {type(layer).__name__} does more with its weight than a plain layer"
    return _peculiar(model, layer)


def _peculiar(model: nn.Module, layer: Layer) -> str | None:
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    if any(owners[id(parameter)] > 1 for parameter in layer.parameters(recurse=False)):
        return "it stands in several places, or shares its weight"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"it pads with {layer.padding_mode}, not with zeros"
    if not bool(torch.isfinite(layer.weight).all()):
        return "its weight holds values that are no numbers"
    return None if bool(layer.weight.any()) else "its weight is zero"


def _first_convolution(layers: Mapping[str, Layer], positions: Mapping[str, Positions]) -> str | None:
    return next((path for path in positions if isinstance(layers.get(path), nn.Conv2d)), None)


def _read_by_parents(model: nn.Module, paths: Sequence[str], size: int) -> set[str]:
    """Layers whose parents look at more than what comes out of them: with a wrapper around these the network fails.

    All are tried at once; only where that fails, one after the other.
    """
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = _answer(model, (), images)
    if _same(_answer(model, paths, images), expected):
        return set()
    return {path for path in paths if not _same(_answer(model, (path,), images), expected)}


def _answer(model: nn.Module, wrapped: Sequence[str], images: Tensor) -> Tensor | None:
    twin = copy.deepcopy(model).eval()
    for path in wrapped:
        replace_module(twin, path, nn.Sequential(twin.get_submodule(path)))
    try:
        with torch.inference_mode():
            answer: Tensor = twin(images)
    except (AttributeError, TypeError, RuntimeError, ValueError, IndexError):
        return None
    return answer


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and torch.allclose(first, second, equal_nan=True)
