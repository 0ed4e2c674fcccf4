"""Runs `training.train` and does something to this process in the middle of it, for drills in real processes.

python -m tests.training.interrupted '{"step": 5, "rank": 1, "signal": "SIGUSR1"}' --data.path …
"""

import json
import os
import re
import signal
import sys
from pathlib import Path

from accelerate.tracking import GeneralTracker, register_tracker_class

from training import train
from training.engine.loop import Trainer

WHAT_COUNTS = re.compile(r"step-\d+[^/]*$|\.safetensors$")


class Diary(GeneralTracker):
    """A tracker that keeps nothing."""

    name, requires_logging_directory, tracker = "diary", False, None

    def __init__(self, project, **options):
        super().__init__()

    def store_init_configuration(self, values):
        """Nothing."""

    def log(self, values, step=None, **more):
        """Nothing."""


def at(moment, count, action):
    """Act in the middle of a step, in an evaluation, or between the writing of a file and its renaming.

    Args:
        moment: `step`, `evaluate` or `write`: of a checkpoint or a model file.
        count: Number of the step; or how many evaluations or renamings come first.
        action: What to do.
    """
    if moment == "step":
        take = Trainer.step

        def stepped(self, parts, number, total):
            if number == count:
                action()
            return take(self, parts, number, total)

        Trainer.step = stepped
        return
    holder, name = (Trainer, "evaluate") if moment == "evaluate" else (Path, "replace")
    whole, done = getattr(holder, name), [0]

    def counted(*arguments, **more):
        if moment == "write" and not WHAT_COUNTS.search(str(arguments[1])):
            return whole(*arguments, **more)
        done[0] += 1
        if done[0] == count + 1:
            action()
        return whole(*arguments, **more)

    setattr(holder, name, counted)


if __name__ == "__main__":
    plan = json.loads(sys.argv.pop(1))
    register_tracker_class(Diary)
    if plan.get("rank") in (None, int(os.environ.get("RANK", "0"))):
        number = signal.Signals[plan["signal"]]
        at(plan.get("moment", "step"), plan["step"], lambda: os.kill(os.getpid(), number))
    train.main()
