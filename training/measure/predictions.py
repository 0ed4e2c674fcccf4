"""What a model said to each sample: kept as CSV, so that two models can be compared sample by sample."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.console.files import write_csv
from pipelines.console.output import as_text
from pipelines.errors import ProblemFoundError, UsageError
from training.engine.metrics import Scores

COLUMNS = ("sample_id", "source", "label", "predicted")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model said, and what is true.

    Attributes:
        classes: Class names in index order.
        ids: uint64 [n]; of the samples.
        sources: Where each came from, for people.
        labels: int64 [n].
        shares: float64 [n, classes]; probabilities.
    """

    classes: tuple[str, ...]
    ids: NDArray[np.uint64]
    sources: Sequence[str]
    labels: NDArray[np.int64]
    shares: NDArray[np.float64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """int64 [n]; the most probable class of each sample, the first of equals."""
        return self.shares.argmax(axis=1)

    @property
    def scores(self) -> Scores:
        """Of the predicted classes."""
        count = len(self.classes)
        cells = np.bincount(self.labels * count + self.predicted, minlength=count * count)
        return Scores(cells.reshape(count, count))


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax of each row: float32 [n, classes] → float64 [n, classes].

    Raises:
        ProblemFoundError: A logit is no finite number: there is no class to be read from that.
    """
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise ProblemFoundError(
            f"the network answers {broken} of {len(logits)} images with numbers that are not finite; run it with "
            "--precision no, or train it again"
        )
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return shares


def write_predictions(path: Path, found: Predictions) -> None:
    """Write predictions as CSV, atomically; `read_predictions` gives back exactly these numbers.

    Columns: `sample_id` (16 hexadecimal digits), `source`, `label` and `predicted` (class names), then a probability
    for each class.
    """
    rows = zip(
        found.ids.tolist(),
        map(as_text, found.sources),
        found.labels.tolist(),
        found.predicted.tolist(),
        found.shares.tolist(),
        strict=True,
    )
    names = found.classes
    lines = (
        [f"{number:016x}", source, names[label], names[said], *shares] for number, source, label, said, shares in rows
    )
    write_csv(path, [*COLUMNS, *names], lines)


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises:
        UsageError: No such file, or it was written by something else.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; evaluate the model first")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
        classes = tuple(header[len(COLUMNS) :])
        if tuple(header[: len(COLUMNS)]) != COLUMNS or not classes:
            raise ValueError("other columns")
        return Predictions(
            classes=classes,
            ids=np.array([int(line[0], 16) for line in lines], np.uint64),
            sources=[line[1] for line in lines],
            labels=np.array([classes.index(line[2]) for line in lines], np.int64),
            shares=np.array([[float(text) for text in line[4:]] for line in lines]).reshape(len(lines), len(classes)),
        )
    except (ValueError, IndexError, OverflowError, csv.Error) as error:
        raise UsageError(f"{path} holds no predictions ({error}); delete it and make it again") from error
