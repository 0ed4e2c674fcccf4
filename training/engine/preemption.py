"""Being told to stop: signals set a flag, all processes agree on it, the run saves and asks to be started again.

Slurm sends a signal some time before it takes the machine away (`--signal=USR1@90`), or SIGTERM without notice when it
preempts a job. The signal may reach any subset of the processes at any time: inside a step, an evaluation, or the
writing of a checkpoint. So a handler only sets a flag, and between steps all processes learn the most urgent thing that
any of them wants.
"""

import os
import signal
import threading
from enum import IntEnum
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from pipelines.errors import TacopressError

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: a batch script takes it for "queue me again"."""
CAP_NAME = "TACOPRESS_MAX_REQUEUES"
"""Environment variable: the scripts of `slurm/` say by it how often they let a job be queued again."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class Wish(IntEnum):
    """What a process wants at the end of a step; of all wishes the largest is granted."""

    GO_ON = 0
    SAVE = 1
    STOP = 2
    GIVE_UP = 3


class PreemptedError(TacopressError):
    """The run was told to stop, and can go on later. Exit status 75; 130 after Ctrl-C; 1 beyond the cap on requeues."""

    exit_status = EXIT_STATUS

    def __init__(self, message: str, exit_status: int = EXIT_STATUS) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class StopSignals:
    """Remembers signals instead of dying of them, inside a `with` block.

    A second Ctrl-C interrupts at once. In a thread other than the main one nothing is changed: Python delivers no
    signals there. Processes forked inside the block ignore what they inherit.

    Attributes:
        received: The first signal, None before it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopSignals):  # a signal that came after the last look in here
                outer.received = outer.received or self.received
        self._before.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)

    @property
    def wish(self) -> Wish:
        """STOP after a signal."""
        return Wish.GO_ON if self.received is None else Wish.STOP


class Council:
    """Between steps, all processes learn the most urgent wish of any.

    The question is asked before a step and answered after it, so that the exchange (of one integer, on the CPU) runs
    while the step does.

    Args:
        world: Number of processes; with one there is nothing to ask.
    """

    def __init__(self, world: int) -> None:
        # Its own group on the CPU: a GPU would have to be waited for.
        self._group: Any = dist.new_group(backend="gloo") if world > 1 else None
        self._wish = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None

    def ask(self, wish: Wish) -> None:
        """Tell the others what this process wants. All processes must ask, and then hear, equally often."""
        self._wish[0] = int(wish)
        if self._group is not None:
            self._work = dist.all_reduce(self._wish, dist.ReduceOp.MAX, self._group, async_op=True)

    def hear(self) -> Wish:
        """The most urgent wish of all processes when they last asked."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return Wish(int(self._wish[0]))


def requeues() -> int:
    """How often Slurm has started this job again."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def preempted(received: signal.Signals | None, run: object, max_requeues: int) -> PreemptedError:
    """What to end with after the run has been saved (or could not be).

    Args:
        received: The signal that reached this process, None if it reached another one.
        run: Folder of the run.
        max_requeues: Beyond so many restarts by Slurm (SLURM_RESTART_COUNT) no further one is asked for; under the
            scripts of `slurm/`, what `site.env` says instead.
    """
    cause = received.name if received is not None else "a signal to another process"
    again = f"run the same command again, without --overwrite, to go on with {run}"
    if received == signal.SIGINT:
        return PreemptedError(f"interrupted; {again}", 130)
    restarts, cap = requeues(), int(os.environ.get(CAP_NAME) or max_requeues)
    if restarts >= cap:
        return PreemptedError(
            f"stopped by {cause} after {restarts} restarts, all that max_requeues ({cap}) allows; {again}",
            1,
        )
    return PreemptedError(f"stopped by {cause}; {again}")
