"""PyTorch as a runtime: as it is, or compiled."""

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.errors import UsageError
from pipelines.tensors import TensorFormat
from training.model.card import ModelCard


class TorchRuntime:
    """Runs a network in PyTorch, float32, in eval and inference mode.

    On a GPU the time of a call includes the way of the images there and of the logits back.

    Attributes:
        name: `torch-eager` or `torch-compile`, with `-cuda` on a GPU.
        threads: CPU threads of a forward pass; PyTorch's own number is put back after it.
        size: Side of the images, px.
        classes: Class names in index order.

    Args:
        model: Takes float [n, 3, size, size]. It is copied, and never changed.
        card: Its size, classes, and what it was normalised with.
        device: `cpu` or `cuda`.
        compile: Run it through `torch.compile`; the first call with a new number of images then takes seconds to
            minutes, and fails where there is no C++ compiler.
        threads: See above.
    """

    def __init__(
        self, model: nn.Module, card: ModelCard, *, device: str = "cpu", compile: bool = False, threads: int = 1
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: PyTorch sees no GPU here; leave --device at cpu")
        self._device = torch.device(device)
        kind = "compile" if compile else "eager"
        self.name = f"torch-{kind}" if self._device.type == "cpu" else f"torch-{kind}-{self._device.type}"
        self.threads, self.size, self.classes = threads, card.size, card.classes
        self._format = TensorFormat("float32", card.mean, card.std)
        network = copy.deepcopy(model).eval().to(self._device)
        self._forward: Callable[[Tensor], Tensor] = _compiled(network) if compile else network

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network, see `Runtime.logits`."""
        levels = torch.from_numpy(images).permute(0, 3, 1, 2)
        with torch_threads(self.threads), torch.inference_mode():
            logits = self._forward(self._format(levels.to(self._device)))
            return logits.float().cpu().numpy()  # waits for a GPU


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many CPU threads in here; that number belongs to the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """`torch.compile` of a function whose code no other network has.

    torch.compile keeps what it compiled by code, at most eight versions, and runs what comes after them uncompiled: the
    ninth width of one architecture would be timed as something that it is not.
    """

    def forward(images: Tensor) -> Tensor:
        return network(images)

    own = types.FunctionType(
        forward.__code__.replace(), forward.__globals__, forward.__name__, None, forward.__closure__
    )
    return torch.compile(own)
