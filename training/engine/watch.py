"""Notices when a loss stops being a number, or runs away, and knows which samples were in the batch."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class Trouble(NamedTuple):
    """A step whose loss cannot be right."""

    step: int
    loss: float
    rows: NDArray[np.int64]


@dataclass
class LossWatch:
    """Holds the losses of the last steps until somebody looks, for looking makes a GPU wait.

    Attributes:
        limit: Losses above it are trouble.
        every: Look after so many steps; 1 where nothing has to be waited for.
        latest: Mean loss of the steps that were last looked at.
    """

    limit: float
    every: int = 1
    latest: float = math.nan
    _held: deque[tuple[int, torch.Tensor, NDArray[np.int64]]] = field(default_factory=deque)

    def add(self, step: int, loss: torch.Tensor, rows: NDArray[np.int64]) -> Trouble | None:
        """Note a step; the first trouble, where it is time to look.

        Args:
            step: Number of the step.
            loss: Scalar, on any device.
            rows: int64 [k]; positions in the source of this process's samples.
        """
        self._held.append((step, loss, rows))
        return self.look() if len(self._held) >= self.every else None

    def look(self) -> Trouble | None:
        """The first trouble among the steps since the last look."""
        if not self._held:
            return None
        values = torch.stack([loss for _, loss, _ in self._held]).tolist()
        steps = list(self._held)
        self._held.clear()
        self.latest = float(np.mean(values))
        for value, (step, _, rows) in zip(values, steps, strict=True):
            if not value <= self.limit:  # so that NaN is caught
                return Trouble(step, value, rows)
        return None
