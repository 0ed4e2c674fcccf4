"""One builder at a time, parts side by side, and nothing of this outlives a process, however it dies."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import pytest

from augment_cache.building import lock, run
from augment_cache.building.lock import building, turn
from pipelines.errors import CorruptSampleError, TacopressError, UsageError
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
WHO = rf"being built by process {os.getpid()} on {socket.gethostname()}, since \d{{4}}-.*wait until it has finished"


@pytest.fixture(autouse=True)
def no_threads_of_other_tests(monkeypatch):
    """Builders fork only where no other thread runs, and some tests of other files leave one behind."""
    real, left = threading.active_count, threading.active_count() - 1
    monkeypatch.setattr(threading, "active_count", lambda: max(1, real() - left))


def hidden(folder):
    return sorted(path.name for path in folder.rglob(".*"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "LEAVING_SECONDS", 0.05)


def test_a_second_whole_build_is_refused_with_who_holds_it(photos, build_cache, hashes, cache, tmp_path):
    out = tmp_path / "cache"
    with building(out, None):
        with pytest.raises(UsageError, match=WHO):
            build_cache(photos, out)
        assert hidden(out) == [".lock"]
    build_cache(photos, out)
    assert hashes(out) == hashes(cache)


PARTS = [(None, (0, 2)), ((0, 2), None), ((1, 2), (1, 2)), (None, None)]


@pytest.mark.parametrize(("first", "second"), PARTS, ids=str)
def test_who_keeps_whom_out(tmp_path, first, second):
    out = tmp_path / "cache"
    with building(out, first):
        with pytest.raises(UsageError, match=WHO), building(out, second):
            pytest.fail("both are in")
        with pytest.raises(UsageError, match=WHO), building(out, second):
            pytest.fail("the first refusal has opened the door")
    with building(out, second):
        pass


def test_a_part_beside_a_whole_build_is_refused_as_a_job(photos, build_cache, tmp_path):
    with building(tmp_path / "cache", (0, 2)), pytest.raises(UsageError, match=WHO):
        build_cache(photos, tmp_path / "cache")
    with building(tmp_path / "cache", None), pytest.raises(UsageError, match=WHO):
        build_cache(photos, tmp_path / "cache", part=0, of=2)
    with building(tmp_path / "cache", (0, 2)), pytest.raises(UsageError, match=WHO):
        build_cache(photos, tmp_path / "cache", part=0, of=2)


def test_different_parts_work_side_by_side(tmp_path):
    out = tmp_path / "cache"
    with building(out, (0, 3)), building(out, (2, 3)), building(out, (0, 8)):
        assert hidden(out) == [".lock", ".lock-00000-of-00003", ".lock-00000-of-00008", ".lock-00002-of-00003"]
    assert not out.exists(), "nothing came of it"


def test_whoever_leaves_first_leaves_the_others_locked(tmp_path):
    out = tmp_path / "cache"
    with ExitStack() as stack:
        stack.enter_context(building(out, (0, 2)))
        with building(out, (1, 2)):
            pass
        with pytest.raises(UsageError), building(out, None):
            pytest.fail("a part is still at work")
        with building(out, (1, 2)):
            pass


def test_a_part_may_come_while_another_leaves(tmp_path, monkeypatch):
    """The one that leaves holds the folder alone for a moment, to tidy it: no reason to refuse a part."""
    monkeypatch.setattr(lock, "LEAVING_SECONDS", 5.0)
    out = tmp_path / "cache"
    out.mkdir()
    descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    real, tries = fcntl.flock, []

    def flock(which, kind):
        tries.append(kind)
        if len(tries) == 3:
            (out / ".lock").unlink()
            os.close(descriptor)
        real(which, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with building(out, (1, 2)):
        assert (out / ".lock").exists()
    assert len(tries) > 3


@pytest.mark.parametrize("error", [UsageError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")], ids=repr)
@pytest.mark.parametrize("part", [None, (0, 2)])
def test_locks_are_gone_after_an_error(tmp_path, error, part):
    out = tmp_path / "cache"
    (out / "train").mkdir(parents=True)
    kept = out / "train" / "shard-00000-of-00001.arrow"
    kept.write_bytes(b"x")

    def fail():
        with building(out, part), turn(out):
            assert ".turn" in hidden(out)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [path for path in out.rglob("*") if path.is_file()] == [kept]


def test_locks_are_gone_after_a_build_that_failed(own_photos, build_cache, tmp_path):
    (own_photos / "Paper" / "torn.jpg").write_bytes(b"torn")
    for options in ({}, {"processes": 2}, {"part": 0, "of": 1}):
        with pytest.raises(CorruptSampleError, match=r"torn\.jpg"):
            build_cache(own_photos, tmp_path / "cache", strict=True, **options)
        assert hidden(tmp_path / "cache") == []
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_half_written_files_are_removed_by_the_last_one_out(tmp_path):
    out = tmp_path / "cache"
    (out / "train").mkdir(parents=True)
    torn = [out / ".manifest.json.partial-7-ab", out / "train" / ".shard-00000-of-00001.arrow.partial-7-ab"]
    for path in torn:
        path.write_bytes(b"half")
    with building(out, (0, 2)):
        with building(out, (1, 2)):
            pass
        assert all(path.exists() for path in torn), "the other part may be writing them"
    assert not any(path.exists() for path in torn)


# --- file systems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(lock.NO_LOCKS))
@pytest.mark.parametrize("options", [{}, {"part": 0, "of": 1}, {"processes": 2}], ids=str)
def test_without_locks_a_build_warns_once_and_goes_on(
    photos, build_cache, hashes, cache, tmp_path, monkeypatch, capsys, code, options
):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    build_cache(photos, tmp_path / "cache", **options)
    assert capsys.readouterr().err.count("has no locks: nothing keeps a second build out") == 1
    assert hashes(tmp_path / "cache") == hashes(cache)


def test_without_locks_half_written_files_of_others_stay(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    torn = tmp_path / ".manifest.json.partial-7-ab"
    torn.write_bytes(b"half")
    with building(tmp_path, (0, 2)):
        pass
    assert hidden(tmp_path) == [torn.name]


def test_another_error_of_the_file_system_is_none_of_ours(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the number of entries is all that matters
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"), building(tmp_path / "cache", None):
        pytest.fail("not locked")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("replaced", [True, False])
def test_a_lock_that_is_removed_while_it_is_opened(tmp_path, monkeypatch, replaced):
    """Its owner left between our opening and locking it: what we hold is a file that nobody else will find."""
    real, seen = fcntl.flock, []

    def flock(descriptor, kind):
        if not seen:
            (tmp_path / ".lock").unlink()
            if replaced:
                (tmp_path / ".lock").touch()
        seen.append(os.fstat(descriptor).st_ino)
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with building(tmp_path, None):
        assert (tmp_path / ".lock").stat().st_ino == seen[-1]
        assert len(seen) == 2
        with pytest.raises(UsageError), building(tmp_path, None):
            pytest.fail("both are in")


def test_a_turn_that_is_removed_while_somebody_waits_for_it(tmp_path):
    """As `_leave` does."""
    found = []

    def wait():
        with turn(tmp_path):
            found.append((tmp_path / ".turn").exists())

    waiting = threading.Thread(target=wait)
    with turn(tmp_path):
        waiting.start()
        time.sleep(0.1)
        assert not found
        (tmp_path / ".turn").unlink()
    waiting.join(10)
    assert found == [True]


def test_a_lock_signed_with_rubbish(tmp_path):
    for words in (b"", b"\xff", b"[]", b'{"pid": 1}'):
        with building(tmp_path, None):
            (tmp_path / ".lock").write_bytes(words)
            with pytest.raises(UsageError, match="is being built by another process"), building(tmp_path, None):
                pytest.fail("both are in")


def test_a_lock_that_is_held_and_not_signed_yet(tmp_path, monkeypatch):
    """Between the locking and the signing another one may look: it waits for the name."""
    monkeypatch.setattr(lock, "LEAVING_SECONDS", 5.0)
    with building(tmp_path, None):
        path = tmp_path / ".lock"
        words = path.read_bytes()
        path.write_bytes(b"")
        signing = threading.Timer(0.2, path.write_bytes, [words])
        signing.start()
        with pytest.raises(UsageError, match=WHO), building(tmp_path, None):
            pytest.fail("both are in")
        signing.join()


# --- processes that die ----------------------------------------------------------------------------------------------


def _hold(folder, part, ready):
    with building(folder, part), turn(folder):
        ready.set()
        time.sleep(60)


@pytest.mark.parametrize("part", [None, (0, 2)])
def test_a_lock_dies_with_its_process(tmp_path, part):
    context = get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, part, ready))
    holder.start()
    assert ready.wait(10)
    with pytest.raises(UsageError, match=f"process {holder.pid} on"), building(tmp_path, None):
        pytest.fail("both are in")
    assert holder.pid
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert ".lock" in hidden(tmp_path), "kill -9 leaves no time to tidy"
    with building(tmp_path, None), turn(tmp_path):
        pass
    assert hidden(tmp_path) == []


def _children(pid):
    """Processes below another one, from /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == pid and words[0] != "Z":
            found.append(int(folder.name))
    return found


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


SLOW = """
import sys, time
import augment_cache.building.run as run
import augment_cache.building.worker as worker
from augment_cache.build import main
run.OWN_SIGNAL_SECONDS = 30.0
real = worker.write_shard
def slow(*args):
    time.sleep(1.5)
    return real(*args)
worker.write_shard = slow
main()
"""
"""Long enough to be hit in the middle on a busy machine; the parent's patience with its own signal, too."""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_their_parent(photos, build_cache, hashes, cache, tmp_path, how):
    """A real build in two processes, killed in the middle; what is finished is kept."""
    out = tmp_path / "cache"
    words = ["--data", photos, "--out", out, "--engine", "cpu", "--size", 32, "--shard_mib", 0.01, "--processes", 3]
    command = [sys.executable, "-c", SLOW, *map(str, words)]
    parent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: any(out.glob("*/shard-*.arrow")), 60)
    children = _children(parent.pid)
    assert len(children) >= 2
    parent.send_signal(how)
    said = parent.communicate(timeout=60)[1]
    assert parent.returncode == (-9 if how == signal.SIGKILL else 143)
    assert "Traceback" not in said
    assert wait_until(lambda: not any(map(_is_alive, children)), 60)
    assert not (out / "manifest.json").exists()
    if how == signal.SIGTERM:
        assert said.count("\n") == 1
        assert "terminated" in said
        assert hidden(out) == []
    finished = len(list(out.glob("*/shard-*.arrow")))
    assert build_cache(photos, out)["reused_shards"] == finished > 0
    assert hashes(out) == hashes(cache)


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_that_reaches_a_worker_before_its_parent(photos, build_cache, hashes, cache, tmp_path, ignored):
    """As a busy machine may deliver it: that is Ctrl-C, and no lack of memory. A build in the background of a script
    ignores it, with all its processes."""
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    out = tmp_path / "cache"
    words = ["--data", photos, "--out", out, "--engine", "cpu", "--size", 32, "--shard_mib", 0.01, "--processes", 3]
    parent = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, words)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )
    assert wait_until(lambda: any(out.glob("*/shard-*.arrow")), 60)
    os.kill(_children(parent.pid)[-1], signal.SIGINT)
    time.sleep(2)  # so that the parent has noticed
    parent.send_signal(signal.SIGINT)
    said = parent.communicate(timeout=60)[1]
    if ignored:
        assert parent.returncode == 0, said
        assert build_cache(photos, out)["reused_shards"] > 0
        assert hashes(out) == hashes(cache)
        return
    assert parent.returncode in (130, -signal.SIGINT), said
    assert "interrupted" in said
    assert hidden(out) == []


@pytest.mark.parametrize("moment", ["before its first shard", "while it writes"])
def test_a_worker_that_is_killed(photos, build_cache, hashes, cache, tmp_path, monkeypatch, moment):
    import augment_cache.building.worker as worker

    parent, real = os.getpid(), worker.write_shard
    mark = tmp_path / "killed"
    before = _children(parent)

    def once(*args):
        if os.getpid() == parent:
            assert wait_until(mark.exists, 10), "the other process has its share"
        elif not mark.exists():
            mark.touch()
            if moment == "while it writes":
                monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "write_shard", once)
        with pytest.raises(TacopressError, match=r"killed, perhaps for want of memory.*what is finished is kept"):
            build_cache(photos, tmp_path / "cache", processes=2)
    assert hidden(tmp_path / "cache") == []
    assert not (tmp_path / "cache" / "manifest.json").exists()
    assert _children(parent) == before
    build_cache(photos, tmp_path / "cache", processes=2)
    assert hashes(tmp_path / "cache") == hashes(cache)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("ours")], ids=repr)
def test_an_error_in_a_worker_comes_back(photos, build_cache, tmp_path, monkeypatch, error):
    parent, mark = os.getpid(), tmp_path / "failed"

    def fail(*_):
        if os.getpid() != parent:
            mark.touch()
            raise error
        assert wait_until(mark.exists, 10), "the other process has its share"
        return "0" * 64, 0

    monkeypatch.setattr("augment_cache.building.worker.write_shard", fail)
    with pytest.raises(OSError if isinstance(error, OSError) else RuntimeError) as caught:
        build_cache(photos, tmp_path / "cache", processes=2)
    assert str(error) in str(caught.value)
    assert "in fail" in str(caught.value.__cause__), "where it happened"
    assert hidden(tmp_path / "cache") == []


def test_processes_are_started_afresh_where_threads_run(photos, build_cache, hashes, cache, tmp_path, monkeypatch):
    """A fork beside other threads may wait for ever for what they hold."""
    seen = []
    real = run.get_context
    monkeypatch.setattr(run, "get_context", lambda kind: seen.append(kind) or real(kind))
    build_cache(photos, tmp_path / "a", processes=2)
    monkeypatch.setattr("threading.active_count", lambda: 2)
    build_cache(photos, tmp_path / "b", processes=2)
    assert seen == ["fork", "spawn"]
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") == hashes(cache)
