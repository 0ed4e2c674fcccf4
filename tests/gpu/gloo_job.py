"""A job whose processes talk through gloo, for two of them may share one card, which NCCL forbids.

python -m tests.gpu.gloo_job training.train --data.path out/cache
"""

import os
import runpy
import sys

import torch
from accelerate import PartialState


def main() -> None:
    """Decide how processes talk before the job does, and run it."""
    module, *words = sys.argv[1:]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.cuda.is_available():
        PartialState(backend="gloo")
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
