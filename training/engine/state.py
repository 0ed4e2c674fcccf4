"""How far a run has come."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunState:
    """How far a run has come: what a checkpoint holds besides tensors.

    Attributes:
        epoch: Epochs that are finished: trained and validated.
        step: Optimizer steps that are done, over the whole run.
        trained: The epoch under way has been trained, but not validated.
        loss: Sum of the losses of its steps so far.
        seconds: Time that its training took so far.
        data_wait: Time that the first process waited for batches in it.
        best_epoch: The epoch with the best validation macro F1, counted from 1; 0 before the first.
        best_macro_f1: That score.
        best_accuracy: Accuracy of the same epoch.
        stopped: The run ended before its last epoch.
        log: What metrics.jsonl holds, a dictionary per epoch.
    """

    epoch: int = 0
    step: int = 0
    trained: bool = False
    loss: float = 0.0
    seconds: float = 0.0
    data_wait: float = 0.0
    best_epoch: int = 0
    best_macro_f1: float = -1.0
    best_accuracy: float = 0.0
    stopped: bool = False
    log: list[dict[str, Any]] = field(default_factory=list)
