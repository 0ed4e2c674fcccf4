"""Scores of a classifier, all from one confusion matrix of exact counts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says.

    Attributes:
        confusion: int64 [classes, classes]; rows are true classes, columns predictions.
    """

    confusion: NDArray[np.int64]

    @property
    def samples(self) -> int:
        """Number of samples counted."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of samples predicted right."""
        return float(np.trace(self.confusion) / max(self.samples, 1))

    @property
    def support(self) -> NDArray[np.int64]:
        """int64 [classes]; samples of each class."""
        return self.confusion.sum(axis=1)

    @property
    def precision(self) -> NDArray[np.float64]:
        """float64 [classes]; 0 where nothing was predicted."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(axis=0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """float64 [classes]; 0 where there is no sample."""
        return _ratio(np.diag(self.confusion), self.support)

    @property
    def f1(self) -> NDArray[np.float64]:
        """float64 [classes]; 2 TP / (2 TP + FP + FN), 0 where that is 0 / 0."""
        hits = np.diag(self.confusion)
        return _ratio(2 * hits, self.confusion.sum(axis=0) + self.support)

    @property
    def macro_f1(self) -> float:
        """Unweighted mean of F1 over the classes that occur as label or prediction, as scikit-learn has it."""
        present = (self.confusion.sum(axis=0) + self.support) > 0
        return float(self.f1[present].mean()) if present.any() else 0.0

    def as_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Keys: `macro_f1`, `accuracy`, `samples`, `per_class` {name: precision, recall, f1, support}, `confusion`."""
        columns = zip(classes, self.precision, self.recall, self.f1, self.support, strict=True)
        return {
            "macro_f1": self.macro_f1,
            "accuracy": self.accuracy,
            "samples": self.samples,
            "per_class": {
                name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
                for name, p, r, f, s in columns
            },
            "confusion": self.confusion.tolist(),
        }


def _ratio(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.zeros(len(above), np.float64), where=below > 0)
