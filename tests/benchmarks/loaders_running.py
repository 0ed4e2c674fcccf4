"""A loader that `tests.benchmarks.loaders` has started: asking it, and what its whole tree of processes has used."""

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

LONGEST = 900.0
"""Seconds that an answer may take: a conversion, or a compilation."""

QUIET, QUIET_CPU, LONGEST_UNREST = 0.1, 0.015, 5.0
"""A loader has come to rest when in so many seconds it used no more CPU seconds than this; waited for so long."""

PATIENCE = 10.0
"""Seconds that a loader has to stop by itself."""

Answer = dict[str, Any]


class PeerFailedError(Exception):
    """A loader died, said it cannot, or did not answer in time."""


class Running:
    """A process that speaks the protocol of `tests/benchmarks/peers/protocol.py`.

    Args:
        words: Command line.
        environment: Its environment variables.
        log: File for its standard error.
    """

    def __init__(self, words: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._heard = b""
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                cwd=log.parent,
            )
        self._root = psutil.Process(self._process.pid)

    def ask(self, command: str, longest: float = LONGEST) -> Answer:
        """Send a command and wait for the answer.

        Raises:
            PeerFailedError: See there.
        """
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(f"{command}\n".encode())
            stdin.flush()
        except OSError:
            raise self._failure("died") from None
        return self.hear(longest)

    def hear(self, longest: float = LONGEST) -> Answer:
        """Wait for an answer.

        Raises:
            PeerFailedError: See there.
        """
        deadline = time.monotonic() + longest
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._heard:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._failure(f"did not answer within {longest:.0f} s")
            part = os.read(descriptor, 1 << 16)
            if not part:
                raise self._failure("died")
            self._heard += part
        line, _, self._heard = self._heard.partition(b"\n")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise PeerFailedError(str(answer["error"]))
        return answer

    def _failure(self, what: str) -> PeerFailedError:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return PeerFailedError(": ".join([what, *lines[-1:]]))

    def tree(self) -> list[Any]:
        """The processes: all children at any depth, then the root."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [*self._root.children(recursive=True), self._root]
        return []

    def cpu_seconds(self) -> float:
        """CPU seconds, user and system, of the whole tree, of processes that have ended as well.

        A process that has ended counts with its parent as soon as that has waited for it, as all of them do. The
        children are read before the root: what ends in between is found there.
        """
        used = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                used += sum(process.cpu_times()[:4])
        return used

    def settle(self) -> bool:
        """Wait until the tree is at rest: nothing half done is left to the next one's turn. False if it never is."""
        last, end = self.cpu_seconds(), time.monotonic() + LONGEST_UNREST
        while time.monotonic() < end:
            time.sleep(QUIET)
            now = self.cpu_seconds()
            if now - last <= QUIET_CPU:
                return True
            last = now
        return False

    def forget_peaks(self) -> None:
        """Let the system's record of peaks of memory begin anew (Linux; elsewhere they hold the start as well)."""
        for process in self.tree():
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Peaks of resident memory of all processes, added up; pages that they share count with each of them."""
        return sum(_status_kib(process.pid) for process in self.tree()) * 1024

    def close(self) -> None:
        """Say goodbye; what has not gone after a few seconds is ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        tree = self.tree()
        if not stdin.closed:
            with contextlib.suppress(OSError):
                stdin.write(b"quit\n")
            with contextlib.suppress(OSError):
                stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        _end(tree)
        self._process.wait()
        stdout.close()


def _status_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


def _end(processes: Iterable[Any]) -> None:
    left = [process for process in processes if process.is_running()]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=1)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
