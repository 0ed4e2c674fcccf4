"""Runs `training.train` and does something to this process in the middle of it, for drills in real processes.

python -m tests.training.interrupted '{"step": 5, "rank": 1, "signal": "SIGUSR1"}' --data.path …
"""

import json
import os
import signal
import sys
from pathlib import Path

from training import train
from training.engine.loop import Trainer


def at(moment, count, action):
    """Act in the middle of a step, in an evaluation, or between the writing of a file and its renaming.

    Args:
        moment: `step`, `evaluate` or `write`.
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
        done[0] += 1
        if done[0] == count + 1:
            action()
        return whole(*arguments, **more)

    setattr(holder, name, counted)


if __name__ == "__main__":
    plan = json.loads(sys.argv.pop(1))
    if plan.get("rank") in (None, int(os.environ.get("RANK", "0"))):
        number = signal.Signals[plan["signal"]]
        at(plan.get("moment", "step"), plan["step"], lambda: os.kill(os.getpid(), number))
    train.main()
