"""One step of training, and one pass of evaluation: Accelerate for devices, processes and precision.

Accelerate's traps are avoided by construction: loaders are sharded by rank and never prepared (a foreign loader would
pass through unsharded); the schedule is a function of the step and never prepared (it would advance once per process);
gradients are accumulated here (a foreign loader would never end an epoch); counts are summed exactly instead of
gathered with padding; noise (dropout, stochastic depth) is a function of the step, so no generator has to be stored.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import nn

from pipelines.loader import Batch, Loader
from pipelines.tensors import TensorFormat
from training.engine.learner import deployed
from training.engine.metrics import Scores
from training.engine.objective import LOGITS, Forward, Objective
from training.engine.optimization import Schedule, keep_frozen_in_eval
from training.engine.sparsity import Sparsity
from training.measure.predictions import Predictions, probabilities


@dataclass
class Trainer:
    """Trains and evaluates a prepared model.

    Attributes:
        accelerator: accelerate.Accelerator.
        model: Prepared.
        optimizer: Prepared.
        schedule: Not prepared.
        objective: What is minimised.
        format: What the network wants.
        clip_norm: Largest norm of the gradient; 0 for any.
        seed: Of dropout and stochastic depth.
        frozen: Modules that do not learn.
        ema: timm.utils.ModelEmaV3, None for none.
        sparsity: Weights that stay zero, None for none.
    """

    accelerator: Any
    model: nn.Module
    optimizer: Any
    schedule: Schedule
    objective: Objective
    format: TensorFormat
    clip_norm: float
    seed: int
    frozen: Sequence[nn.Module] = ()
    ema: Any = None
    sparsity: Sparsity | None = None

    @property
    def plain(self) -> nn.Module:
        """The network without what Accelerate and torch.compile wrapped around it."""
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        return getattr(model, "_orig_mod", model)

    @property
    def evaluated(self) -> nn.Module:
        """What is evaluated and kept: the average of the weights if there is one, without parts of training."""
        return deployed(self.ema.module if self.ema is not None else self.plain)

    def train_mode(self) -> None:
        """To be called before training goes on."""
        self.model.train()
        keep_frozen_in_eval(self.frozen)

    def step(self, parts: Sequence[Batch], number: int, total: int) -> torch.Tensor:
        """One optimizer step.

        Args:
            parts: The batch of this process, cut for gradient accumulation.
            number: Of the step, counted over the whole run.
            total: Samples of each part, of all processes together.

        Returns:
            This process's share of the loss, float64, detached; the sum over all processes is the mean over samples.
        """
        self.schedule.set(number)
        summed = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        for place, batch in enumerate(parts):
            seed_noise(self.accelerator.device, self.seed, number, place, self.accelerator.process_index)
            last = place == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._loss(batch, total) / len(parts)
                # Gradients are averaged over processes, but the shares of the loss are to be added up.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            summed += loss.detach()
        if self.sparsity is not None:
            self.sparsity.clear_gradients()
        if self.clip_norm > 0:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.sparsity is not None:
            self.sparsity.after_step(number + 1)
        if self.ema is not None:
            self.ema.update(self.plain, step=number)
        return summed

    def _loss(self, batch: Batch, total: int) -> torch.Tensor:
        device = self.accelerator.device
        images = network_input(batch, device, self.format)
        with self.accelerator.autocast():
            outputs = self.model(images)
        real = slice(0, batch.real)
        named = outputs if isinstance(outputs, dict) else {LOGITS: outputs}
        return self.objective(
            Forward(
                images=images[real],
                outputs={name: value[real].float() for name, value in named.items()},
                labels=batch.labels.to(device, non_blocking=True)[real],
                rows=batch.rows[real],
                mix=batch.mix,
                total=total,
            )
        )

    def evaluate(
        self, loader: Loader, num_classes: int, between: Callable[[], None] = lambda: None
    ) -> tuple[Scores, float]:
        """Scores over all samples of a loader, exactly once each, over all processes; and the mean loss.

        Args:
            loader: An evaluation loader, sharded by rank.
            num_classes: Side of the confusion matrix.
            between: Called between batches; may raise to stop.
        """
        align_buffers(self.evaluated)
        model = self.model if self.ema is None else self.ema.module
        return evaluate(self.accelerator, model, loader, num_classes, self.format, between)


def seed_noise(device: torch.device, *key: int) -> None:
    """Make what the network draws (dropout, stochastic depth) a function of some numbers of 64 bits."""
    digest = blake2b(struct.pack(f"<{len(key)}Q", *key), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    torch.default_generator.manual_seed(number)  # torch.manual_seed takes a quarter of a millisecond without a GPU
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def align_buffers(model: nn.Module) -> None:
    """Give all processes the buffers (running statistics) of the first: those that are saved."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def network_input(batch: Batch, device: torch.device, wanted: TensorFormat) -> torch.Tensor:
    """The images of a batch on the network's device, as it wants them: [k, 3, size, size]."""
    images = batch.images.to(device, non_blocking=True)
    return wanted(images) if images.dtype == torch.uint8 else images


def predictions(
    accelerator: Any,  # noqa: ANN401
    model: nn.Module,
    loader: Loader,
    wanted: TensorFormat,
    between: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Each batch of this process with its logits, float32 [k, classes], in eval mode."""
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            between()
            images = network_input(batch, accelerator.device, wanted)
            with accelerator.autocast():
                logits = model(images)
            yield batch, logits.float()


def gather_predictions(
    accelerator: Any,  # noqa: ANN401
    model: nn.Module,
    loader: Loader,
    classes: tuple[str, ...],
    wanted: TensorFormat,
) -> Predictions | None:
    """What a model says to every sample of a loader, each once, over all processes.

    Args:
        accelerator: accelerate.Accelerator.
        model: Any model on the accelerator's device.
        loader: An evaluation loader, sharded by rank.
        classes: Class names in index order.
        wanted: What the network wants.

    Returns:
        The predictions in the order of the source, on the first process; None elsewhere. Damaged samples are left out.
    """
    parts = [
        (batch.rows[: batch.real], batch.labels[: batch.real].cpu().numpy(), logits[: batch.real].cpu().numpy())
        for batch, logits in predictions(accelerator, model, loader, wanted)
    ]
    gathered = gather_object(parts)
    if not accelerator.is_main_process:
        return None
    rows, labels, logits = (np.concatenate(column) for column in zip(*gathered, strict=True))
    order = np.argsort(rows)
    source = loader.source
    return Predictions(
        classes=classes,
        ids=source.ids[rows[order]],
        sources=[source.describe(row) for row in rows[order].tolist()],
        labels=labels[order],
        shares=probabilities(logits[order]),
    )


def evaluate(
    accelerator: Any,  # noqa: ANN401
    model: nn.Module,
    loader: Loader,
    num_classes: int,
    wanted: TensorFormat,
    between: Callable[[], None] = lambda: None,
) -> tuple[Scores, float]:
    """Count predictions over all processes.

    Args:
        accelerator: accelerate.Accelerator.
        model: Any model on the accelerator's device.
        loader: An evaluation loader, sharded by rank.
        num_classes: Side of the confusion matrix.
        wanted: What the network wants.
        between: Called between batches; may raise to stop.

    Returns:
        The scores, equal on all processes, and the mean cross-entropy.
    """
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=accelerator.device)
    loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for batch, logits in predictions(accelerator, model, loader, wanted, between):
        labels = batch.labels.to(accelerator.device, non_blocking=True)[: batch.real]
        real = logits[: batch.real]
        counts += torch.bincount(labels * num_classes + real.argmax(1), minlength=num_classes * num_classes)
        loss += nn.functional.cross_entropy(real, labels, reduction="sum").double()
    counts, loss = accelerator.reduce(counts, "sum"), accelerator.reduce(loss, "sum")
    scores = Scores(counts.cpu().numpy().reshape(num_classes, num_classes))
    return scores, float(loss) / max(scores.samples, 1)
