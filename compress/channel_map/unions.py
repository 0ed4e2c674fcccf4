"""Numbers that turn out to mean the same thing: union-find over channel ids."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class Unions:
    """Ids that can be made equal. New ones are numbered from 0; of equal ones the smallest stands for all."""

    def __init__(self) -> None:
        self._parents: list[int] = []

    def new(self, count: int) -> Ids:
        """So many ids that mean nothing else yet: int64 [count]."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def join(self, first: Ids, second: Ids) -> None:
        """Say that `first[i]` and `second[i]` are the same."""
        pairs = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1)
        for one, other in pairs.T.tolist():
            low, high = sorted((self._root(one), self._root(other)))
            self._parents[high] = low

    def roots(self, ids: Ids) -> Ids:
        """What stands for each of the ids; equal for those that mean the same."""
        values, places = np.unique(ids, return_inverse=True)
        return np.array([self._root(value) for value in values.tolist()], np.int64)[places].reshape(ids.shape)

    def _root(self, value: int) -> int:
        parents = self._parents
        while parents[value] != value:
            parents[value] = parents[parents[value]]
            value = parents[value]
        return value
