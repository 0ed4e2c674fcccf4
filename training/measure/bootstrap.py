"""How sure a score is: the bootstrap over the test samples.

A resample draws as many samples as there are, with replacement. Macro F1 depends only on how often each cell of the
confusion matrix was drawn. Each of the n independent draws hits a cell with the share of the samples that it holds, so
those counts have the multinomial distribution. They are drawn at once, and many samples cost no more than few. The same
holds for two models on the same samples, with a cell for each (label, first prediction, second prediction).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.errors import UsageError
from training.engine.metrics import Scores
from training.measure.score import Floats, ScorePreset

Ints = NDArray[np.int64]

RISK = 0.025
"""Share of resamples below the cliff from which on it is worth a warning: the lower end of a 95 % interval."""
_CHUNK = 1 << 22
"""Counts that are held in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A macro F1 with its uncertainty.

    Args:
        low: Lower end of the percentile interval.
        high: Upper end.
        estimate: Of the samples themselves.
        std: Standard deviation over the resamples.
    """

    low: float
    high: float
    estimate: float
    std: float


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two models on the same samples.

    Args:
        difference: Macro F1 of the second minus that of the first.
        low: Lower end of the percentile interval of the difference.
        high: Upper end.
        p_value: Two-sided: twice the share of resamples whose difference is not on the side of the rest,
            `2 * min(share <= 0, share >= 0)`, at most 1 and at least 1 / resamples.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_distribution(confusion: Ints, *, resamples: int = 10_000, seed: int = 0) -> Floats:
    """Macro F1 of resampled test sets.

    Each value is `Scores.macro_f1` of the resampled matrix: a class that no sample of a resample has as label or
    prediction does not enter its mean, so one that is absent from the matrix itself never does.

    Args:
        confusion: int64 [classes, classes]; rows are true classes, columns predictions.
        resamples: How many.
        seed: The same seed gives the same numbers.

    Returns:
        float64 [resamples], in the order drawn.

    Raises:
        UsageError: The matrix is no confusion matrix or counts no sample, or there are no resamples.
    """
    _check_matrix(confusion)
    labels, predicted = np.nonzero(confusion)
    cells = Cells(labels, predicted, len(confusion))
    draws = _draws(confusion[labels, predicted], resamples, seed)
    return np.concatenate([cells.macro_f1(counts) for counts in draws])


def bootstrap_macro_f1(
    confusion: Ints, *, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """The percentile interval of macro F1, see `bootstrap_distribution`.

    Args:
        confusion: int64 [classes, classes].
        resamples: How many.
        seed: Of the draws.
        confidence: Share of the resamples inside the interval.

    Raises:
        UsageError: See `bootstrap_distribution`; or the confidence is no share.
    """
    distribution = bootstrap_distribution(confusion, resamples=resamples, seed=seed)
    low, high = percentile_interval(distribution, confidence)
    std = float(distribution.std(ddof=1)) if resamples > 1 else 0.0
    return Interval(low=low, high=high, estimate=Scores(confusion).macro_f1, std=std)


def percentile_interval(distribution: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The middle of a distribution: equal shares lie below and above.

    Args:
        distribution: float64 [resamples], of F1, of a score, of a difference.
        confidence: Share inside.

    Raises:
        UsageError: The confidence is no share.
    """
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"confidence must lie between 0 and 1, got {confidence:g}; 0.95 is usual")
    low, high = np.quantile(distribution, [(1.0 - confidence) / 2, (1.0 + confidence) / 2])
    return float(low), float(high)


def below_cliff(preset: ScorePreset, distribution: Floats) -> float:
    """Share of the resamples whose macro F1 lies below the cliff of a preset; 0 where it has none."""
    return float(np.mean(distribution < preset.cliff))


def cliff_warning(preset: ScorePreset, distribution: Floats) -> str | None:
    """A sentence where more than 2.5 % of the resamples lie below the cliff.

    It is about test sets as large as the one resampled; halves of it, as competitions use, vary 1.4 times as much.

    Args:
        preset: A score of F1 and time has no cliff, so there is nothing to warn of.
        distribution: float64 [resamples], from `bootstrap_distribution`.
    """
    share = below_cliff(preset, distribution)
    if share <= RISK:
        return None
    return (
        f"{preset.name}: on other images of the same kind macro F1 may lie below {preset.cliff:g}, where the official "
        f"score jumps: {share:.1%} of the resamples do"
    )


def paired_bootstrap(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    num_classes: int,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Paired:
    """Compare two models by their predictions of the same samples.

    Neither the order of the samples nor which model is called first changes anything but the sign.

    Args:
        labels: Whole numbers [samples], the true classes.
        first: Whole numbers [samples], what the first model predicts.
        second: Whole numbers [samples], what the second model predicts.
        num_classes: All numbers are below this.
        resamples: How many.
        seed: Of the draws.
        confidence: Share of the resamples inside the interval.

    Raises:
        UsageError: Lengths differ, there are no samples, or a number is no class.
    """
    true = _classes("labels", labels, num_classes)
    one, two = _classes("first", first, num_classes), _classes("second", second, num_classes)
    if not len(true) == len(one) == len(two):
        raise UsageError(
            f"{len(true)} labels, {len(one)} first and {len(two)} second predictions: give one of each per sample"
        )
    here, there = _triples(true, one, two, num_classes), _triples(true, two, one, num_classes)
    # One of the two orders is drawn for both, so that the models can change places.
    codes, counts = min(here, there, key=_bytes)
    difference = _differences(codes, counts, num_classes, resamples, seed)
    if _bytes(here) == _bytes(there):  # nothing tells the two apart: what holds for one side holds for the other
        difference = np.concatenate([difference, -difference])
    elif _bytes(there) < _bytes(here):
        difference = -difference
    low, high = percentile_interval(difference, confidence)
    sides = min(float(np.mean(difference <= 0)), float(np.mean(difference >= 0)))
    return Paired(
        difference=_scores(true, two, num_classes).macro_f1 - _scores(true, one, num_classes).macro_f1,
        low=low,
        high=high,
        p_value=min(1.0, max(2 * sides, 1 / resamples)),
    )


def _classes(name: str, values: ArrayLike, num_classes: int) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise UsageError(f"{name} must be a list of whole numbers with an entry per sample, got {array!r:.60}")
    if array.min() < 0 or array.max() >= num_classes:
        raise UsageError(f"{name} must be classes from 0 to {num_classes - 1}, got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _scores(labels: Ints, predicted: Ints, num_classes: int) -> Scores:
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return Scores(counts.reshape(num_classes, num_classes))


def _triples(labels: Ints, first: Ints, second: Ints, num_classes: int) -> tuple[Ints, Ints]:
    """Distinct (label, first, second) as one number each, ascending, and how often each occurs."""
    codes, counts = np.unique((labels * num_classes + first) * num_classes + second, return_counts=True)
    return codes, counts.astype(np.int64)


def _bytes(parts: tuple[Ints, Ints]) -> tuple[bytes, ...]:
    return tuple(part.tobytes() for part in parts)


def _differences(codes: Ints, counts: Ints, num_classes: int, resamples: int, seed: int) -> Floats:
    """Second minus first macro F1 of each resample."""
    pairs, second = np.divmod(codes, num_classes)
    labels, first = np.divmod(pairs, num_classes)
    one, two = Cells(labels, first, num_classes), Cells(labels, second, num_classes)
    drawn = _draws(counts, resamples, seed)
    difference = np.concatenate([two.macro_f1(part) - one.macro_f1(part) for part in drawn])
    # Equal scores summed in another order are still equal.
    return np.where(np.abs(difference) < 1e-12, 0.0, difference)


def _check_matrix(confusion: Ints) -> None:
    shape = confusion.shape
    if confusion.ndim != 2 or shape[0] != shape[1] or confusion.dtype.kind not in "iu" or (confusion < 0).any():
        raise UsageError(f"a confusion matrix is square and holds whole counts of 0 or more, got {confusion!r:.60}")
    if not confusion.any():
        raise UsageError("the confusion matrix counts no sample, so there is nothing to resample; evaluate on more")


def _draws(counts: Ints, resamples: int, seed: int) -> Iterator[Ints]:
    """Resampled counts in parts that fit into memory: int64 [some, cells] each, the same however they are parted."""
    if resamples < 1:
        raise UsageError(f"resamples must be at least 1, got {resamples}; 10,000 are usual")
    if seed < 0:
        raise UsageError(f"seed must be 0 or more, got {seed}")
    random = np.random.Generator(np.random.Philox(seed))
    samples = int(counts.sum())
    most = max(1, _CHUNK // len(counts))
    for begin in range(0, resamples, most):
        yield random.multinomial(samples, counts / samples, size=min(most, resamples - begin))


class Cells:
    """Turns counts of cells into macro F1.

    Args:
        labels: int64 [cells], the true class of each cell.
        predicted: int64 [cells], the prediction of each cell.
        num_classes: All are below this.
    """

    def __init__(self, labels: Ints, predicted: Ints, num_classes: int) -> None:
        classes = np.arange(num_classes)
        true, said = labels[:, None] == classes, predicted[:, None] == classes
        # Sums as products with 0/1 matrices: exact in float64, and BLAS does them.
        self._hits = (true & said).astype(np.float64)
        self._both = true.astype(np.float64) + said

    def macro_f1(self, counts: Ints) -> Floats:
        """`Scores.macro_f1` of each row of counts, int64 [resamples, cells]."""
        drawn = counts.astype(np.float64)
        below = drawn @ self._both
        f1 = np.divide(2.0 * (drawn @ self._hits), below, out=np.zeros_like(below), where=below > 0)
        return f1.sum(axis=1) / (below > 0).sum(axis=1)
