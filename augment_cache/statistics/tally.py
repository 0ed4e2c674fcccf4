"""Counts of one split, shard by shard: memory grows with what is distinct, not with the number of rows."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augment_cache.statistics.columns import Columns
from augment_cache.statistics.histogram import Spread, merged, spread_of
from pipelines.augmentations import CODES, OPS, Op

STRENGTH_BINS = 24
Range = tuple[float, float]


class Tally:
    """Everything that is counted of a split.

    Args:
        classes: Number of classes.
        ranges: Name of an op → least and most of its magnitudes without their signs, see `policy_ranges`.

    Attributes:
        rows: int64 [classes], originals and copies.
        originals: int64 [classes].
        copies: int64 [highest copy number + 1], rows of each copy number.
        ops_per_copy: int64 [most ops on a copy + 1], copies with that many ops.
        image_bytes: Sizes of the images.
        ops: Name of each op that occurs → its counts.
    """

    def __init__(self, classes: int, ranges: Mapping[str, Range]) -> None:
        self._ranges = ranges
        nothing = np.zeros(0, np.int64)
        self.rows, self.originals = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
        self.copies, self.ops_per_copy = nothing, nothing
        self.image_bytes = Spread(nothing, nothing)
        self.ops: dict[str, OpTally] = {}

    def add(self, columns: Columns) -> None:
        """Count a shard."""
        originals = columns.copies == 0
        self.rows = _sum(self.rows, np.bincount(columns.labels))
        self.originals = _sum(self.originals, np.bincount(columns.labels[originals]))
        self.copies = _sum(self.copies, np.bincount(columns.copies))
        per_row = np.bincount(columns.op_rows, minlength=len(originals))
        self.ops_per_copy = _sum(self.ops_per_copy, np.bincount(per_row[~originals]))
        self.image_bytes = merged(self.image_bytes, spread_of(columns.image_bytes))
        order = np.argsort(columns.op_codes, kind="stable")
        ends = np.searchsorted(columns.op_codes[order], np.arange(1, len(columns.op_names)))
        # Without any op the split is one empty part for no name.
        for name, members in zip(columns.op_names, np.split(order, ends), strict=False):
            if name not in self.ops:
                self.ops[name] = OpTally(name, self._ranges.get(name))
            self.ops[name].add(columns.op_rows[members], columns.magnitudes[members])


class OpTally:
    """Everything that is counted of an op.

    Args:
        name: Name of the op. A cache of a later Tacopress may hold ops that are not known here: those get no bins.
        wanted: Least and most of the magnitudes without their signs; the op's own range, if absent.

    Attributes:
        rows: Rows that got the op at least once.
        times: How often it was applied.
        total: Sum of the magnitudes without their signs.
        least: Smallest signed magnitude.
        most: Largest signed magnitude.
        edges: Of the bins, in the op's unit; empty for an op without a strength.
        counts: int64 [edges - 1], magnitudes per bin.
    """

    def __init__(self, name: str, wanted: Range | None) -> None:
        self.known = OPS[CODES[name]] if name in CODES else None
        self.rows, self.times = 0, 0
        self.total, self.least, self.most = 0.0, np.inf, -np.inf
        self.edges = strength_edges(self.known, wanted) if self.known is not None else np.zeros(0)
        self.counts = np.zeros(max(len(self.edges) - 1, 0), np.int64)

    def add(self, rows: NDArray[np.int64], magnitudes: NDArray[np.float64]) -> None:
        """Count the op in a shard: the rows that got it, ascending, and how strongly; at least one."""
        self.rows += 1 + int(np.count_nonzero(np.diff(rows)))
        self.times += len(rows)
        self.total += float(np.abs(magnitudes).sum())
        self.least, self.most = min(self.least, float(magnitudes.min())), max(self.most, float(magnitudes.max()))
        if len(self.edges):
            # Magnitudes are stored in single precision, so the strongest may lie a hair above its range.
            inside = np.clip(magnitudes, self.edges[0], self.edges[-1])
            self.counts += np.histogram(inside, self.edges)[0]

    def as_dict(self) -> dict[str, Any]:
        """The counts as the report shows them; strengths are None for an op that has none."""
        strong = self.known is None or self.known.has_value
        bins = {"edges": [_rounded(edge) for edge in self.edges.tolist()], "counts": self.counts.tolist()}
        return {
            "rows": self.rows,
            "times": self.times,
            "mean_strength": _rounded(self.total / self.times) if strong else None,
            "least": _rounded(self.least) if strong else None,
            "most": _rounded(self.most) if strong else None,
            "histogram": bins if len(self.edges) else None,
        }


def policy_ranges(policy: Any) -> dict[str, Range]:  # noqa: ANN401 - whatever a manifest holds
    """Least and most that a policy, as it stands in a recipe, asks of each op in any of its turns."""
    values: dict[str, list[float]] = {}
    try:
        for choice in chain.from_iterable(policy["turns"]):
            values.setdefault(str(choice["op"]), []).extend(float(value) for value in choice["range"])
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: (min(found), max(found)) for name, found in values.items() if found}


def strength_edges(op: Op, wanted: Range | None = None) -> NDArray[np.float64]:
    """Bins for the magnitudes of an op: one per value for whole numbers; none for an op without a strength.

    Args:
        op: The op.
        wanted: Least and most of the magnitudes without their signs; the op's own range, if absent.

    Returns:
        float64 [bins + 1], ascending.
    """
    if not op.has_value:
        return np.zeros(0)
    own = (min(op.low, op.high), max(op.low, op.high))
    least, most = own if wanted is None or wanted[0] == wanted[1] else wanted
    if op.signed:
        least = -most
    if op.whole:
        return np.arange(np.floor(least) - 0.5, np.ceil(most) + 1)
    return np.linspace(least, most, STRENGTH_BINS + 1)


def _rounded(value: float) -> float:
    """Six decimals, and no minus before a zero."""
    return round(value, 6) + 0.0


def _sum(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of two arrays of counts; the shorter one goes on with zeros."""
    total = np.zeros(max(len(first), len(second)), np.int64)
    total[: len(first)] += first
    total[: len(second)] += second
    return total
