"""A job that ends while a thread of gloo still holds a tensor of Python, as on a busy machine.

python -m tests.training.late_thread [--status 75]
"""

import atexit
import os
import sys
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipelines.console.job import run_job
from training.engine.preemption import PreemptedError


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the job does.

    Args:
        status: Exit status.
    """

    status: int = 0


class Late(torch.Tensor):
    """Keeps the thread that drops it last, without Python's lock."""

    def __del__(self, sleep=time.sleep):
        sleep(1)


class Slow:
    """Keeps Python from ending for so long that the late thread meets it, if Python is taken down."""

    def __del__(self, sleep=time.sleep):
        sleep(2)


def body(config):
    """Two sums over the ranks; of the first nobody waits for the end."""
    dist.init_process_group("gloo")
    if os.environ["RANK"] == "1":
        time.sleep(1)  # so that the other's first sum is under way when all but gloo's thread have let go of it
    dist.all_reduce(torch.ones(1).as_subclass(Late), async_op=True)
    number = torch.ones(1)
    dist.all_reduce(number)
    atexit.register(print, "tidied", file=sys.stderr)
    if config.status:
        raise PreemptedError("stopped", config.status)
    return {"sum": number.item()}


if __name__ == "__main__":
    slow = Slow()
    run_job(Config, body, name="tests.training.late_thread", summary="Add.", example="", table=str)
