"""Whether a model's probabilities can be believed: of what it says with 80 %, 80 % should be true."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Predictions of about the same confidence.

    Args:
        low: Confidence above which they lie.
        high: Confidence up to which.
        count: How many there are.
        confidence: Their mean confidence; 0 without any.
        accuracy: The share of them that is right; 0 without any.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How probabilities and truth go together.

    Args:
        ece: Expected calibration error: mean over samples of |accuracy - confidence| of their bin (Naeini et al. 2015,
            Guo et al. 2017, arXiv 1706.04599).
        nll: Mean negative logarithm of the true class's probability, natural.
        brier: Mean squared distance of the probabilities to the truth, over classes, 0 to 2 (Brier 1950).
        bins: `BINS` bins of equal width.
    """

    ece: float
    nll: float
    brier: float
    bins: tuple[Bin, ...]


def calibration(labels: NDArray[np.int64], shares: NDArray[np.float64]) -> Calibration:
    """Hold probabilities against the truth.

    Args:
        labels: int64 [n], n at least 1.
        shares: float64 [n, classes]; rows add up to 1.
    """
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    # Bins are open below and closed above, as in the paper; a confidence of 0 cannot be.
    places = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    means = np.bincount(places, confidence, BINS) / np.maximum(counts, 1)
    hits = np.bincount(places, right, BINS) / np.maximum(counts, 1)
    truth = np.eye(shares.shape[1])[labels]
    own = np.maximum(shares[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)
    return Calibration(
        ece=float(np.abs(hits - means) @ counts / len(labels)),
        nll=float(-np.log(own).mean()),
        brier=float(((shares - truth) ** 2).sum(axis=1).mean()),
        bins=tuple(
            Bin(
                low=place / BINS,
                high=(place + 1) / BINS,
                count=int(counts[place]),
                confidence=float(means[place]),
                accuracy=float(hits[place]),
            )
            for place in range(BINS)
        ),
    )
