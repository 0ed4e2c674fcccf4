"""Mixup and CutMix of whole batches, from the plan.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun et al., "CutMix", ICCV 2019; one draw per
batch and either of the two, as timm does it by default. Unlike there, who is mixed with whom does not depend on how the
batch is cut: positions 0 and 1 of the global batch are partners, 2 and 3, and so on, and no cut between ranks parts
partners.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import philox
from pipelines.plan import Stage
from pipelines.tensors import on_device

STEPS = 4096
"""Shares are multiples of 1 / STEPS, so that no library's last bit decides a pixel."""


@dataclass(frozen=True, kw_only=True)
class MixOptions:
    """How batches are mixed.

    Attributes:
        mixup: Mixup's alpha: shares are drawn from Beta(alpha, alpha); 0 for no mixup.
        cutmix: CutMix' alpha, likewise.
        probability: Share of the batches that are mixed.
        switch: Share of those that get CutMix, where both are on.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise ValueError(f"{name} must be 0 (off) to 100, got {getattr(self, name)}")
        for name in ("probability", "switch"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def active(self) -> bool:
        """Whether any batch may be mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0


NO_MIX = MixOptions()


class Mix(NamedTuple):
    """What happens to one batch.

    The target of image i is `share` parts of its own label and 1 - `share` parts of the label of `partners[i]`.
    """

    share: float
    """Of its own image that each keeps; 1 leaves the batch as it is."""
    partners: NDArray[np.int64]
    """int64 [k]; position of each image's partner in the same batch; its own where it has none."""
    box: tuple[int, int, int, int] | None
    """CutMix: (left, top, right, bottom) in px of what the partner shows through."""


def draw_mix(options: MixOptions, places: NDArray[np.int64], size: int, *, seed: int, epoch: int, number: int) -> Mix:
    """Draw what happens to a batch.

    Args:
        options: What may happen.
        places: int64 [k]; where each image of this rank's batch stood before any was left out.
        size: Side of the images in px.
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.
        number: Which batch: position of its first sample in the epoch.

    Returns:
        A function of (options, seed, epoch, number), the same on every rank, but for the partners.
    """
    words = philox.words(
        seed, np.full(2, number, np.uint64) << np.uint64(1) | np.array([0, 1], np.uint64), epoch, _BLOCK
    )
    whether, which, left, top = philox.uniform(words[0]).tolist()
    quantile = float(philox.uniform(words[1])[0])
    if whether >= options.probability:
        return Mix(1.0, np.arange(len(places)), None)
    cut = options.cutmix > 0 and (options.mixup == 0 or which < options.switch)
    share = beta_quantile(options.cutmix if cut else options.mixup, quantile)
    if not cut:
        return Mix(share, partners_of(places), None)
    box = cut_box(share, (left, top), size)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return Mix(1.0 - area / size**2, partners_of(places), box)


_BLOCK = Stage.MIX << 16


def beta_quantile(alpha: float, probability: float) -> float:
    """The value below which Beta(alpha, alpha) lies with a probability, a multiple of 1 / STEPS."""
    from scipy.special import betaincinv  # slow to import

    return round(float(betaincinv(alpha, alpha, probability)) * STEPS) / STEPS


def cut_box(share: float, centre: tuple[float, float], size: int) -> tuple[int, int, int, int]:
    """The square whose area is 1 - `share` of the image, clipped to it: (left, top, right, bottom) in px.

    Args:
        share: Of the image that stays, in [0, 1].
        centre: (x, y) as shares of the side, each in [0, 1).
        size: Side of the image in px.
    """
    side = int(size * (1.0 - share) ** 0.5)
    left, top = int(centre[0] * size) - side // 2, int(centre[1] * size) - side // 2
    return max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)


def partners_of(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each image's partner is among those that are there; its own position if it is not."""
    position = {place: index for index, place in enumerate(places.tolist())}
    return np.array([position.get(place ^ 1, index) for place, index in position.items()], np.int64)


def mixed(images: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Carry it out.

    Args:
        images: Float [k, 3, size, size].
        mix: From `draw_mix`.

    Returns:
        The mixed images, in memory of their own; the images themselves if nothing is mixed.
    """
    if mix.share == 1.0:
        return images
    partners = images[on_device(mix.partners, images.device)]
    if mix.box is None:
        return torch.lerp(partners, images, mix.share)
    left, top, right, bottom = mix.box
    result = images.clone()
    result[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return result
