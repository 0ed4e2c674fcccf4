"""A change of the sources touches the shards that hold what changed, and nothing else; other options are refused."""

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from augment_cache.format.manifest import read_manifest
from augment_cache.format.source import CacheSource
from augment_cache.verify import VerifyConfig, verify
from pipelines.errors import UsageError

SPLITS = ("train", "val", "test")


def split_of(folder):
    """Source → split, read from the shards."""
    found = {}
    for split in read_manifest(folder).splits:
        source = CacheSource(folder, split)
        found |= {source.record(row).source: split for row in range(len(source.labels))}
    return found


def shard_of(folder):
    """Source → shard, read from the shards."""
    found = {}
    for split in read_manifest(folder).splits:
        source = CacheSource(folder, split)
        for row in range(len(source.labels)):
            path = Path(source.describe(row).split(", row ")[0])
            found[source.record(row).source] = path.relative_to(folder).as_posix()
    return found


def rows_of(folder):
    """(source, copy) → everything that is stored about a row."""
    found = {}
    for split in read_manifest(folder).splits:
        source = CacheSource(folder, split)
        found |= {(row.source, row.copy): row for row in map(source.record, range(len(source.labels)))}
    return found


def changed(before, after):
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def check(folder, report, before, after, touched, sources):
    """The shards of `touched` were built, the others reused, and the report says so."""
    names = {name for name in after if name.endswith(".arrow")}
    assert {name for name in changed(before, after) if name.endswith(".arrow")} == touched
    assert report["built_shards"] == len(touched)
    assert report["reused_shards"] == len(names) - len(touched)
    homes = Counter(shard_of(folder).values())
    assert report["sources"] == sources == sum(homes.values())
    assert report["reused_sources"] == sum(count for name, count in homes.items() if name not in touched)
    assert verify(VerifyConfig(cache=folder))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_added_files_touch_their_shards_and_no_split(own_photos, own_cache, build_cache, hashes, jpeg, count):
    before, homes = hashes(own_cache), split_of(own_cache)
    new = [f"{name}/new{number}.jpg" for number in range(count) for name in ("Paper", "Métal")]
    for number, name in enumerate(new):
        (own_photos / name).write_bytes(jpeg(5000 + number))
    report = build_cache(own_photos, own_cache)
    after = split_of(own_cache)
    assert {name: after[name] for name in homes} == homes
    assert after.keys() - homes.keys() == set(new)
    check(own_cache, report, before, hashes(own_cache), {shard_of(own_cache)[name] for name in new}, 40 + len(new))


def test_added_files_are_cut_in_proportion(own_photos, own_cache, build_cache, jpeg):
    """In ten goes: the shares are approached whatever was there before."""
    for step in range(10):
        for number in range(4):
            (own_photos / "Paper" / f"new{step}-{number}.jpg").write_bytes(jpeg(6000 + 4 * step + number))
        build_cache(own_photos, own_cache)
    found = Counter(split for name, split in split_of(own_cache).items() if name.startswith("Paper/"))
    assert found.total() == 52
    assert [found[split] / 52 for split in SPLITS] == pytest.approx([0.7, 0.15, 0.15], abs=2 / 52)


def test_a_removed_file(own_photos, own_cache, build_cache, hashes):
    before, homes = hashes(own_cache), shard_of(own_cache)
    gone = CacheSource(own_cache, "train").record(4).source
    splits = split_of(own_cache)
    (own_photos / gone).unlink()
    report = build_cache(own_photos, own_cache)
    check(own_cache, report, before, hashes(own_cache), {homes[gone]}, 39)
    assert split_of(own_cache) == {name: split for name, split in splits.items() if name != gone}


def test_changed_contents(own_photos, own_cache, build_cache, hashes, jpeg):
    before, homes = hashes(own_cache), shard_of(own_cache)
    names = [CacheSource(own_cache, split).record(0).source for split in SPLITS]
    for number, name in enumerate(names):
        (own_photos / name).write_bytes(jpeg(7000 + number))
    splits = split_of(own_cache)
    report = build_cache(own_photos, own_cache)
    check(own_cache, report, before, hashes(own_cache), {homes[name] for name in names}, 40)
    assert split_of(own_cache) == splits
    build_cache(own_photos, own_cache.parent / "fresh")
    assert hashes(own_cache) == hashes(own_cache.parent / "fresh"), "nothing of the old contents is left"


def test_one_bit_of_a_file_that_keeps_size_and_time(own_photos, own_cache, build_cache, hashes):
    name = CacheSource(own_cache, "train").record(0).source
    path, home = own_photos / name, shard_of(own_cache)[name]
    facts, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    before = hashes(own_cache)
    assert build_cache(own_photos, own_cache)["built_shards"] == 1
    assert {name for name in changed(before, hashes(own_cache)) if name.endswith(".arrow")} == {home}


def test_a_renamed_file_is_one_gone_and_one_new(own_photos, own_cache, build_cache, hashes):
    before, homes, splits = hashes(own_cache), shard_of(own_cache), split_of(own_cache)
    old = CacheSource(own_cache, "train").record(0).source
    new = f"{old.split('/')[0]}/renamed.jpg"
    (own_photos / old).rename(own_photos / new)
    report = build_cache(own_photos, own_cache)
    touched = {homes[old], shard_of(own_cache)[new]}
    check(own_cache, report, before, hashes(own_cache), touched, 40)
    others = {name: split for name, split in split_of(own_cache).items() if name != new}
    assert others == {name: split for name, split in splits.items() if name != old}


def test_a_file_that_comes_back(own_photos, own_cache, build_cache, hashes):
    before = hashes(own_cache)
    gone = own_photos / CacheSource(own_cache, "train").record(4).source
    data = gone.read_bytes()
    gone.unlink()
    build_cache(own_photos, own_cache)
    gone.write_bytes(data)
    build_cache(own_photos, own_cache)
    assert read_manifest(own_cache).splits["train"].samples + 12 == 40
    assert hashes(own_cache) == before


def test_nothing_changed_leaves_the_manifest_alone(own_photos, own_cache, build_cache, hashes, monkeypatch):
    """Whoever reads the cache meanwhile sees it whole at every moment."""
    manifest, before = own_cache / "manifest.json", hashes(own_cache)
    facts, real = manifest.stat(), Path.unlink

    def unlink(path, *, missing_ok=False):
        assert path.name != "manifest.json"
        assert path.suffix != ".arrow"
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    for path in own_photos.rglob("*.jpg"):
        path.touch()
    for options in ({}, {"processes": 2}, {"part": 1, "of": 2}, {"force": True}):
        assert build_cache(own_photos, own_cache, **options)["built_shards"] == 0
        after = manifest.stat()
        assert (after.st_ino, after.st_mtime_ns, after.st_size) == (facts.st_ino, facts.st_mtime_ns, facts.st_size)
    assert hashes(own_cache) == before


@pytest.mark.parametrize("name", ["build.json", "splits.csv", "rejected.csv"])
@pytest.mark.parametrize("damage", [None, b"", b"{", b"\xff"], ids=repr)
def test_files_beside_the_shards_are_mended(photos, own_cache, build_cache, hashes, name, damage):
    before = hashes(own_cache)
    if damage is None:
        (own_cache / name).unlink()
    else:
        (own_cache / name).write_bytes(damage)
    build_cache(photos, own_cache)
    if name != "splits.csv":
        assert hashes(own_cache) == before
    assert verify(VerifyConfig(cache=own_cache))


def test_a_stopped_change_is_no_whole_cache(own_photos, own_cache, build_cache, jpeg, monkeypatch):
    """splits.csv is written first; the manifest, which knows its checksum, must not outlive the old one."""
    (own_photos / "Paper" / "new.jpg").write_bytes(jpeg(8000))

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("augment_cache.build.build_shards", stop)
        with pytest.raises(KeyboardInterrupt):
            build_cache(own_photos, own_cache)
    assert not (own_cache / "manifest.json").exists()
    assert build_cache(own_photos, own_cache)["built_shards"] == 1
    assert verify(VerifyConfig(cache=own_cache))


def test_splits_csv_says_who_is_where(own_cache, own_photos, build_cache, cut_photos, tmp_path):
    with (own_cache / "splits.csv").open(encoding="utf-8", newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    assert rows[0] == ("source", "split")
    assert rows[1:] == sorted(rows[1:])
    assert dict(rows[1:]) == split_of(own_cache)
    assert "splits.csv" in read_manifest(own_cache).files
    build_cache(cut_photos, tmp_path / "cut")
    assert not (tmp_path / "cut" / "splits.csv").exists()
    assert set(read_manifest(tmp_path / "cut").files) == {"build.json", "rejected.csv"}


def test_growth_across_a_power_of_two(own_photos, own_cache, build_cache, hashes, jpeg):
    before, splits = read_manifest(own_cache), split_of(own_cache)
    for number in range(40):
        (own_photos / "Paper" / f"more{number}.jpg").write_bytes(jpeg(9000 + number))
    report = build_cache(own_photos, own_cache)
    after = read_manifest(own_cache)
    assert len(after.splits["train"].shards) == 2 * len(before.splits["train"].shards)
    assert report["splits"]["train"]["shards"] == len(list((own_cache / "train").glob("*")))
    assert {name: split_of(own_cache)[name] for name in splits} == splits
    assert set(after.shards) == {name for name in hashes(own_cache) if name.endswith(".arrow")}
    assert verify(VerifyConfig(cache=own_cache))
    old, new = rows_of(own_cache), {}
    for number in range(40):
        (own_photos / "Paper" / f"more{number}.jpg").unlink()
    build_cache(own_photos, own_cache)
    new = rows_of(own_cache)
    assert {key: row for key, row in old.items() if "more" not in key[0]} == new


def test_another_class_is_another_cache(own_photos, own_cache, build_cache, hashes, jpeg):
    before = hashes(own_cache)
    (own_photos / "Batteries").mkdir()
    for number in range(5):
        (own_photos / "Batteries" / f"{number}.jpg").write_bytes(jpeg(number))
    with pytest.raises(UsageError, match=r"another cache \(classes Glass bottle, Métal, Paper\).*--force"):
        build_cache(own_photos, own_cache)
    shutil.rmtree(own_photos / "Batteries")
    shutil.rmtree(own_photos / "Paper")
    with pytest.raises(UsageError, match=r"another cache \(classes Glass bottle, Métal, Paper\)"):
        build_cache(own_photos, own_cache)
    assert hashes(own_cache) == before


# make_plan takes the splits of any cache with the same recipe, whatever its classes.
def test_force_over_other_classes_cuts_afresh(own_photos, own_cache, build_cache, hashes):
    """The splits of another cache are none of ours, even where files have the same names."""
    shutil.rmtree(own_photos / "Paper")
    build_cache(own_photos, own_cache, force=True)
    build_cache(own_photos, own_cache.parent / "fresh")
    assert hashes(own_cache) == hashes(own_cache.parent / "fresh")


OTHERS = {
    "policy": {"policy": "randaugment"},
    "seed": {"seed": 7},
    "size": {"size": 33},
    "encoding": {"encoding": "raw"},
    "quality": {"quality": 80},
    "fit": {"fit": "crop"},
    "copies": {"copies": 1},
    "class_copies": {"policy": "class_copies"},
    "shard_mib": {"shard_mib": 0.02},
    "split": {"split_seed": 3},
    "split val": {"val": 0.2},
    "split test": {"test": 0.2},
    "engine": {"engine": "dali", "device": "cpu"},
}


@pytest.fixture
def other(tmp_path):
    """Options by the name of what they change."""
    file = tmp_path / "taco14.yaml"
    shipped = (Path(__file__).parents[2] / "augment_cache" / "policies" / "taco14.yaml").read_text(encoding="utf-8")
    file.write_text(f"{shipped}\nclass_copies: {{Paper: 4}}\n", encoding="utf-8")

    def options(name):
        return {key: str(file) if value == "class_copies" else value for key, value in OTHERS[name].items()}

    return options


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.dali] * (n == "engine")) for n in OTHERS])
def test_other_options_are_refused_by_name_and_forced(photos, own_cache, build_cache, hashes, other, tmp_path, name):
    if name == "engine":
        pytest.importorskip("nvidia.dali")
    before = hashes(own_cache)
    with pytest.raises(UsageError, match=rf"another cache \(.*\b{name.split()[0]}\b.*--force"):
        build_cache(photos, own_cache, **other(name))
    assert hashes(own_cache) == before
    (own_cache / "manifest.json").unlink()
    with pytest.raises(UsageError, match=rf"another cache \(.*\b{name.split()[0]}\b.*--force"):
        build_cache(photos, own_cache, **other(name))
    build_cache(photos, own_cache, **other(name), force=True)
    build_cache(photos, tmp_path / "fresh", **other(name))
    assert hashes(own_cache) == hashes(tmp_path / "fresh")


@pytest.mark.parametrize("options", [{"threads": 1}, {"processes": 2}, {"batch": 3}, {"strict": True}], ids=str)
def test_what_changes_no_byte_is_the_same_cache(photos, own_cache, build_cache, hashes, options):
    before = hashes(own_cache)
    assert build_cache(photos, own_cache, **options)["built_shards"] == 0
    assert hashes(own_cache) == before


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_bytes_for_every_number_of_processes_threads_and_batches(
    photos, cache, build_cache, hashes, tmp_path, processes
):
    for threads in (1, 2, 4):
        for batch in (1, 7, 128):
            out = tmp_path / f"{threads}-{batch}"
            report = build_cache(photos, out, processes=processes, threads=threads, batch=batch)
            assert (report["sources"], report["reused_shards"]) == (40, 0)
            assert hashes(out) == hashes(cache), (threads, batch)


# --- copies per class ------------------------------------------------------------------------------------------------


def _with_copies(folder, text):
    file = folder / "taco14.yaml"
    shipped = (Path(__file__).parents[2] / "augment_cache" / "policies" / "taco14.yaml").read_text(encoding="utf-8")
    file.write_text(f"{shipped}\nclass_copies: {text}\n", encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("batch", [1, 5, 128])
def test_copies_per_class(photos, cache, build_cache, tmp_path, batch):
    policy = _with_copies(tmp_path, "{Paper: 5, Métal: 0}")
    build_cache(photos, tmp_path / "cache", policy=policy, batch=batch)
    ours, uniform = rows_of(tmp_path / "cache"), rows_of(cache)
    wanted = {"Glass bottle": 2, "Métal": 0, "Paper": 5}
    splits = split_of(tmp_path / "cache")
    assert splits == split_of(cache), "copies do not move the cut"
    for name, split in splits.items():
        copies = sorted(copy for source, copy in ours if source == name)
        assert copies == list(range(1 + (wanted[name.split("/")[0]] if split == "train" else 0)))
    common = ours.keys() & uniform.keys()
    assert {key: ours[key] for key in common} == {key: uniform[key] for key in common}
    assert all(row.op for (_, copy), row in ours.items() if copy)
    samples = Counter(name.split("/")[0] for name, split in splits.items() if split == "train")
    entry = read_manifest(tmp_path / "cache").splits["train"]
    assert entry.classes == {name: count * (1 + wanted[name]) for name, count in samples.items()}
    assert entry.rows == sum(entry.classes.values())
    assert read_manifest(tmp_path / "cache").recipe["class_copies"] == {"Métal": 0, "Paper": 5}
    rows = [(row.sample_id, row.copy) for row in _in_order(tmp_path / "cache", "train")]
    assert rows == sorted(rows)


def _in_order(folder, split):
    source = CacheSource(folder, split)
    return [source.record(row) for row in range(len(source.labels))]


def test_the_same_copies_named_per_class_give_the_same_pixels(photos, raw_cache, build_cache, tmp_path):
    policy = _with_copies(tmp_path, "{Paper: 2, Métal: 2, Glass bottle: 2}")
    build_cache(photos, tmp_path / "cache", policy=policy, copies=0, encoding="raw", shard_mib=0.1)
    for split in SPLITS:
        ours, theirs = CacheSource(tmp_path / "cache", split), CacheSource(raw_cache, split)
        rows = np.arange(len(theirs.labels))
        assert np.array_equal(np.stack(ours.fetch(rows)), np.stack(theirs.fetch(rows)))


def test_copies_per_class_do_not_depend_on_who_builds(photos, build_cache, hashes, tmp_path):
    policy = _with_copies(tmp_path, "{Paper: 3, Métal: 1}")
    build_cache(photos, tmp_path / "a", policy=policy)
    build_cache(photos, tmp_path / "b", policy=policy, batch=2, processes=2, threads=3)
    for part in (1, 2, 0):
        build_cache(photos, tmp_path / "c", policy=policy, part=part, of=3)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") == hashes(tmp_path / "c")


def test_a_rejected_image_among_copies_per_class(own_photos, build_cache, hashes, tmp_path):
    policy = _with_copies(tmp_path, "{Paper: 3, Métal: 0}")
    for path in sorted(own_photos.rglob("*.jpg"))[::5]:
        path.write_bytes(path.read_bytes()[:-200])
    build_cache(own_photos, tmp_path / "a", policy=policy)
    build_cache(own_photos, tmp_path / "b", policy=policy, batch=3, threads=1)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert read_manifest(tmp_path / "a").rejected == 8
    copies = Counter(source for source, _ in rows_of(tmp_path / "a"))
    splits = split_of(tmp_path / "a")
    expected = {"Glass bottle": 3, "Métal": 1, "Paper": 4}
    assert copies == {n: expected[n.split("/")[0]] if split == "train" else 1 for n, split in splits.items()}


def test_copies_of_a_class_that_is_none(photos, build_cache, tmp_path):
    policy = _with_copies(tmp_path, "{Papier: 3}")
    with pytest.raises(UsageError, match=r"class_copies names 'Papier'.*Glass bottle, Métal, Paper"):
        build_cache(photos, tmp_path / "cache", policy=policy)
    assert not (tmp_path / "cache").exists()
