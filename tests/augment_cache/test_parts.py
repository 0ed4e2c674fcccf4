"""A build in parts gives the bytes of a build in one piece: in any order, side by side, after whatever went before."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import augment_cache.build as job
from augment_cache.building.lock import building
from augment_cache.format.manifest import file_sha256, read_manifest
from augment_cache.format.source import CacheSource
from pipelines.errors import UsageError

ROOT = Path(__file__).parents[2]
COUNTS = (2, 3, 8, 13)


def shards(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.arrow"))


@pytest.fixture(scope="module")
def whole(photos, build_cache, hashes, tmp_path_factory):
    """Hashes of a cache that was built in one piece: 6 shards."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    build_cache(photos, out)
    return hashes(out)


@pytest.fixture
def in_parts(build_cache):
    """Builds the parts of a cache one after the other; returns their reports."""

    def run(data, out, count, order=None, **options):
        numbers = range(count) if order is None else order
        return [build_cache(data, out, part=number, of=count, **options) for number in numbers]

    return run


@pytest.mark.parametrize("count", [1, *COUNTS])
@pytest.mark.parametrize("backwards", [False, True])
def test_parts_are_the_whole(photos, in_parts, hashes, whole, tmp_path, count, backwards):
    """8 and 13 parts are more than there are shards."""
    out = tmp_path / "cache"
    order = list(range(count))[:: -1 if backwards else 1]
    seen = set()
    for number in order:
        assert not (out / "manifest.json").exists()
        (report,) = in_parts(photos, out, count, [number])
        seen |= {name for index, name in enumerate(_in_order(whole)) if index % count == number}
        assert report["missing_shards"] == len(_in_order(whole)) - len(seen)
        assert report["complete"] == (report["missing_shards"] == 0)
        assert (out / "manifest.json").exists() == report["complete"]
        assert set(shards(out)) == seen
        if report["complete"]:
            break
        assert (report["splits"], report["rejected"], report["bytes"]) == ({}, None, 0)
    assert hashes(out) == whole
    assert report["rejected"] == 0
    for number in range(count):
        assert in_parts(photos, out, count, [number])[0]["complete"], "parts without shards may come later"
    assert hashes(out) == whole


def _in_order(whole):
    names = [name for name in whole if name.endswith(".arrow")]
    return sorted(names, key=lambda name: (["train", "val", "test"].index(name.split("/")[0]), name))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_in_any_order(photos, in_parts, hashes, whole, tmp_path, order):
    reports = in_parts(photos, tmp_path / "cache", 3, order)
    assert [report["complete"] for report in reports] == [False, False, True]
    assert sum(report["built_shards"] for report in reports) == len(shards(tmp_path / "cache"))
    assert hashes(tmp_path / "cache") == whole


def test_a_part_in_two_processes(photos, in_parts, hashes, whole, tmp_path):
    in_parts(photos, tmp_path / "cache", 2, processes=2)
    assert hashes(tmp_path / "cache") == whole


def test_parts_side_by_side(photos, hashes, whole, tmp_path):
    """Processes of their own, all at once: the last one writes the manifest, whichever it is."""
    words = ["--data", photos, "--out", tmp_path / "cache", "--engine", "cpu", "--size", 32, "--threads", 1]
    words += ["--shard_mib", 0.01, "--of", 3]
    command = [sys.executable, "-m", "augment_cache.build", *map(str, words)]
    started = [
        subprocess.Popen([*command, "--part", str(number)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert [status for _, status in ended] == [0] * 3, ended
    assert hashes(tmp_path / "cache") == whole


def test_rejects_of_all_parts_are_listed(own_photos, build_cache, in_parts, hashes, tmp_path):
    for path in sorted(own_photos.rglob("*.jpg"))[::4]:
        path.write_bytes(b"torn")
    build_cache(own_photos, tmp_path / "whole")
    reports = in_parts(own_photos, tmp_path / "parts", 3, (2, 0, 1))
    assert [report["rejected"] for report in reports] == [None, None, 10]
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")


@pytest.mark.parametrize("count", COUNTS)
def test_a_part_of_a_complete_cache_changes_nothing(photos, own_cache, in_parts, hashes, count):
    before, manifest = hashes(own_cache), (own_cache / "manifest.json").stat()
    for report in in_parts(photos, own_cache, count):
        assert (report["complete"], report["built_shards"], report["missing_shards"]) == (True, 0, 0)
        assert report["sources"] == report["reused_sources"]
    assert hashes(own_cache) == before
    after = (own_cache / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (manifest.st_ino, manifest.st_mtime_ns)


def _change(folder, jpeg):
    """A file added, one removed, one with other contents, one renamed, one damaged: in several shards."""
    train = sorted((folder / "train").rglob("*.jpg"))
    (folder / "train" / "Paper" / "added.jpg").write_bytes(jpeg(990))
    (folder / "val" / "Paper" / "added.jpg").write_bytes(jpeg(991))
    train[0].unlink()
    train[10].write_bytes(jpeg(992))
    train[20].rename(train[20].with_name("renamed.jpg"))
    train[25].write_bytes(b"torn")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_parts_after_a_change_of_the_sources(cut_photos, in_parts, build_cache, hashes, jpeg, tmp_path, order):
    in_parts(cut_photos, tmp_path / "cache", 3)
    _change(cut_photos, jpeg)
    in_parts(cut_photos, tmp_path / "cache", 3, order)
    build_cache(cut_photos, tmp_path / "fresh")
    assert hashes(tmp_path / "cache") == hashes(tmp_path / "fresh")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_other_contents_in_every_shard(cut_photos, in_parts, build_cache, hashes, jpeg, tmp_path, order):
    """The lists of files stay the same, so only the contents tell that a shard is stale."""
    in_parts(cut_photos, tmp_path / "cache", 3)
    for number, path in enumerate(sorted(cut_photos.rglob("*.jpg"))):
        path.write_bytes(jpeg(2000 + number))
    build_cache(cut_photos, tmp_path / "fresh")
    reports = in_parts(cut_photos, tmp_path / "cache", 3, order)
    assert reports[-1]["complete"]
    assert hashes(tmp_path / "cache") == hashes(tmp_path / "fresh")


# Once a bug: the first part of an update wrote a manifest over the stale shards of the others.
@pytest.mark.parametrize("first", [0, 1])
def test_part_of_an_update_is_not_complete(cut_photos, in_parts, jpeg, tmp_path, first):
    out = tmp_path / "cache"
    in_parts(cut_photos, out, 2)
    for number, path in enumerate(sorted(cut_photos.rglob("*.jpg"))):
        path.write_bytes(jpeg(3000 + number))
    report, last = in_parts(cut_photos, out, 2, [first, 1 - first])
    assert (report["complete"], report["missing_shards"] > 0) == (False, True)
    assert (last["complete"], last["missing_shards"]) == (True, 0)


# Once a bug: a part that had changed nothing wrote the manifest that another had taken away meanwhile.
def test_a_part_that_is_late_does_not_vouch_for_the_others(cut_photos, in_parts, jpeg, tmp_path, monkeypatch):
    out, build_shards = tmp_path / "cache", job.build_shards
    in_parts(cut_photos, out, 3)
    mine = set()
    for name in _in_order(shards(out))[::3]:
        sources = pa.ipc.open_file(out / name).read_all()["source"].to_pylist()
        mine |= {cut_photos / Path(name).parent / source for source in sources}
    for number, path in enumerate(sorted(cut_photos.rglob("*.jpg"))):
        if path not in mine:
            path.write_bytes(jpeg(4000 + number))

    def late(*arguments):
        results = build_shards(*arguments)
        monkeypatch.setattr(job, "build_shards", build_shards)
        (other,) = in_parts(cut_photos, out, 3, [1])
        assert not other["complete"]
        return results

    monkeypatch.setattr(job, "build_shards", late)
    (report,) = in_parts(cut_photos, out, 3, [0])
    assert (report["complete"], report["missing_shards"] > 0) == (False, True)
    assert not (out / "manifest.json").exists()
    assert in_parts(cut_photos, out, 3, [2])[0]["complete"]


def test_an_interrupted_change_leaves_no_manifest(cut_photos, in_parts, build_cache, hashes, jpeg, tmp_path):
    """Files came between two parts of an unfinished build: the list of the first part's shards is stale."""
    out = tmp_path / "cache"
    in_parts(cut_photos, out, 2, [0])
    _change(cut_photos, jpeg)
    (late,) = in_parts(cut_photos, out, 2, [1])
    assert (late["complete"], late["missing_shards"] > 0) == (False, True)
    assert not (out / "manifest.json").exists()
    in_parts(cut_photos, out, 2, [0])
    build_cache(cut_photos, tmp_path / "fresh")
    assert hashes(out) == hashes(tmp_path / "fresh")


def test_growth_across_a_power_of_two_in_parts(cut_photos, in_parts, build_cache, hashes, jpeg, tmp_path):
    out = tmp_path / "cache"
    in_parts(cut_photos, out, 2)
    before = len(shards(out))
    for number in range(30):
        (cut_photos / "train" / "Paper" / f"more{number}.jpg").write_bytes(jpeg(3000 + number))
    in_parts(cut_photos, out, 2, (1, 0))
    assert len(shards(out)) > before
    build_cache(cut_photos, tmp_path / "fresh")
    assert hashes(out) == hashes(tmp_path / "fresh")


@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 2), (8, 1), (1, 8)])
def test_another_number_of_parts_goes_on(photos, in_parts, hashes, whole, tmp_path, first, second):
    out = tmp_path / "cache"
    if first > 1:
        in_parts(photos, out, first, [first - 2])
    finished = len(shards(out)) if out.is_dir() else 0
    reports = in_parts(photos, out, second)
    assert sum(report["reused_shards"] for report in reports) == finished
    assert hashes(out) == whole


@pytest.mark.parametrize(("part", "count"), [(-1, 2), (2, 2), (1, 1), (0, 0), (0, -1)])
def test_a_part_that_is_none(photos, build_cache, tmp_path, part, count):
    with pytest.raises(UsageError, match=r"--part counts from 0|--of must be"):
        build_cache(photos, tmp_path / "cache", part=part, of=count)
    assert not (tmp_path / "cache").exists()


def test_parts_of_another_cache_are_refused_and_replaced_with_force(
    photos, own_cache, in_parts, build_cache, hashes, tmp_path
):
    before = hashes(own_cache)
    for number in range(2):
        with pytest.raises(UsageError, match=r"seed 0 there, 1 asked for.*--force"):
            in_parts(photos, own_cache, 2, [number], seed=1)
    assert hashes(own_cache) == before
    reports = in_parts(photos, own_cache, 2, (1, 0), seed=1, force=True)
    assert [report["complete"] for report in reports] == [False, True], "the second part keeps what the first one built"
    build_cache(photos, tmp_path / "fresh", seed=1)
    assert hashes(own_cache) == hashes(tmp_path / "fresh")


def test_other_versions_in_another_part_are_refused(photos, in_parts, hashes, whole, tmp_path, monkeypatch):
    out = tmp_path / "cache"
    in_parts(photos, out, 2, [0])
    before = hashes(out)
    with monkeypatch.context() as patch:
        patch.setattr(job, "_made_with", lambda engine: {"renderer": "9"})
        with pytest.raises(UsageError, match=r"begun with .*numpy .*renderer \S+ \(now 9\).*same environment.*--force"):
            in_parts(photos, out, 2, [1])
    assert hashes(out) == before
    in_parts(photos, out, 2, [1])
    assert hashes(out) == whole


def test_other_versions_build_a_complete_cache_anew(photos, own_cache, in_parts, hashes, whole, monkeypatch):
    real = job._made_with
    monkeypatch.setattr(job, "_made_with", lambda engine: {**real(engine), "renderer": "9"})
    reports = in_parts(photos, own_cache, 2)
    assert [report["reused_shards"] for report in reports] == [0, 0]
    assert [report["complete"] for report in reports] == [False, True]
    assert read_manifest(own_cache).made_with["renderer"] == "9"
    moved = {name for name, digest in hashes(own_cache).items() if whole[name] != digest}
    assert moved == {"build.json", "manifest.json"}, "the versions are no part of a shard"


def test_force_takes_over_parts_of_other_versions(photos, in_parts, hashes, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(job, "_made_with", lambda engine: {"renderer": "9"})
        in_parts(photos, tmp_path / "cache", 2, [0])
    reports = in_parts(photos, tmp_path / "cache", 2, (1, 0), force=True)
    assert [report["reused_shards"] for report in reports] == [0, 0]
    assert hashes(tmp_path / "cache") == whole


def test_a_whole_build_of_other_versions_reuses_nothing_unfinished(
    photos, in_parts, build_cache, hashes, whole, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(job, "_made_with", lambda engine: {"renderer": "9"})
        in_parts(photos, tmp_path / "cache", 2, [0])
    assert build_cache(photos, tmp_path / "cache")["reused_shards"] == 0
    assert "all shards are built anew" in capsys.readouterr().err
    assert hashes(tmp_path / "cache") == whole


@pytest.mark.parametrize("moment", range(10))
def test_shards_of_other_versions_never_lose_their_name(photos, own_cache, build_cache, monkeypatch, moment):
    """Stopped while it takes the old cache away, a file at a time: what is left must say which versions it is of."""
    real, unlink, done = job._made_with, Path.unlink, []

    def stop(path, *, missing_ok=False):
        if path.exists() and ".lock" not in path.name:
            if len(done) == moment:
                raise KeyboardInterrupt
            done.append(path)
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(job, "_made_with", lambda engine: {**real(engine), "renderer": "9"})
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            build_cache(photos, own_cache)
        patch.setattr(Path, "unlink", unlink)
        assert build_cache(photos, own_cache)["reused_shards"] == 0
    assert read_manifest(own_cache).made_with["renderer"] == "9"


def test_a_part_beside_another_that_has_not_finished(photos, build_cache, in_parts, hashes, whole, tmp_path):
    out = tmp_path / "cache"
    with building(out, (1, 2)):
        assert not in_parts(photos, out, 2, [0])[0]["complete"]
        assert (out / ".lock").exists(), "the part that is still there needs it"
    in_parts(photos, out, 2, [1])
    assert hashes(out) == whole


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-100]])
def test_a_torn_shard_of_another_part_is_missing(photos, in_parts, hashes, whole, tmp_path, damage):
    out = tmp_path / "cache"
    in_parts(photos, out, 2, [0])
    torn = out / shards(out)[0]
    torn.write_bytes(damage(torn.read_bytes()))
    (report,) = in_parts(photos, out, 2, [1])
    assert (report["complete"], report["missing_shards"]) == (False, 1)
    in_parts(photos, out, 2, [0])
    assert hashes(out) == whole


def test_a_finished_build_in_parts_can_be_read(photos, in_parts, cache, tmp_path):
    in_parts(photos, tmp_path / "cache", 3, (1, 0, 2))
    shutil.rmtree(tmp_path / "cache" / "val")
    assert CacheSource(tmp_path / "cache", "train").fingerprint == CacheSource(cache, "train").fingerprint


# Once a bug: parts of two caches are in the folder at once if one came with --force; the late one wrote into the other.
def test_a_late_part_of_a_replaced_cache_writes_nothing(photos, in_parts, monkeypatch, tmp_path):
    import augment_cache.building.worker as worker

    out, real, begun = tmp_path / "cache", worker.write_shard, []

    def write(*args):
        if not begun:
            begun.append(True)
            assert in_parts(photos, out, 3, seed=1, force=True)[-1]["complete"]
        return real(*args)

    monkeypatch.setattr(worker, "write_shard", write)
    with pytest.raises(UsageError, match="given to another build"):
        in_parts(photos, out, 2, [0])
    manifest = read_manifest(out)
    assert manifest.recipe["seed"] == 1
    assert {name for name, entry in manifest.shards.items() if entry.sha256 != file_sha256(out / name)} == set()
