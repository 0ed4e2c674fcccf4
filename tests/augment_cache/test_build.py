"""The same sources and options give the same bytes, whoever builds and however often it was stopped."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg

import augment_cache
from augment_cache.build import BuildConfig, build
from augment_cache.building.state import read_splits
from augment_cache.format.manifest import file_sha256, read_manifest
from augment_cache.format.policy import load_policy
from augment_cache.format.source import CacheSource
from augment_cache.info import InfoConfig, info
from augment_cache.verify import VerifyConfig, verify
from pipelines.engines.base import Job, RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.plan import Stage, draw
from pipelines.sources import sample_id

SPLITS = ("train", "val", "test")


def shards(folder, split="*"):
    return sorted(folder.glob(f"{split}/*.arrow"))


def changed(before, after):
    """Shards that were added, removed or changed."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name) and "shard" in name}


def table_of(folder, split):
    return pa.concat_tables([pa.ipc.open_file(path).read_all() for path in shards(folder, split)])


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 1, "threads": 1},
        {"batch": 7, "threads": 4},
        {"batch": 128, "threads": 1},
        {"processes": 2, "batch": 7, "threads": 4},
    ],
    ids=str,
)
def test_bytes_do_not_depend_on_who_builds(photos, cache, build_cache, hashes, tmp_path, options):
    report = build_cache(photos, tmp_path / "cache", **options)
    assert report["reused_shards"] == 0
    assert hashes(tmp_path / "cache") == hashes(cache)


def test_bytes_do_not_depend_on_places(photos, cache, build_cache, hashes, tmp_path, monkeypatch):
    moved = Path(shutil.copytree(photos, tmp_path / "another place" / "with a longer näme"))
    build_cache(moved, tmp_path / "c")
    assert hashes(tmp_path / "c") == hashes(cache)
    monkeypatch.chdir(tmp_path)
    build_cache(moved.relative_to(tmp_path), Path("relative"))
    assert hashes(tmp_path / "relative") == hashes(cache)
    assert str(tmp_path) not in (tmp_path / "c" / "manifest.json").read_text(encoding="utf-8")


def test_there_are_several_shards_and_the_manifest_describes_them(cache):
    manifest = read_manifest(cache)
    assert len(manifest.splits["train"].shards) >= 4, "otherwise the tests of this file test little"
    listed = {entry.file: entry for split in manifest.splits.values() for entry in split.shards}
    assert {path.relative_to(cache).as_posix() for path in shards(cache)} == set(listed)
    for name, entry in listed.items():
        assert entry.sha256 == file_sha256(cache / name)
        assert entry.bytes == (cache / name).stat().st_size
        assert entry.rows == pa.ipc.open_file(cache / name).read_all().num_rows


def test_only_the_train_split_gets_copies(photos, cache):
    seen = []
    for split in SPLITS:
        table = table_of(cache, split).to_pylist()
        entry = read_manifest(cache).splits[split]
        copies = {
            name: [row["copy"] for row in table if row["source"] == name] for name in {r["source"] for r in table}
        }
        assert set(map(tuple, copies.values())) == ({(0, 1, 2)} if split == "train" else {(0,)})
        assert entry.samples == len(copies)
        assert entry.rows == len(table) == len(copies) * (3 if split == "train" else 1)
        assert sum(entry.classes.values()) == entry.rows
        seen += copies
    assert sorted(seen) == sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    assert len(seen) == 40


def test_report_adds_up(photos, build_cache, tmp_path):
    report = build_cache(photos, tmp_path / "cache")
    splits = report["splits"]
    assert list(splits) == list(SPLITS)
    assert report["classes"] == ["Glass bottle", "Métal", "Paper"]
    assert sum(entry["samples"] for entry in splits.values()) == 40
    assert report["bytes"] == sum(path.stat().st_size for path in shards(tmp_path / "cache"))
    assert report["rejected"] == report["reused_shards"] == 0
    json.dumps(report)


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"split_seed": 1}, {"quality": 80}, {"size": 40}, {"fit": "crop"}, {"copies": 1}], ids=str
)
def test_what_matters_changes_the_bytes(photos, cache, build_cache, hashes, tmp_path, options):
    build_cache(photos, tmp_path / "cache", **options)
    ours, theirs = hashes(tmp_path / "cache"), hashes(cache)
    assert not {ours[name] for name in ours if "shard" in name} & {theirs[name] for name in theirs if "shard" in name}


def test_another_seed_moves_copies_and_leaves_originals(photos, cache, build_cache, tmp_path):
    build_cache(photos, tmp_path / "cache", seed=1)
    ours, theirs = CacheSource(tmp_path / "cache", "train"), CacheSource(cache, "train")
    assert ours.sample_ids.tolist() == theirs.sample_ids.tolist()
    rows = np.arange(len(ours.labels))
    same = [a.tobytes() == b.tobytes() for a, b in zip(ours.fetch(rows), theirs.fetch(rows), strict=True)]
    assert all(np.array(same)[ours.copies == 0])
    assert np.mean(np.array(same)[ours.copies > 0]) < 0.2


def test_without_copies(photos, build_cache, tmp_path):
    build_cache(photos, tmp_path / "cache", copies=0)
    for split, entry in read_manifest(tmp_path / "cache").splits.items():
        source = CacheSource(tmp_path / "cache", split)
        assert entry.rows == entry.samples == len(source.labels)
        assert not source.copies.any()
        assert all(source.record(row).op == () for row in range(entry.rows))


def test_a_policy_file_is_as_good_as_a_shipped_policy(photos, cache, build_cache, hashes, tmp_path):
    shipped = Path(augment_cache.__path__[0]) / "policies" / "taco14.yaml"
    file = Path(shutil.copy(shipped, tmp_path / "taco14.yaml"))
    build_cache(photos, tmp_path / "cache", policy=str(file))
    assert hashes(tmp_path / "cache") == hashes(cache)


@pytest.mark.parametrize("split", SPLITS)
def test_raw_rows_are_what_the_plan_says(photos, raw_cache, split):
    """Rendered again one by one, from ids made here, by an engine with another number of threads."""
    source = CacheSource(raw_cache, split)
    engine = CpuEngine(RenderSpec(32, "pad"), threads=1)
    stored = source.fetch(np.arange(len(source.labels)))
    policy = load_policy("taco14")
    for row in range(len(source.labels)):
        record = source.record(row)
        ids = np.array([sample_id(record.source)], np.uint64)
        plan = draw(policy, ids, seed=0, stage=Stage.BUILD, rounds=[record.copy])
        data = np.fromfile(photos / record.source, np.uint8)
        (rendered,) = engine.stream([Job([data], plan)])
        assert np.array_equal(stored[row], rendered.pixels[0, 0].numpy()), record
        assert record.sample_id == ids[0]
        assert source.classes[record.label] == record.source.split("/")[0]
        assert len(record.op) == (record.copy > 0)
        assert record.magnitude == tuple(plan.value[0, 0, : len(record.op)].tolist())
        assert record.centre == tuple(plan.centre[0, 0, : len(record.op)].ravel().tolist())
    engine.close()


def test_jpeg_rows_are_the_raw_rows_compressed(cache, raw_cache):
    """Shards are cut differently, rows of one sample are the same."""
    for split in SPLITS:
        jpeg, raw = CacheSource(cache, split), CacheSource(raw_cache, split)
        assert jpeg.ids.tolist() == raw.ids.tolist()
        rows = np.arange(len(raw.labels))
        for compressed, pixels in zip(jpeg.fetch(rows), raw.fetch(rows), strict=True):
            assert compressed.tobytes() == simplejpeg.encode_jpeg(pixels.copy(), quality=90, colorsubsampling="420")


def test_copies_can_be_left_out_when_reading(cache):
    everything, originals = CacheSource(cache, "train"), CacheSource(cache, "train", copies=0)
    assert len(everything.labels) == 3 * len(originals.labels)
    assert not originals.copies.any()
    assert originals.sample_ids.tolist() == everything.sample_ids[everything.copies == 0].tolist()
    assert len(set(everything.ids.tolist())) == len(everything.ids)
    last = len(originals.labels) - 1
    assert originals.record(last).sample_id == originals.sample_ids[last]


def test_a_finished_cache_is_reused_whole(photos, own_cache, build_cache, hashes):
    before = hashes(own_cache)
    report = build_cache(photos, own_cache)
    assert report["reused_shards"] == len(shards(own_cache))
    assert hashes(own_cache) == before


def test_resume_rebuilds_only_what_is_missing(photos, own_cache, build_cache, hashes):
    before = hashes(own_cache)
    count = len(shards(own_cache))
    shards(own_cache, "train")[1].unlink()
    (own_cache / "manifest.json").unlink()
    assert build_cache(photos, own_cache)["reused_shards"] == count - 1
    assert hashes(own_cache) == before


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-100], lambda data: b"text" * 100])
def test_resume_rebuilds_a_shard_that_is_none(photos, own_cache, build_cache, hashes, damage):
    before = hashes(own_cache)
    path = shards(own_cache, "train")[0]
    path.write_bytes(damage(path.read_bytes()))
    assert build_cache(photos, own_cache)["reused_shards"] == len(shards(own_cache)) - 1
    assert hashes(own_cache) == before


def test_a_changed_file_touches_its_shard_only(own_photos, own_cache, build_cache, hashes, jpeg):
    before = hashes(own_cache)
    record = CacheSource(own_cache, "train").record(0)
    (own_photos / record.source).write_bytes(jpeg(999))
    report = build_cache(own_photos, own_cache)
    assert report["reused_shards"] == len(shards(own_cache)) - 1
    assert changed(before, hashes(own_cache)) == {shards(own_cache, "train")[0].relative_to(own_cache).as_posix()}


def test_a_touched_file_changes_nothing(own_photos, own_cache, build_cache, hashes):
    before = hashes(own_cache)
    for path in own_photos.rglob("*.jpg"):
        os.utime(path, (1, 1))
    assert build_cache(own_photos, own_cache)["reused_shards"] == len(shards(own_cache))
    assert hashes(own_cache) == before


def test_an_added_and_a_removed_file_touch_one_shard(cut_photos, build_cache, hashes, jpeg, tmp_path):
    out = tmp_path / "cache"
    before_count = build_cache(cut_photos, out)["splits"]["train"]["shards"]
    before = hashes(out)
    added = cut_photos / "train" / "Paper" / "added.jpg"
    added.write_bytes(jpeg(998))
    assert build_cache(cut_photos, out)["splits"]["train"]["shards"] == before_count >= 4
    assert len(changed(before, hashes(out))) == 1
    added.unlink()
    assert build_cache(cut_photos, out)["reused_shards"] == len(shards(out)) - 1
    assert hashes(out) == before


def test_other_options_are_refused_in_the_same_folder(photos, own_cache, build_cache, hashes):
    before = hashes(own_cache)
    with pytest.raises(UsageError, match=r"seed 0 there, 1 asked for.*--force"):
        build_cache(photos, own_cache, seed=1)
    with pytest.raises(UsageError, match="another policy"):
        build_cache(photos, own_cache, policy=str(_one_op(own_cache.parent)))
    assert hashes(own_cache) == before


def _one_op(folder):
    path = folder / "one.yaml"
    path.write_text("ops: [{op: Rotate, range: [5, 10]}]\n", encoding="utf-8")
    return path


def test_force_replaces(photos, own_cache, build_cache, hashes, tmp_path):
    build_cache(photos, own_cache, seed=1, shard_mib=0.02, force=True)
    build_cache(photos, tmp_path / "fresh", seed=1, shard_mib=0.02)
    assert hashes(own_cache) == hashes(tmp_path / "fresh")


def test_a_folder_of_something_else_is_refused(photos, build_cache, hashes, tmp_path):
    out = tmp_path / "thesis"
    (out / "train").mkdir(parents=True)
    (out / "train" / "notes.txt").write_text("precious", encoding="utf-8")
    before = hashes(out)
    for force in (False, True):
        with pytest.raises(UsageError, match=r"'train'.*no part of a cache"):
            build_cache(photos, out, force=force)
    with pytest.raises(UsageError, match="is a file"):
        build_cache(photos, out / "train" / "notes.txt")
    assert hashes(out) == before


def test_the_manifest_of_something_else_is_refused(photos, build_cache, hashes, tmp_path):
    """Web pages have a manifest.json too."""
    out = tmp_path / "page"
    out.mkdir()
    (out / "manifest.json").write_text('{"name": "page"}', encoding="utf-8")
    before = hashes(out)
    for force in (False, True):
        with pytest.raises(UsageError, match=r"manifest\.json"):
            build_cache(photos, out, force=force)
        assert hashes(out) == before


def test_building_into_the_sources_is_refused(cut_photos, build_cache, hashes):
    before = hashes(cut_photos)
    for out in (cut_photos, cut_photos / "cache", cut_photos / "train" / "cache"):
        with pytest.raises(UsageError, match="lies in --data"):
            build_cache(cut_photos, out, force=True)
    assert hashes(cut_photos) == before
    assert build_cache(cut_photos, cut_photos / ".cache")["complete"], "hidden folders are no classes"


# Once a bug: a class of which no image could be read was left out without a word.
def test_a_class_that_cannot_be_read_is_no_empty_class(own_photos, build_cache, tmp_path):
    for path in (own_photos / "Paper").rglob("*.jpg"):
        path.write_bytes(b"torn")
    out = tmp_path / "cache"
    with pytest.raises(UsageError, match=r"no image of class 'Paper' for training.*rejected\.csv"):
        build_cache(own_photos, out)
    assert "Paper" in (out / "rejected.csv").read_text(encoding="utf-8")
    assert not (out / "manifest.json").exists()
    report = build_cache(own_photos, out, allow_empty_classes=True)
    assert (report["built_shards"], report["splits"]["train"]["classes"]["Paper"]) == (0, 0)
    with pytest.raises(UsageError, match="no image of class 'Paper'"):
        build_cache(own_photos, out)
    assert (out / "manifest.json").exists(), "a whole cache stays one"


# Once a bug: an end of line of old Macs in a name cut a row of a CSV in two, and the file changed its split.
def test_files_with_odd_names_keep_their_splits(own_photos, build_cache, jpeg, tmp_path):
    for number in range(12):
        (own_photos / "Paper" / f"n\r{number}.jpg").write_bytes(jpeg(700 + number) if number else b"torn")
    build_cache(own_photos, tmp_path / "cache")
    before = read_splits(tmp_path / "cache")
    assert sum("\r" in name for name in before) == 12
    for number in range(8):
        (own_photos / "Paper" / f"more {number}.jpg").write_bytes(jpeg(800 + number))
    report = build_cache(own_photos, tmp_path / "cache")
    after = read_splits(tmp_path / "cache")
    assert {name: after[name] for name in before} == before
    assert report["rejected"] == 1
    assert info(InfoConfig(cache=tmp_path / "cache"))["rejected"]


# Once a bug: opening it waited for ever.
def test_a_pipe_among_the_images_is_rejected(own_photos, build_cache, tmp_path):
    os.mkfifo(own_photos / "Paper" / "z.jpg")
    assert build_cache(own_photos, tmp_path / "cache")["rejected"] == 1
    assert "Paper/z.jpg,Paper,is no regular file" in (tmp_path / "cache/rejected.csv").read_text(encoding="utf-8")


def test_what_a_file_manager_leaves_does_no_harm(photos, own_cache, build_cache):
    for folder in (own_cache, own_cache / "train"):
        (folder / ".DS_Store").write_bytes(b"x")
    assert build_cache(photos, own_cache)["built_shards"] == 0
    assert verify(VerifyConfig(cache=own_cache))["damage"] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
@pytest.mark.parametrize("moment", ["first shard", "third shard", "rejected.csv", "manifest"])
def test_an_interrupted_build_leaves_whole_files_only(
    photos, cache, build_cache, hashes, tmp_path, monkeypatch, moment, error
):
    """Stopped while a file is flushed to disk: the moment when it is there, and not yet under its name."""
    out, count = tmp_path / "cache", len(shards(cache))
    shards_at = {"first shard": 0, "third shard": 2, "rejected.csv": count, "manifest": count}[moment]
    whole = 2 + shards_at + (moment == "manifest")  # build.json and splits.csv come first
    flush, done = os.fsync, []

    def stop(descriptor):
        if len(done) == whole:
            raise error
        done.append(descriptor)
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stop)
        with pytest.raises(type(error)):
            build_cache(photos, out)
    expected, left = hashes(cache), hashes(out)
    assert len(left) == whole
    assert "manifest.json" not in left
    assert left.items() <= expected.items()
    assert build_cache(photos, out)["reused_shards"] == shards_at
    assert hashes(out) == expected


def test_an_interrupted_rebuild_is_no_cache(photos, own_cache, build_cache, monkeypatch):
    """From the first changed shard on, the old manifest would lie."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("augment_cache.building.worker.write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        build_cache(photos, own_cache, seed=1, force=True)
    with pytest.raises(UsageError, match="is no cache"):
        CacheSource(own_cache, "train")


@pytest.mark.parametrize(
    "name", ["train/.shard-00000-of-00005.arrow.partial-77", ".rejected.csv.partial-77", ".manifest.json.partial-77"]
)
def test_what_a_killed_build_left_is_removed(photos, own_cache, build_cache, hashes, name):
    """`kill -9` and a power cut leave the file that was being written."""
    before = hashes(own_cache)
    (own_cache / name).write_bytes(b"half")
    (own_cache / "manifest.json").unlink()
    build_cache(photos, own_cache)
    assert hashes(own_cache) == before


def test_shards_of_another_count_are_removed(photos, cache, build_cache, hashes, tmp_path):
    out = tmp_path / "cache"
    build_cache(photos, out, shard_mib=0.003)
    many = len(shards(out))
    build_cache(photos, out, force=True)
    assert many > len(shards(out))
    assert hashes(out) == hashes(cache)


def test_splits_of_another_build_are_removed(photos, own_cache, build_cache):
    build_cache(photos, own_cache, val=0.0, test=0.0, force=True)
    names = sorted(entry.name for entry in own_cache.iterdir())
    assert names == ["build.json", "manifest.json", "rejected.csv", "splits.csv", "train"]
    assert read_manifest(own_cache).splits["train"].samples == 40


def test_one_shard_per_sample_leaves_empty_ones(photos, cache, build_cache, tmp_path):
    """Ids spread evenly, not equally: a shard without samples is a shard all the same."""
    for encoding in ("jpeg", "raw"):
        out = tmp_path / encoding
        build_cache(photos, out, shard_mib=1e-5, encoding=encoding)
        entry = read_manifest(out).splits["train"]
        assert min(shard.rows for shard in entry.shards) == 0
        source = CacheSource(out, "train")
        assert source.ids.tolist() == CacheSource(cache, "train").ids.tolist()
        rows = np.arange(len(source.labels))
        assert len(list(source.fetch(rows))) == entry.rows
        assert [source.record(row).copy for row in rows] == source.copies.tolist()


@pytest.mark.dali
def test_empty_shards_by_dali(photos, build_cache, tmp_path):
    """DALI takes no batch without images."""
    pytest.importorskip("nvidia.dali")
    build_cache(photos, tmp_path / "cache", shard_mib=1e-5, engine="dali", device="cpu", copies=0)
    assert min(shard.rows for shard in read_manifest(tmp_path / "cache").splits["train"].shards) == 0


@pytest.mark.parametrize("name", ["train", "notes.txt", "lock", "manifest.json.bak"])
def test_a_file_of_somebody_else_is_refused(photos, build_cache, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir()
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(UsageError, match="no part of a cache"):
        build_cache(photos, tmp_path / "out", force=True)


def test_cut_folders_keep_their_splits(cut_photos, build_cache, tmp_path):
    build_cache(cut_photos, tmp_path / "cache")
    for split, samples in (("train", 30), ("val", 9), ("test", 6)):
        source = CacheSource(tmp_path / "cache", split, copies=0)
        names = {source.record(row).source for row in range(samples)}
        assert len(source.labels) == samples
        assert names == {
            path.relative_to(cut_photos / split).as_posix() for path in (cut_photos / split).rglob("*.jpg")
        }


def test_defaults_are_those_of_the_design():
    config = BuildConfig(data=Path("x"))
    assert (config.copies, config.policy, config.encoding) == (2, "taco14", "jpeg")
    assert build.__module__ == "augment_cache.build"


def test_another_data_set_with_the_same_options_is_refused(own_cache, own_photos, tmp_path, build_cache, hashes):
    """The default --out invites it."""
    other = tmp_path / "other"
    for folder in sorted(path for path in own_photos.iterdir() if path.is_dir()):
        shutil.copytree(folder, other / f"{folder.name}-x")
    before = hashes(own_cache)
    with pytest.raises(UsageError, match=r"another cache \(classes"):
        build_cache(other, own_cache)
    same_classes = tmp_path / "same"
    for number, path in enumerate(sorted(own_photos.rglob("*.jpg"))):
        target = same_classes / path.relative_to(own_photos).parts[0] / f"new{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    with pytest.raises(UsageError, match="of other images"):
        build_cache(same_classes, own_cache)
    assert hashes(own_cache) == before


def test_a_wrong_engine_does_not_touch_a_good_cache(own_cache, own_photos, monkeypatch, build_cache, hashes):
    before = hashes(own_cache)

    def none():
        raise UsageError("DALI is not installed")

    monkeypatch.setattr("pipelines.engines.choose.require_dali", none)
    with pytest.raises(UsageError, match="not installed"):
        build_cache(own_photos, own_cache, engine="dali", force=True)
    assert hashes(own_cache) == before


def test_other_library_versions_build_anew(own_cache, own_photos, monkeypatch, build_cache):
    monkeypatch.setattr("augment_cache.build.RENDERER", "another")
    report = build_cache(own_photos, own_cache)
    assert report["reused_shards"] == 0


def test_a_damaged_shard_is_mended_by_building_again(own_cache, photos, build_cache, hashes):
    before = hashes(own_cache)
    path = shards(own_cache, "train")[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    report = build_cache(photos, own_cache)
    assert report["reused_shards"] == len(shards(own_cache)) - 1
    assert hashes(own_cache) == before


def test_strict_looks_at_reused_shards_too(own_photos, tmp_path, build_cache):
    broken = sorted(own_photos.rglob("*.jpg"))[0]
    broken.write_bytes(broken.read_bytes()[:-50])
    build_cache(own_photos, tmp_path / "cache")
    with pytest.raises(CorruptSampleError, match=broken.name):
        build_cache(own_photos, tmp_path / "cache", strict=True)


def test_an_unfinished_cache_of_another_recipe_is_not_replaced(own_cache, photos, build_cache, hashes):
    (own_cache / "manifest.json").unlink()
    before = hashes(own_cache)
    with pytest.raises(UsageError, match="another cache"):
        build_cache(photos, own_cache, seed=77)
    assert hashes(own_cache) == before
