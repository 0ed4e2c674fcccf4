"""Several processes go on together or not at all: an error of one is an error of all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipelines.errors import ProblemFoundError, TacopressError


@contextmanager
def agreeing(accelerator: Any) -> Iterator[None]:  # noqa: ANN401 - accelerate.Accelerator
    """After the block, ask whether every process came through it: one that raised alone would be waited for for ever.

    Raises:
        ProblemFoundError: Another process failed; what is wrong is said there.
    """
    error: Exception | None = None
    try:
        yield
    except (TacopressError, OSError) as found:
        error = found
    if accelerator.num_processes > 1:
        failed = torch.tensor([int(error is not None)], device=accelerator.device)
        total = int(accelerator.reduce(failed, "sum"))
        if error is None and total:
            raise ProblemFoundError("another process could not go on; its own message says why")
    if error is not None:
        raise error
