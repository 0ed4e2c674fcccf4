"""The training loop: Accelerate for devices, processes and precision; order, schedule and gathering are our own.

Accelerate's traps are avoided by construction: loaders are sharded by rank and never prepared (a foreign loader would
pass through unsharded); the schedule is a function of the step and never prepared (it would advance once per process);
counts are summed exactly instead of gathered with padding.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from pipelines.console.progress import ProgressMeter
from pipelines.errors import ProblemFoundError, UsageError
from pipelines.loader import Batch, Loader
from pipelines.tensors import TensorFormat
from training.engine.config import OptimizerConfig, ScheduleConfig
from training.engine.metrics import Scores


@dataclass
class TrainState:
    """How far a run has come.

    Attributes:
        epoch: Epochs that are finished.
        best_epoch: The one with the best validation macro F1, counted from 1; 0 before the first.
        best_macro_f1: That score.
        best_accuracy: Accuracy of the same epoch.
        log: What metrics.jsonl holds, a dictionary per epoch.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_macro_f1: float = -1.0
    best_accuracy: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class EpochResult:
    """What an epoch of training came to, over all processes.

    Attributes:
        loss: Mean over samples.
        seconds: Wall time.
        data_wait: Seconds that this process waited for batches.
        images: Number of images, over all processes.
    """

    loss: float
    seconds: float
    data_wait: float
    images: int


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer of timm; biases and normalisation are not decayed.

    Raises:
        UsageError: timm has none of that name.
    """
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model, opt=config.name, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
    except (ValueError, AssertionError, KeyError) as error:
        raise UsageError(f"--optimizer.name {config.name}: {error}; timm knows adamw, sgd, lamb and others") from error
    return optimizer


def balanced_weights(labels: NDArray[np.int64], num_classes: int, power: float) -> torch.Tensor:
    """Weights of the classes in the loss, so that rare ones are not drowned.

    Args:
        labels: int64 [n]; labels of the training rows.
        num_classes: Number of classes.
        power: Weights are count ** -power; 0 gives ones, 1 gives every class the same total.

    Returns:
        float32 [num_classes]; the mean over the rows is 1, classes without rows get 0.
    """
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    weights = np.where(counts > 0, np.maximum(counts, 1.0) ** -power, 0.0)
    return torch.tensor(weights * counts.sum() / (weights * counts).sum(), dtype=torch.float32)


def make_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, lr: float, steps: int) -> CosineLRScheduler:
    """Linear warm-up, then half a cosine, per step. `step_update(k)` sets the rate of step k; it has no other state."""
    warmup = round(config.warmup_epochs * steps)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(config.epochs * steps - warmup, 1),
        lr_min=lr * config.min_lr,
        warmup_t=warmup,
        warmup_lr_init=lr * 0.01,
        warmup_prefix=True,
        t_in_epochs=False,
    )


@dataclass
class Trainer:
    """Trains and evaluates a prepared model.

    Attributes:
        accelerator: accelerate.Accelerator.
        model: Prepared.
        optimizer: Prepared.
        schedule: Not prepared.
        format: What the network wants.
        label_smoothing: Share of the target that is spread over all classes.
        class_weights: float32 [classes] on the accelerator's device, see `balanced_weights`.
        clip_norm: Largest norm of the gradient; 0 for any.
    """

    accelerator: Any
    model: nn.Module
    optimizer: Any
    schedule: CosineLRScheduler
    format: TensorFormat
    label_smoothing: float
    class_weights: torch.Tensor
    clip_norm: float

    def train_epoch(self, loader: Loader, epoch: int, seed: int, progress: ProgressMeter) -> EpochResult:
        """One pass over the training rows.

        Raises:
            ProblemFoundError: The loss is no longer a number.
        """
        self.model.train()
        # Dropout is a function of (seed, epoch, rank): nothing has to be stored to resume.
        torch.manual_seed(hash((seed, epoch, self.accelerator.process_index)) & 0x7FFFFFFF)
        loader.set_epoch(epoch)
        start, wait = time.monotonic(), 0.0
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        batches = iter(loader)
        for step in range(len(loader)):
            asked = time.monotonic()
            batch = next(batches)
            wait += time.monotonic() - asked
            self.schedule.step_update(epoch * len(loader) + step)
            total += self._step(batch, loader.options.batch_size)
            progress.advance(1, f"epoch {epoch + 1}")
        images = len(loader) * loader.options.batch_size  # training batches are never short
        mean = float(self.accelerator.reduce(total, "sum")) / images
        if not np.isfinite(mean):
            raise ProblemFoundError(
                f"the training loss of epoch {epoch + 1} is {mean}; lower --optimizer.lr or set --optimizer.clip_norm. "
                "The last good checkpoint is in the run folder"
            )
        return EpochResult(mean, time.monotonic() - start, wait, images)

    def _step(self, batch: Batch, global_batch: int) -> torch.Tensor:
        """One optimizer step; returns the sum of the losses of this rank's samples, detached, float64."""
        device = self.accelerator.device
        labels = batch.labels.to(device)[: batch.real]
        with self.accelerator.autocast():
            logits = self.model(network_input(batch, device, self.format))[: batch.real]
        loss = nn.functional.cross_entropy(
            logits.float(), labels, self.class_weights, label_smoothing=self.label_smoothing, reduction="sum"
        )
        # Gradients are averaged over processes; shares may differ by one sample, so each is weighed by its true size.
        self.accelerator.backward(loss * (self.accelerator.num_processes / global_batch))
        if self.clip_norm > 0:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach().double()

    def evaluate(self, loader: Loader, num_classes: int) -> tuple[Scores, float]:
        """Scores over all samples of a loader, exactly once each, over all processes; and the mean loss."""
        return evaluate(self.accelerator, self.model, loader, num_classes, self.format)


def network_input(batch: Batch, device: torch.device, wanted: TensorFormat) -> torch.Tensor:
    """The images of a batch on the network's device, as it wants them: [k, 3, size, size]."""
    return wanted(batch.images.to(device, non_blocking=True))


def predictions(
    accelerator: Any,  # noqa: ANN401
    model: nn.Module,
    loader: Loader,
    wanted: TensorFormat,
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Each batch of this process with its logits, float32 [k, classes], in eval mode."""
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            images = network_input(batch, accelerator.device, wanted)
            with accelerator.autocast():
                logits = model(images)
            yield batch, logits.float()


def evaluate(
    accelerator: Any,  # noqa: ANN401
    model: nn.Module,
    loader: Loader,
    num_classes: int,
    wanted: TensorFormat,
) -> tuple[Scores, float]:
    """Count predictions over all processes.

    Args:
        accelerator: accelerate.Accelerator.
        model: Any model on the accelerator's device.
        loader: An evaluation loader, sharded by rank.
        num_classes: Side of the confusion matrix.
        wanted: What the network wants.

    Returns:
        The scores, equal on all processes, and the mean cross-entropy.
    """
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=accelerator.device)
    loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for batch, logits in predictions(accelerator, model, loader, wanted):
        labels = batch.labels.to(accelerator.device)[: batch.real]
        real = logits[: batch.real]
        counts += torch.bincount(labels * num_classes + real.argmax(1), minlength=num_classes * num_classes)
        loss += nn.functional.cross_entropy(real, labels, reduction="sum").double()
    counts, loss = accelerator.reduce(counts, "sum"), accelerator.reduce(loss, "sum")
    scores = Scores(counts.cpu().numpy().reshape(num_classes, num_classes))
    return scores, float(loss) / max(scores.samples, 1)
