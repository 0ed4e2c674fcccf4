"""A network together with parts that only training uses: what looks at its inner layers and vanishes with the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from pipelines.errors import UsageError
from training.engine.objective import LOGITS
from training.model.classifier import classifier_names
from training.model.shapes import output_shapes

EMBEDDING = "embedding"
"""Stands for what goes into the classifier, one vector per image, where a path of a module is expected."""


@dataclass(frozen=True)
class Part:
    """Something that only training uses.

    Attributes:
        path: The module of the network whose output it gets, or `EMBEDDING`.
        module: Turns that into a tensor with a row per image.
    """

    path: str
    module: nn.Module


class Taps:
    """Keeps what some modules of a network put out in a forward pass.

    Args:
        network: Any network.
        paths: Of modules, and `EMBEDDING`.

    Raises:
        UsageError: There is no such module.
    """

    def __init__(self, network: nn.Module, paths: list[str]) -> None:
        self.seen: dict[str, Tensor] = {}
        modules = dict(network.named_modules())
        for path in dict.fromkeys(paths):
            if path == EMBEDDING:
                classifier, *others = classifiers_of(network)
                if others:
                    raise UsageError(
                        f"{type(network).__name__} has several classifiers, so no one vector goes into them"
                    )
                modules[classifier].register_forward_pre_hook(self._keep_input)
            elif path in modules and path:
                modules[path].register_forward_hook(partial(self._keep, path))
            else:
                parts = ", ".join(name for name, _ in network.named_children())
                raise UsageError(f"the network has no module {path!r}; it is made of {parts}")

    def _keep(self, path: str, module: nn.Module, _inputs: Any, output: Any) -> None:  # noqa: ANN401 - as torch's
        if not isinstance(output, Tensor):
            raise UsageError(f"{path} ({type(module).__name__}) puts out {type(output).__name__}, not one tensor")
        self.seen[path] = output.clone()  # the layer behind it may work in place

    def _keep_input(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.seen[EMBEDDING] = as_vectors(inputs[0])


def classifiers_of(network: nn.Module) -> list[str]:
    """Paths of the layers that turn features into logits: one in most networks.

    Raises:
        UsageError: There is none that can be found.
    """
    found = _classifiers(network)
    if not found:
        raise UsageError(f"the classifier of {type(network).__name__} cannot be found; name another network")
    return found


def _classifiers(network: nn.Module) -> list[str]:
    names = classifier_names(network)
    return [name for name in names if isinstance(network.get_submodule(name), nn.Linear | nn.Conv2d)]


def as_vectors(features: Tensor) -> Tensor:
    """One vector per image: maps [k, c, h, w] are averaged over their pixels, vectors stay."""
    return features.mean((2, 3)) if features.ndim == 4 else features.flatten(1)


class Learner(nn.Module):
    """A network that is trained together with some parts.

    In evaluation it is the network and nothing else. In training it gives a dictionary: `logits`, and what each part
    makes of the layer that it looks at, under the part's name.

    Args:
        network: What is kept in the end.
        parts: By name, without dots.
        lone_classifier: The classifier learns, but what it learns does not reach the layers before it.
    """

    def __init__(self, network: nn.Module, parts: Mapping[str, Part], *, lone_classifier: bool = False) -> None:
        super().__init__()
        self.network = network
        self.parts = nn.ModuleDict({name: part.module for name, part in parts.items()})
        self._paths = {name: part.path for name, part in parts.items()}
        self._taps = Taps(network, list(self._paths.values()))
        if lone_classifier:
            for path in classifiers_of(network):
                network.get_submodule(path).register_forward_pre_hook(_detached)

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Run the network, see the class.

        Args:
            images: Float [n, 3, size, size].
        """
        logits: Tensor = self.network(images)
        seen = dict(self._taps.seen)
        self._taps.seen.clear()  # what is kept longer keeps the memory of the whole pass
        if not self.training:
            return logits
        made = {name: module(seen[self._paths[name]]) for name, module in self.parts.items()}
        return {LOGITS: logits, **made}


def _detached(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].detach(), *inputs[1:])


def deployed(model: nn.Module) -> nn.Module:
    """What is kept of a model after training: itself, or the network without its parts."""
    return model.network if isinstance(model, Learner) else model


def tap_shapes(network: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
    """What comes out of each module for one image, in the order in which the modules finish.

    Args:
        network: On the CPU; comes back in the mode it was in.
        size: Side of the images in px.

    Returns:
        Path → shape without the batch, for modules that put out one tensor; and `EMBEDDING` where a classifier is
        found. A module that runs several times counts where it ran last.
    """
    into: list[tuple[int, ...]] = []

    def note_input(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        into.append(tuple(as_vectors(inputs[0]).shape[1:]))

    heads = _classifiers(network)
    if len(heads) > 1:  # no one vector goes into all of them
        heads = []
    handles = [network.get_submodule(head).register_forward_pre_hook(note_input) for head in heads]
    try:
        found = output_shapes(network, size)
    finally:
        for handle in handles:
            handle.remove()
    shapes: dict[str, tuple[int, ...]] = {}
    for path, shape in found.items():
        if path in heads:
            shapes[EMBEDDING] = into[-1]
        if path and shape is not None:
            shapes[path] = shape
    return shapes


def last_map(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Path of the last module that puts out a map [c, h, w] of more than one pixel.

    Args:
        shapes: From `tap_shapes`.

    Raises:
        UsageError: There is none.
    """
    maps = [path for path, shape in shapes.items() if len(shape) == 3 and shape[1] * shape[2] > 1]
    if not maps:
        raise UsageError("no layer of the network puts out a map; name layers, or take larger images")
    return maps[-1]
