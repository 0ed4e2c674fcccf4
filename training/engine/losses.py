"""What training minimises: losses of a global batch that add up over processes, whatever share each of them holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.errors import UsageError
from pipelines.mix import Mix
from pipelines.tensors import on_device

LossName = Literal["cross_entropy", "focal", "soft_f1", "f1_focal", "logit_adjusted"]

Reduction = Callable[[Tensor], Tensor]
"""Sums a tensor elementwise over all processes; each of them calls it equally often and gets the same answer."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised.

    Args:
        name: cross_entropy; focal counts samples that are already right less (Lin et al. 2017); soft_f1 is one minus
            the macro F1 of the batch, with probabilities for predictions; f1_focal is a blend of those two;
            logit_adjusted is cross-entropy with a margin for rare classes (Menon et al. 2021).
        label_smoothing: Share of the target that is spread over all classes. Not in soft F1.
        class_balance: How much rare classes count more: 0 not at all, 1 so that all classes weigh the same in total.
            Not in soft F1, where they do anyway.
        gamma: Of focal and f1_focal: how strongly; 0 is cross-entropy.
        f1_share: Of f1_focal: the share of soft F1, the rest is focal.
        tau: Of logit_adjusted: how wide the margin; 0 is cross-entropy, 1 aims at equal accuracy in all classes.
    """

    name: LossName = "cross_entropy"
    label_smoothing: float = 0.1
    class_balance: float = 0.0
    gamma: float = 2.0
    f1_share: float = 0.6
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in get_args(LossName):
            raise UsageError(f"--loss.name must be one of {', '.join(get_args(LossName))}, got {self.name}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--loss.label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        for name, most in (("class_balance", 1), ("gamma", 10), ("f1_share", 1), ("tau", 10)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"--loss.{name} must be 0 to {most}, got {getattr(self, name)}")


def balanced_weights(labels: NDArray[np.int64], num_classes: int, power: float) -> Tensor:
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


def log_prior(labels: NDArray[np.int64], num_classes: int) -> Tensor:
    """How often each class is met in training.

    Args:
        labels: int64 [n]; labels of the training rows.
        num_classes: Number of classes.

    Returns:
        float32 [num_classes], logarithms of shares; a class without rows counts as if it had one.
    """
    counts = np.maximum(np.bincount(labels, minlength=num_classes), 1).astype(np.float64)
    return torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)


@dataclass(frozen=True)
class Loss:
    """The loss of a global batch, each process's share of it. Made by `make_loss`.

    Attributes:
        config: Which loss.
        class_weights: float32 [classes]; see `balanced_weights`.
        log_prior: float32 [classes]; see the function of that name.
    """

    config: LossConfig
    class_weights: Tensor
    log_prior: Tensor

    def __call__(
        self, logits: Tensor, labels: Tensor, mix: Mix | None = None, *, total: int, sum_over_ranks: Reduction | None
    ) -> Tensor:
        """This process's share of the loss of the global batch.

        Summed over the processes, the values are the loss of the global batch and their gradients its gradient.
        (DDP and Accelerate average gradients instead: multiply by the number of processes before `backward`.)

        Args:
            logits: Float [k, classes]; k may be 0. Half precision is computed in float32.
            labels: int64 [k], on the same device.
            mix: What was done to the images; None or a share of 1 for nothing.
            total: Samples of the global batch.
            sum_over_ranks: Sums over processes, without gradients; None where there is only one. Soft F1 calls it once
                in every batch, on every process; the other losses never do.

        Returns:
            Scalar, float32 (float64 for float64 logits).
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        mixed = mix if mix is not None and mix.share < 1 else None
        if self.config.name in ("cross_entropy", "logit_adjusted"):
            return self._cross_entropy(logits, labels, mixed) / total
        log_p = logits.log_softmax(1)
        targets = soft_targets(labels, mixed, log_p)
        f1_share = {"focal": 0.0, "soft_f1": 1.0, "f1_focal": self.config.f1_share}[self.config.name]
        loss = logits.new_zeros(())
        if f1_share > 0:
            loss = loss + f1_share * soft_f1_loss(log_p.exp(), targets, sum_over_ranks)
        if f1_share < 1:
            smooth = smoothed(targets, self.config.label_smoothing)
            loss = loss + (1 - f1_share) * focal_loss(log_p, smooth, self.class_weights, self.config.gamma) / total
        return loss

    def _cross_entropy(self, logits: Tensor, labels: Tensor, mix: Mix | None) -> Tensor:
        if self.config.name == "logit_adjusted":
            logits = logits + self.config.tau * self.log_prior.to(logits.dtype)
        return nn.functional.cross_entropy(
            logits,
            labels if mix is None else soft_targets(labels, mix, logits),
            self.class_weights.to(logits.dtype),
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
        )


def make_loss(config: LossConfig, labels: NDArray[np.int64], num_classes: int, device: torch.device | str) -> Loss:
    """The loss that a training run minimises.

    Args:
        config: Which one.
        labels: int64 [n]; labels of the training rows. Their counts give the class weights and the prior.
        num_classes: Number of classes.
        device: Where the logits will be.

    Raises:
        UsageError: There are no training rows.
    """
    if not len(labels):
        raise UsageError("there is no training row to weigh the classes by; check the splits of --data.path")
    weights = balanced_weights(labels, num_classes, config.class_balance)
    return Loss(config, weights.to(device), log_prior(labels, num_classes).to(device))


def soft_targets(labels: Tensor, mix: Mix | None, like: Tensor) -> Tensor:
    """Probabilities of the classes that the network should give.

    Args:
        labels: int64 [k].
        mix: What was done to the images; None for nothing.
        like: [k, classes]; the result has its shape, dtype and device.

    Returns:
        [k, classes]; rows sum to 1.
    """
    own = torch.zeros_like(like, requires_grad=False).scatter_(1, labels[:, None], 1.0)
    if mix is None or not len(labels):
        return own
    partners = on_device(mix.partners[: len(labels)], labels.device)  # behind them are images that count nothing
    return torch.lerp(own[partners], own, mix.share)


def smoothed(targets: Tensor, share: float) -> Tensor:
    """A share of each row of the targets, float [k, classes], is spread evenly over all classes."""
    return targets * (1 - share) + share / targets.shape[1]


def focal_loss(log_p: Tensor, targets: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Sum over samples of sum_c w_c t_c (1 - p_c)^gamma (-log p_c).

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, for softmax and soft targets. Gamma 0 is the
    cross-entropy of torch.

    Args:
        log_p: Float [k, classes]; logarithms of probabilities.
        targets: Float [k, classes].
        weights: Float [classes].
        gamma: At least 0.

    Returns:
        Scalar.
    """
    # Where p rounds to 1, the power's slope would be infinite for gamma < 1; below the clamp there is none.
    missing = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -(weights.to(log_p.dtype) * targets * missing**gamma * log_p).sum()


def soft_f1_loss(p: Tensor, targets: Tensor, sum_over_ranks: Reduction | None) -> Tensor:
    """This process's share of 1 - macro F1 of the global batch, with probabilities in the place of predictions.

    For class c, over all samples i: tp_c = sum_i t_ic p_ic, predicted_c = sum_i p_ic, true_c = sum_i t_ic. The loss is
    1 - mean_c 2 tp_c / (predicted_c + true_c), the mean over the classes with true_c > 0: macro F1 where p is 0 or 1.

    Args:
        p: Float [k, classes]; probabilities.
        targets: Float [k, classes].
        sum_over_ranks: See `Loss`.

    Returns:
        Scalar: value of the loss of the global batch, divided by the number of processes, with the gradient with
        respect to this process's probabilities of the loss itself. 0 if no process has a sample.
    """
    local = torch.stack([(targets * p).sum(0), p.sum(0), targets.sum(0)])
    sums, ranks = _global_sums(local, sum_over_ranks)
    tp, predicted, true = sums
    present = true > 0
    f1 = 2 * tp / torch.where(present, predicted + true, 1.0)
    loss = torch.where(present, 1 - f1, 0.0).sum() / present.sum().clamp_min(1)
    return loss.detach() / ranks + (loss - loss.detach())


def _global_sums(local: Tensor, sum_over_ranks: Reduction | None) -> tuple[Tensor, Tensor]:
    """The sums over processes, which depend on `local` only for autograd; and the number of processes."""
    one = local.new_ones(1)
    if sum_over_ranks is None:
        return local, one[0]
    mine = torch.cat([local.detach().flatten(), one])
    everyone = sum_over_ranks(mine.clone())
    # The others' part is a constant here: each process brings the gradient of its own part, so no collective needs one.
    return local + (everyone - mine)[:-1].view_as(local), everyone[-1]
