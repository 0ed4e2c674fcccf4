"""Checkpoints: atomic, checked by content, the newest whole one wins."""

import errno
import pickle

import pytest
import torch

from pipelines.console import files
from pipelines.errors import UsageError
from training.engine.checkpoint import Checkpoints


def state(step):
    return {"state": {"step": step}, "model": {"weight": torch.full((64,), float(step))}}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path, keep=3)


def loaded(checkpoints):
    """(step, warnings)."""
    warnings = []
    found = checkpoints.load(warnings.append)
    return (None if found is None else found["state"]["step"]), warnings


def test_nothing_was_ever_saved(checkpoints):
    assert loaded(checkpoints) == (None, [])


def test_round_trip_and_keep(checkpoints):
    for step in (5, 20, 100, 1000, 100_000_000):
        checkpoints.save(step, state(step))
    assert [int(path.name[5:].split(".")[0]) for path in checkpoints.paths()] == [100, 1000, 100_000_000]
    found = checkpoints.load(pytest.fail)
    assert found["state"]["step"] == 100_000_000
    assert torch.equal(found["model"]["weight"], torch.full((64,), 1e8))
    assert not list(checkpoints.folder.glob(".*"))


def test_the_same_state_is_the_same_file(checkpoints):
    first = checkpoints.save(7, state(7))
    assert checkpoints.save(7, state(7)) == first
    assert checkpoints.paths() == [first]


@pytest.mark.parametrize("place", [0, 100, 1000, -1])
def test_a_flipped_byte_anywhere_falls_back_to_the_one_before(checkpoints, place):
    """torch.load alone takes a damaged tensor for a whole one."""
    checkpoints.save(1, state(1))
    newest = checkpoints.save(2, state(2))
    data = bytearray(newest.read_bytes())
    data[place] ^= 1
    newest.write_bytes(data)
    step, (warning,) = loaded(checkpoints)
    assert step == 1
    assert newest.name in warning
    assert "going back to the one before" in warning


def test_a_truncated_and_an_empty_one(checkpoints):
    checkpoints.save(1, state(1))
    second, third = checkpoints.save(2, state(2)), checkpoints.save(3, state(3))
    second.write_bytes(second.read_bytes()[:-10])
    third.write_bytes(b"")
    step, warnings = loaded(checkpoints)
    assert (step, len(warnings)) == (1, 2)


def test_none_is_whole(checkpoints):
    checkpoints.save(1, state(1)).write_bytes(b"")
    with pytest.raises(UsageError, match=r"no checkpoint in .* is whole.*--overwrite"):
        checkpoints.load(lambda _: None)


def test_a_run_that_went_back_forgets_the_future_that_it_left(checkpoints):
    checkpoints.save(1, state(1))
    checkpoints.save(9, state(9)).write_bytes(b"damaged")
    checkpoints.save(2, state(2))
    assert loaded(checkpoints) == (2, [])


def test_nothing_is_unpickled(checkpoints, tmp_path):
    from hashlib import sha256

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    checkpoints.save(1, state(1))
    data = pickle.dumps(Bomb())
    (checkpoints.folder / f"step-00000002.{sha256(data).hexdigest()[:16]}.pt").write_bytes(data)
    assert loaded(checkpoints)[0] == 1
    assert not (tmp_path / "exploded").exists()


def test_another_version_is_refused(checkpoints, monkeypatch):
    monkeypatch.setattr("training.engine.checkpoint.VERSION", 99)
    checkpoints.save(1, state(1))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="another Tacopress"):
        checkpoints.load(pytest.fail)


def test_a_full_disk_leaves_the_older_ones_whole_and_nothing_half_written(checkpoints, monkeypatch):
    checkpoints.save(1, state(1))
    before = {path.name for path in checkpoints.folder.iterdir()}

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(2, state(2))
    assert {path.name for path in checkpoints.folder.iterdir()} == before
    assert loaded(checkpoints) == (1, [])


def test_foreign_files_are_left_alone(checkpoints):
    path = checkpoints.save(1, state(1))
    stranger = path.with_name("step-2.pt")
    stranger.write_bytes(b"mine")
    for step in range(2, 9):
        checkpoints.save(step, state(step))
    checkpoints.drop(-1)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-2.pt"]
