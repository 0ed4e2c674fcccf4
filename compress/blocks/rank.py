"""Which blocks matter least."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from compress.blocks.find import bypassed
from compress.press.samples import Samples, quality
from pipelines.errors import UsageError
from training.engine.data import Process
from training.runtimes.torch_runtime import torch_threads

RankBy = Literal["ablation", "weight_std", "cosine", "cka"]
RANKINGS = get_args(RankBy)
NEEDS_IMAGES = ("ablation", "cosine", "cka")
LEAST_IMAGES = 4
"""The unbiased estimate of `cka` exists from so many on."""


@dataclass(frozen=True)
class Ranked:
    """A block and its place.

    Attributes:
        unit: Path of the block.
        value: The lower, the sooner it goes.
        tie: Decides between equal values, likewise.
    """

    unit: str
    value: float
    tie: float = 0.0


def rank(
    by: RankBy,
    model: nn.Module,
    units: Sequence[str],
    samples: Samples | None = None,
    pause: Callable[[], None] = lambda: None,
) -> list[Ranked]:
    """Order blocks: what can be missed most easily comes first; of equals the one that stands later.

    Args:
        by: `ablation`: how much macro F1 falls when the block is bypassed; of equals, by the cross-entropy then.
            `weight_std`: standard deviation of its convolutions' weights. `cosine`: 1 - mean cosine of what goes in and
            what comes out of an image. `cka`: 1 - linear CKA of them.
        model: On the CPU, in evaluation mode; it is left as it is.
        units: Paths, in the order in which they stand in the network.
        samples: What to look at; `weight_std` needs none.
        pause: Called between two blocks; may raise to stop.

    Raises:
        UsageError: There are no samples, or too few.
    """
    found = list(_ranked(by, model, units, samples, pause))
    later = {unit: -place for place, unit in enumerate(units)}
    return sorted(found, key=lambda one: (_number(one.value), _number(one.tie), later[one.unit]))


def _number(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _ranked(
    by: RankBy, model: nn.Module, units: Sequence[str], samples: Samples | None, pause: Callable[[], None]
) -> Iterable[Ranked]:
    if by == "weight_std":
        return [Ranked(unit, weight_std(model.get_submodule(unit))) for unit in units]
    if samples is None:
        raise UsageError(f"--rank_by {by} looks at images; give --data, or take --rank_by weight_std")
    if len(samples) < LEAST_IMAGES:
        raise UsageError(f"--rank_by {by} needs at least {LEAST_IMAGES} images, got {len(samples)}; raise --images")
    if by == "ablation":
        return _ablation(model, units, samples, pause)
    return _similarity(by, model, units, samples, pause)


def _ablation(model: nn.Module, units: Sequence[str], samples: Samples, pause: Callable[[], None]) -> Iterator[Ranked]:
    whole = quality(model, samples)
    for unit in units:
        pause()
        with bypassed(model, [unit]):
            without = quality(model, samples)
        yield Ranked(unit, whole.macro_f1 - without.macro_f1, without.loss)


def weight_std(module: nn.Module) -> float:
    """Standard deviation of all weights of the convolutions in a module together; of matrices where it has none."""
    layers = [part.weight for part in module.modules() if isinstance(part, nn.modules.conv._ConvNd)]
    weights = layers or [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    if not weights:
        return math.inf
    return float(torch.cat([weight.detach().flatten().double() for weight in weights]).std(correction=0))


def _similarity(
    by: RankBy, model: nn.Module, units: Sequence[str], samples: Samples, pause: Callable[[], None]
) -> Iterator[Ranked]:
    """One pass over the images; of each batch, every block's features are compared at once."""
    meters: dict[str, Cosine | Cka] = {unit: Cosine() if by == "cosine" else Cka() for unit in units}
    taken: dict[str, Tensor] = {}
    handles = []
    for unit in units:
        module = model.get_submodule(unit)
        handles.append(module.register_forward_pre_hook(partial(_take, taken, unit), prepend=True))
        handles.append(module.register_forward_hook(partial(_compare, taken, unit, meters[unit])))
    try:
        with torch_threads(Process().threads(0)), torch.inference_mode():
            for images in _images(samples):
                pause()
                model(images)
    finally:
        for handle in handles:
            handle.remove()
    return (Ranked(unit, 1 - meter.value) for unit, meter in meters.items())


def _images(samples: Samples) -> Iterator[Tensor]:
    """Batches of equal weight for `cka`: a rest that is too small for an estimate is left out."""
    return (images for images, _ in samples.batches() if len(images) >= LEAST_IMAGES)


def _take(taken: dict[str, Tensor], unit: str, _module: nn.Module, args: tuple[Tensor]) -> None:
    taken[unit] = args[0].flatten(1).to(torch.float64, copy=True)  # blocks may work in place


def _compare(
    taken: dict[str, Tensor], unit: str, meter: "Cosine | Cka", _module: nn.Module, _args: object, output: Tensor
) -> None:
    meter.add(taken.pop(unit), output.flatten(1).double())


class Cosine:
    """Mean over images of the cosine of two feature vectors."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Features of some images: float64 [n, p] each."""
        self._sum += float(nn.functional.cosine_similarity(x, y, dim=1).sum())
        self._count += len(x)

    @property
    def value(self) -> float:
        """-1 to 1."""
        return self._sum / self._count


class Cka:
    """Linear CKA of two sets of features: 1 where one is the other, turned or scaled.

    The minibatch estimate (Nguyen, Raghu and Kornblith 2021, arXiv 2010.15327): unbiased HSIC (Song et al. 2012) is
    averaged over batches, so that memory does not grow with the number of images.
    """

    def __init__(self) -> None:
        self._cross = self._own_x = self._own_y = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Features of at least four images: float64 [n, p] and [n, q]."""
        k, m = (_gram(features) for features in (x, y))
        self._cross += hsic(k, m)
        self._own_x += hsic(k, k)
        self._own_y += hsic(m, m)

    @property
    def value(self) -> float:
        """At most about 1; 0 where one of them is the same for all images."""
        scale = self._own_x * self._own_y
        return self._cross / math.sqrt(scale) if scale > 0 else 0.0


def _gram(features: Tensor) -> Tensor:
    """Inner products of all pairs of images, without those of an image with itself."""
    centred = features - features.mean(0)  # changes nothing but rounding
    return (centred @ centred.T).fill_diagonal_(0)


def hsic(k: Tensor, m: Tensor) -> float:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion.

    Args:
        k: float64 [n, n]; inner products with zeros on the diagonal, n at least 4.
        m: Likewise.
    """
    n = len(k)
    pairs = (k * m.T).sum()
    means = k.sum() * m.sum() / ((n - 1) * (n - 2))
    mixed = 2 / (n - 2) * (k.sum(0) @ m.sum(1))
    return float((pairs + means - mixed) / (n * (n - 3)))
