"""Channels in another order: what is left of a channel shuffle whose channels were thinned out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Reorder(nn.Module):
    """Puts channels into a given order: [n, c, …] → [n, len(order), …]. Costs no multiply-accumulates.

    Args:
        order: For each channel that goes out, which one comes in.

    Raises:
        ValueError: It is empty, or holds something else than whole numbers from 0 on.
    """

    index: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        if not order or not all(isinstance(place, int) and place >= 0 for place in order):
            raise ValueError(f"{list(order)[:5]} is no order of channels")
        self.register_buffer("index", torch.tensor(order, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, …] → [n, len(order), …]."""
        return x.index_select(1, self.index)

    def extra_repr(self) -> str:
        """Its width."""
        return f"{len(self.index)}"
