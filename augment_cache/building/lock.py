"""One builder at a time: locks that the operating system drops when their process dies, however it dies."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from pipelines.console.output import say
from pipelines.errors import UsageError

LOCK_NAME = ".lock"
"""Held for as long as a build runs: shared by the parts of one build, exclusive otherwise."""
TURN_NAME = ".turn"
"""Held for moments, by whoever decides what the manifest says."""
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What file systems answer that cannot lock: some mounts of Lustre and NFS."""
LEAVING_SECONDS = 2.0
"""How long a part waits for another one that leaves and holds the folder alone while it tidies; and how long anybody
waits for who has the lock, and has not signed it yet, to say who that is."""


@contextmanager
def building(out: Path, part: tuple[int, int] | None) -> Iterator[None]:
    """Hold the folder of a cache while it is being built; makes the folder.

    Args:
        out: The folder.
        part: (index, number of parts) of a build that is done in parts; parts work side by side, but each only once.

    Raises:
        UsageError: Somebody else is building there; says who.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _held(out / LOCK_NAME, fcntl.LOCK_SH if part else fcntl.LOCK_EX, out) as whole:
            try:
                if part is None:
                    yield
                else:
                    with _part_held(out, part):
                        yield
            finally:
                _leave(out, whole)
    finally:
        with suppress(OSError):
            out.rmdir()  # if nothing came of it


@contextmanager
def _part_held(out: Path, part: tuple[int, int]) -> Iterator[None]:
    path = out / f"{LOCK_NAME}-{part[0]:05d}-of-{part[1]:05d}"
    with _held(path, fcntl.LOCK_EX, out):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _leave(out: Path, lock: int) -> None:
    """The last one out removes locks and what killed builds were writing; who opens a lock now notices that it goes."""
    patterns = [f"{LOCK_NAME}-*", TURN_NAME, LOCK_NAME]
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        patterns = [".*.partial-*", "*/.*.partial-*", *patterns]
    except OSError as error:
        if error.errno not in NO_LOCKS:  # where nobody can lock, others may be writing, but locks are of no use
            return
    with suppress(OSError):
        for pattern in patterns:
            for path in out.glob(pattern):
                path.unlink(missing_ok=True)


@contextmanager
def turn(out: Path) -> Iterator[None]:
    """Wait for, and hold, the right to change which shards there are and what the manifest says."""
    with alone(out / TURN_NAME):
        yield


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait for, and hold, a lock of that name; makes the file, and leaves it."""
    with _held(lock, fcntl.LOCK_EX, lock.parent, wait=True):
        yield


@contextmanager
def _held(path: Path, kind: int, out: Path, *, wait: bool = False) -> Iterator[int]:
    """An open, locked file; its descriptor is not inherited by other programs."""
    descriptor = _locked(path, kind, out, wait=wait)
    try:
        if not wait:
            _sign(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(path: Path, kind: int, out: Path, *, wait: bool) -> int:
    patience = time.monotonic() + LEAVING_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = _signature(descriptor)
            os.close(descriptor)
            if (kind == fcntl.LOCK_SH or not who) and time.monotonic() < patience:
                time.sleep(0.01)
                continue
            raise UsageError(
                f"{out} is being built by {who or 'another process'}; "
                "wait until it has finished, or stop it: what is finished is kept"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            _say_once(f"the file system of {out} has no locks: nothing keeps a second build out of the folder")
            return descriptor
        if _is_current(descriptor, path):
            return descriptor
        os.close(descriptor)  # its owner removed it between our opening and locking it


_say_once = cache(say)


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    words = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # a full disk is somebody else's news
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(words).encode(), 0)


def _signature(descriptor: int) -> str | None:
    try:
        words = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {words['pid']} on {words['host']}, since {words['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
