"""What a runtime takes and gives."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Runtime(Protocol):
    """Runs one network. Levels go in as the engines render them; scaling and shifting is the runtime's work.

    Attributes:
        name: For people and reports: `torch-eager`, `onnxruntime-fp32`, …
        threads: CPU threads that one forward pass may use.
        size: Side of the images, px.
        classes: Class names in index order.
    """

    name: str
    threads: int
    size: int
    classes: tuple[str, ...]

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network; returns when the result is there.

        Args:
            images: uint8 [n, size, size, 3], RGB, contiguous.

        Returns:
            float32 [n, classes].
        """
        ...
