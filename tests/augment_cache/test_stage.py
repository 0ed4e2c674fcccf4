"""Copies of a cache on a node's own disk: whole, found by content, made once."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from augment_cache.build import BuildConfig, build
from augment_cache.opening.sources import open_sources
from augment_cache.opening.staged import SCRATCH, nearest, staged_folder
from augment_cache.stage import StageConfig, stage
from pipelines.errors import ProblemFoundError, UsageError
from pipelines.opening import OpenOptions
from tests.training.conftest import photos  # noqa: F401 - a fixture


@pytest.fixture
def cache(photos, tmp_path):  # noqa: F811
    out = tmp_path / "cache"
    build(BuildConfig(data=photos, out=out, size=16, copies=1, engine="cpu"))
    return out


def test_a_copy_is_made_once_and_then_read(cache, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    first, second = (stage(StageConfig(cache=cache, scratch=scratch)) for _ in range(2))
    assert (first["copied"], second["copied"]) == (True, False)
    assert first["bytes"] == sum(path.stat().st_size for path in cache.rglob("*.arrow"))
    direct = open_sources(cache, OpenOptions())
    monkeypatch.setenv(SCRATCH, str(scratch))
    staged = open_sources(cache, OpenOptions())
    assert str(scratch) in staged["train"].describe(0)
    for split, source in direct.items():
        assert np.array_equal(source.ids, staged[split].ids)
        assert np.array_equal(source.labels, staged[split].labels)


# Once a bug: a copy had the permissions of its cache, and nobody could ever remove it.
def test_a_copy_of_a_cache_that_is_read_only_can_be_replaced(cache, tmp_path):
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        copy = Path(stage(StageConfig(cache=cache, scratch=tmp_path / "scratch"))["copy"])
    finally:
        for path in (cache, *cache.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert all(path.stat().st_mode & 0o200 for path in (copy, *copy.rglob("*")))
    next(copy.rglob("*.arrow")).unlink()
    assert stage(StageConfig(cache=cache, scratch=tmp_path / "scratch"))["copied"]


def test_without_a_scratch_folder_or_a_copy_the_cache_itself_is_read(cache, tmp_path, monkeypatch):
    monkeypatch.delenv(SCRATCH, raising=False)
    assert nearest(cache) == cache
    monkeypatch.setenv(SCRATCH, str(tmp_path / "scratch"))
    assert nearest(cache) == cache


def test_another_cache_under_the_same_name_is_not_taken_for_the_old_one(cache, photos, tmp_path, monkeypatch):  # noqa: F811
    scratch = tmp_path / "scratch"
    monkeypatch.setenv(SCRATCH, str(scratch))
    stage(StageConfig(cache=cache, scratch=scratch))
    assert nearest(cache) == staged_folder(cache, scratch)
    build(BuildConfig(data=photos, out=cache, size=20, copies=1, engine="cpu", force=True))
    assert nearest(cache) == cache


def test_a_damaged_cache_is_not_staged(cache, tmp_path):
    shard = next(cache.rglob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ProblemFoundError, match=r"verify --cache"):
        stage(StageConfig(cache=cache, scratch=tmp_path / "scratch"))
    assert [path.name for path in (tmp_path / "scratch").iterdir() if not path.name.endswith(".lock")] == []


def test_what_is_left_of_a_copy_is_not_read_and_copied_again(cache, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    monkeypatch.setenv(SCRATCH, str(scratch))
    copy = Path(stage(StageConfig(cache=cache, scratch=scratch))["copy"])
    next(copy.rglob("*.arrow")).unlink()
    (scratch / f".{copy.name}.partial-1").mkdir()
    assert nearest(cache) == cache
    assert stage(StageConfig(cache=cache, scratch=scratch))["copied"]
    assert nearest(cache) == copy
    assert sorted(path.name for path in scratch.iterdir()) == [f".{copy.name}.lock", copy.name]


def test_two_at_once_make_one_copy(cache, tmp_path):
    config = StageConfig(cache=cache, scratch=tmp_path / "scratch")
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(stage, [config, config]))
    assert sorted(report["copied"] for report in reports) == [False, True]


def test_no_room_is_said_before_anything_is_copied(cache, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(UsageError, match="10 B left"):
        stage(StageConfig(cache=cache, scratch=tmp_path / "scratch"))


def test_no_cache(tmp_path):
    with pytest.raises(UsageError, match="is no cache"):
        stage(StageConfig(cache=tmp_path, scratch=tmp_path / "scratch"))
