"""What a step minimises: the seam through which distillation looks at images, rows and inner layers of the network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.mix import Mix
from training.engine.losses import Loss

LOGITS = "logits"


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One part of a batch behind the network: the samples of this process that count.

    Attributes:
        images: Float [k, 3, size, size], as the network got them.
        outputs: Float32, name → [k, …]: `logits` [k, classes], and what the parts gave that only training has, see
            `training.engine.learner.Learner`.
        labels: int64 [k].
        rows: int64 [k]; positions in the source.
        mix: How pairs of images were mixed, None if they were not.
        total: Samples of the batch, of all processes together.
    """

    images: Tensor
    outputs: Mapping[str, Tensor]
    labels: Tensor
    rows: NDArray[np.int64]
    mix: Mix | None
    total: int

    @property
    def logits(self) -> Tensor:
        """Float32 [k, classes]."""
        return self.outputs[LOGITS]


class Objective(Protocol):
    """What is minimised.

    Attributes:
        fingerprint: Changes with anything beside the options of the run that changes the loss: the weights of a
            teacher. Empty where there is nothing.
        classifies: The classifier learns, so that scores say which epoch is the best; otherwise each is better than the
            one before.
        size: How large the loss may be before anything is learned, compared with that of the labels.
    """

    fingerprint: str
    classifies: bool
    size: float

    def begin(self, epoch: int, between: Callable[[], None]) -> None:
        """Prepare an epoch, on every process, before its first step and again where a stopped run goes on.

        Args:
            epoch: Counted from 0.
            between: To be called between batches, equally often on all processes; may raise to stop.
        """
        ...

    def __call__(self, forward: Forward) -> Tensor:
        """This process's share of the loss of a batch: a scalar; see `training.engine.losses.Loss`."""
        ...


@dataclass
class Supervised:
    """The objective that needs nothing but labels.

    Attributes:
        accelerator: accelerate.Accelerator.
        loss: Of logits and labels.
    """

    accelerator: Any
    loss: Loss
    fingerprint = ""
    classifies = True
    size = 1.0

    def begin(self, epoch: int, between: Callable[[], None]) -> None:
        """See `Objective`: nothing."""

    def __call__(self, forward: Forward) -> Tensor:
        """See `Objective`."""
        together = self._sum if self.accelerator.num_processes > 1 else None
        return self.loss(forward.logits, forward.labels, forward.mix, total=forward.total, sum_over_ranks=together)

    def _sum(self, values: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(values, "sum")
        return summed


def gathered(accelerator: Any, values: Tensor) -> Tensor:  # noqa: ANN401 - accelerate.Accelerator
    """The rows of all processes, for losses that look at a whole batch.

    What the others computed is a constant here: with `share`, each process brings the gradient of its own rows, and
    the sum over the processes is that of the whole batch, so that no collective needs a gradient.

    Args:
        accelerator: accelerate.Accelerator.
        values: Float [k, …]; k may differ between processes, and be 0.

    Returns:
        [sum of all k, …], in the order of the processes; the tensor itself where there is only one.
    """
    if accelerator.num_processes == 1:
        return values
    counts = accelerator.gather(torch.tensor([len(values)], device=values.device)).tolist()
    padded = values.new_zeros((max(*counts, 1), *values.shape[1:]))
    padded[: len(values)] = values.detach()
    parts = list(accelerator.gather(padded[None]))
    parts = [part[:count] for part, count in zip(parts, counts, strict=True)]
    parts[accelerator.process_index] = values
    return torch.cat(parts)


def share(accelerator: Any, loss: Tensor) -> Tensor:  # noqa: ANN401 - accelerate.Accelerator
    """This process's share of a loss that every process computed of the whole batch, see `gathered`."""
    return loss.detach() / accelerator.num_processes + (loss - loss.detach())
