"""Batch normalisation over the batches of all processes together, so that their number changes no result.

On GPUs that is torch's SyncBatchNorm. torch has none for CPUs: there the modules get a forward pass of their own, in
plain operators, which is slower and exists for proofs and for training on several CPU machines.

Source: Ioffe and Szegedy, "Batch Normalization", 2015, with the sums over all processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm2d of a model use the statistics of all processes.

    Args:
        model: Any network; changed in place on a CPU. Names of parameters and buffers stay.
        device: Where it will train.

    Returns:
        The model to use from now on.
    """
    if device.type != "cpu":
        converted: nn.Module = convert_sync_batchnorm(model)
        return converted
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SyncedBatchNorm2d
        elif type(module) is BatchNormAct2d:
            module.__class__ = _SyncedBatchNormAct2d
    return model


class _SyncedBatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self, x) if self.training else super().forward(x)


class _SyncedBatchNormAct2d(BatchNormAct2d):  # type: ignore[misc]  # timm has no types
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            result: Tensor = super().forward(x)
            return result
        activated: Tensor = self.act(self.drop(_normalised(self, x)))
        return activated


class _Summed(torch.autograd.Function):
    """The sum over processes; the gradient of every process's use of it comes back to each."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:  # noqa: ANN401 - torch's context has no type
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


def _sum_over_processes(values: Tensor) -> Tensor:
    summed: Tensor = _Summed.apply(values)
    return summed


def _normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise float [n, channels, height, width] by mean and variance over all processes; moves the statistics."""
    own = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
    total = _sum_over_processes(own)
    wide = x.float()
    mean = _sum_over_processes(wide.sum((0, 2, 3))) / total
    centred = wide - mean[None, :, None, None]
    variance = _sum_over_processes((centred * centred).sum((0, 2, 3))) / total
    _move(norm, mean.detach(), variance.detach() * (total / (total - 1).clamp(min=1)))
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    result = centred * scale[None, :, None, None]
    if norm.bias is not None:
        result = result + norm.bias[None, :, None, None]
    return result.to(x.dtype)


def _move(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as torch.nn.BatchNorm2d does; the variance is the unbiased one."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    step = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, step)
    norm.running_var.lerp_(variance, step)
