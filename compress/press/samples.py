"""Images and labels that a press looks at: those of a split, as the network expects them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import EngineName
from pipelines.errors import UsageError
from pipelines.opening import OpenOptions
from pipelines.sources import Source, Subset
from pipelines.tensors import TensorFormat
from training.engine.data import Process, make_test_loader, open_data, trained_split
from training.engine.metrics import Scores
from training.model.card import ModelCard
from training.runtimes.torch_runtime import torch_threads

BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images in memory, as levels: a quarter of what normalised ones take.

    Attributes:
        levels: uint8 [n, 3, size, size].
        labels: int64 [n].
        classes: Class names in index order.
        wanted: What turns levels into what the network expects.
        fingerprint: Changes with the images, their order and their labels.
    """

    levels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    wanted: TensorFormat
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images, float32 [k, 3, size, size], and labels, int64 [k]; every sample once, in order."""
        for start in range(0, len(self), size):
            yield self.wanted(self.levels[start : start + size]), self.labels[start : start + size]


@dataclass(frozen=True)
class Quality:
    """How well a network does on samples.

    Attributes:
        macro_f1: Unweighted mean of F1 over the classes.
        loss: Mean cross-entropy; infinite where the network gives no numbers.
    """

    macro_f1: float
    loss: float


def load_samples(
    data: Path, card: ModelCard, split: str, *, most: int | None = None, engine: EngineName = "auto"
) -> Samples:
    """Read samples of a split, without augmented copies, at the size that a model expects.

    Args:
        data: A cache, a folder of crops, or a folder of class folders.
        card: Of the model: its classes, its size and normalisation, and how the data was split when it was trained.
        split: Name of the split.
        most: So many at most, of each class its share and always the same ones; None for all.
        engine: Renders the images.

    Raises:
        UsageError: There is no such data, or it has other classes than the model.
        CorruptSampleError: An image cannot be read.
    """
    (source,) = open_data(data, (split,), OpenOptions(split=trained_split(card), copies=0))
    if source.classes != card.classes:
        raise UsageError(
            f"{data} has the classes {', '.join(source.classes)}, but the model tells {', '.join(card.classes)} apart; "
            "give the data that belongs to the model"
        )
    chosen = source if most is None else Subset(source, stratified(source.labels, source.ids, most))
    levels, labels = _rendered(chosen, RenderSpec(card.size, card.fit), engine)
    wanted = TensorFormat("float32", card.mean, card.std)
    return Samples(levels=levels, labels=labels, classes=card.classes, wanted=wanted, fingerprint=chosen.fingerprint)


def stratified(labels: NDArray[np.int64], ids: NDArray[np.uint64], most: int) -> NDArray[np.int64]:
    """Choose samples, of each class its share, at least one where there is room.

    Args:
        labels: int64 [n].
        ids: uint64 [n]; hashes of the samples' names, by which it is chosen: not by their order.
        most: How many.

    Returns:
        int64 [min(n, most)]; positions, ascending.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    order = np.lexsort((ids, labels))
    counts = np.unique(labels, return_counts=True)[1]
    starts = np.cumsum(counts) - counts
    taken = [order[start : start + share] for start, share in zip(starts, _shares(counts, most), strict=True)]
    return np.sort(np.concatenate(taken))


def _shares(counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Parts of `most`, in proportion to counts, by largest remainder; none is 0 if there are enough."""
    exact = counts * most / counts.sum()
    shares = np.floor(exact).astype(np.int64)
    if most >= len(counts):
        shares = np.maximum(shares, 1)
    while shares.sum() != most:
        up = shares.sum() < most
        missing = exact - shares
        free = shares < counts if up else shares > 1
        shares[np.argmax(np.where(free, missing if up else -missing, -np.inf))] += 1 if up else -1
    return shares


def quality(model: nn.Module, samples: Samples) -> Quality:
    """Macro F1 and cross-entropy of a network, in evaluation mode on the CPU.

    Args:
        model: On the CPU, in evaluation mode.
        samples: All of them count.
    """
    count = len(samples.classes)
    cells, loss = torch.zeros(count * count, dtype=torch.int64), 0.0
    with torch_threads(Process().threads(0)), torch.inference_mode():
        for images, labels in samples.batches():
            logits = model(images).double()
            cells += torch.bincount(labels * count + logits.argmax(1), minlength=count * count)
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    mean = loss / len(samples)
    scores = Scores(cells.numpy().reshape(count, count))
    return Quality(macro_f1=scores.macro_f1, loss=mean if np.isfinite(mean) else float("inf"))


def _rendered(source: Source, spec: RenderSpec, engine: EngineName) -> tuple[Tensor, Tensor]:
    if not len(source.labels):
        raise UsageError("the split holds no images; choose another --split")
    loader = make_test_loader(source, Process(), spec=spec, engine=engine, batch_size=BATCH)
    try:
        parts = [(batch.images[: batch.real].cpu().clone(), batch.labels[: batch.real].cpu()) for batch in loader]
    finally:
        loader.engine.close()
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
