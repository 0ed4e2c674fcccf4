"""Every damage to a cache is found and named down to the row, and repaired byte for byte or refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from augment_cache.building import worker
from augment_cache.building.lock import building
from augment_cache.format.manifest import read_manifest
from augment_cache.format.source import CacheSource
from augment_cache.verifying.check import Damage, check_cache

KINDS = ("jpeg", "raw", "folders", "rejects", "uneven")
SHARD = "train/shard-00001-of-00004.arrow"
NUMBERS = {"sample_id": 8, "copy": 2, "height": 4, "width": 4, "label": 8, "checksum": 4, "provenance_checksum": 4}
POLICY = """\
ops_per_copy: 2
ops: [{op: Cutout}, {op: Rotate}, {op: Brightness}]
then: [{op: FlipX, probability: 0.5}]
class_copies: {Paper: 5}
"""


@dataclass(frozen=True)
class Place:
    """Bytes of a shard that hold a value, and the rows that have it."""

    start: int
    stop: int
    column: str
    rows: frozenset[int]


def places(path):
    """Where everything lies that belongs to a row, from Arrow's own words about its buffers."""
    whole = pa.py_buffer(path.read_bytes())
    batch = pa.ipc.open_file(whole).get_batch(0)
    rows, found = batch.num_rows, []

    def add(name, buffer, first, last, owners):
        start = buffer.address - whole.address
        found.append(Place(start + first, start + last, name, frozenset(owners)))

    def add_offsets(name, buffer, owner_of):
        """The end of one value is the start of the next."""
        ends = np.frombuffer(buffer, np.int32, len(owner_of) + 1).tolist()
        for index in range(len(ends)):
            owners = {owner_of[k] for k in (index - 1, index) if 0 <= k < len(owner_of)}
            add(f"{name} offsets", buffer, 4 * index, 4 * index + 4, owners)
        return ends

    for name, width in NUMBERS.items():
        for row in range(rows):
            add(name, batch.column(name).buffers()[1], row * width, (row + 1) * width, {row})
    for name in ("image", "source"):
        column = batch.column(name)
        if pa.types.is_fixed_size_binary(column.type):
            ends = [row * column.type.byte_width for row in range(rows + 1)]
        else:
            ends = add_offsets(name, column.buffers()[1], range(rows))
        for row in range(rows):
            add(name, column.buffers()[-1], ends[row], ends[row + 1], {row})
    for name in ("op", "magnitude", "centre"):
        column, child = batch.column(name), batch.column(name).values
        ends = add_offsets(name, column.buffers()[1], range(rows))
        owner_of = [row for row in range(rows) for _ in range(ends[row], ends[row + 1])]
        data = child.buffers()[-1]
        if name == "op":
            ends = add_offsets("op text", child.buffers()[1], owner_of)
        else:
            ends = [4 * index for index in range(len(owner_of) + 1)]
        for index, row in enumerate(owner_of):
            add(name, data, ends[index], ends[index + 1], {row})
    return [place for place in found if place.stop > place.start]


def owners(path, position):
    """Rows that a byte of a shard belongs to; none in schema, footer and padding."""
    return frozenset().union(*(place.rows for place in places(path) if place.start <= position < place.stop))


def flip(path, position, bits=1):
    data = bytearray(path.read_bytes())
    data[position] ^= bits
    path.write_bytes(bytes(data))


def check(cache):
    return check_cache(cache, lambda count: None)


def damage_of(cache):
    return check(cache).damage


def stamps(cache):
    return {
        path.relative_to(cache).as_posix(): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in cache.rglob("*")
        if path.is_file()
    }


def one_sentence(text):
    return text.count("\n") == 1 and "Traceback" not in text


@pytest.fixture(scope="module")
def made(photos, cache, raw_cache, build_cache, tmp_path_factory, jpeg):
    """Kind → (data, cache). Not to be changed."""
    root = tmp_path_factory.mktemp("kinds")
    split = root / "split"
    rejects = Path(shutil.copytree(photos, root / "rejects"))
    (rejects / "Paper" / "0001.jpg").write_bytes(jpeg(1)[:200])
    (rejects / "Paper" / 'empty, with "quotes".jpg').write_bytes(b"")
    for number, (name, part) in enumerate((name, part) for name in ("A", "B") for part in ("train", "val")):
        for index in range(9 if part == "train" else 3):
            path = split / part / name / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(100 * number + index))
    (root / "policy.yaml").write_text(POLICY)
    build_cache(split, root / "folders_cache")
    build_cache(rejects, root / "rejects_cache")
    build_cache(photos, root / "uneven_cache", policy=str(root / "policy.yaml"), copies=1)
    return {
        "jpeg": (photos, cache),
        "raw": (photos, raw_cache),
        "folders": (split, root / "folders_cache"),
        "rejects": (rejects, root / "rejects_cache"),
        "uneven": (photos, root / "uneven_cache"),
    }


@pytest.fixture
def own(made, tmp_path):
    """Copies a cache, to be damaged; returns data and cache."""

    def copy(kind):
        data, cache = made[kind]
        # Alone in its folder, so that what is left beside it is seen.
        return data, Path(shutil.copytree(cache, tmp_path / "alone" / "cache"))

    return copy


@pytest.fixture
def verify(command):
    """Runs the job; returns exit status, report, standard error."""

    def run(cache, *words):
        status, out, err = command("verify", "--cache", cache, "--json", *words)
        return status, json.loads(out) if out else None, err

    return run


@pytest.fixture
def repaired(verify, hashes):
    """Asserts that --repair brings back the same bytes, touches nothing else and leaves nothing behind."""

    def run(data, cache, wanted, changed):
        for name in changed:
            path = cache / name
            if path.is_file():
                os.utime(path, ns=(0, 0))
        before = stamps(cache)
        status, report, err = verify(cache, "--repair", "--data", data)
        assert (status, err) == (0, "")
        assert report["whole"]
        assert sorted(report["restored"]) == sorted(changed)
        assert hashes(cache) == wanted
        after = stamps(cache)
        untouched = set(after) - set(changed)
        assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
        assert list(cache.parent.iterdir()) == [cache]
        return report

    return run


def first_shard(cache, split="train"):
    return sorted(cache.glob(f"{split}/*.arrow"))[0]


def name_in(cache, path):
    return path.relative_to(cache).as_posix()


# --- whole caches


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_cache(made, verify, hashes, kind):
    _, cache = made[kind]
    before = stamps(cache)
    manifest = read_manifest(cache)
    status, report, err = verify(cache)
    assert (status, err) == (0, "")
    assert report.pop("seconds") >= 0
    assert report == {
        "cache": str(cache),
        "whole": True,
        "shards": len(manifest.shards),
        "rows": sum(entry.rows for entry in manifest.splits.values()),
        "bytes": sum((cache / name).stat().st_size for name in manifest.shards),
        "damage": [],
        "restored": [],
    }
    assert stamps(cache) == before


def test_the_kinds_differ(made):
    """So that what is tested on all of them is tested on five things."""
    assert not (made["folders"][1] / "splits.csv").exists()
    assert read_manifest(made["rejects"][1]).rejected == 2
    assert read_manifest(made["uneven"][1]).recipe["class_copies"] == {"Paper": 5}
    assert all(len(read_manifest(cache).shards) >= 2 for _, cache in made.values())


def test_repairing_what_is_whole_changes_nothing(made, verify, own):
    data, cache = own("jpeg")
    before = stamps(cache)
    status, report, _ = verify(cache, "--repair", "--data", data)
    assert (status, report["restored"]) == (0, [])
    assert stamps(cache) == before


def test_the_table(made, own, command):
    _, cache = own("jpeg")
    status, out, err = command("verify", "--cache", cache)
    assert (status, err) == (0, "")
    assert out.startswith(f"{cache} is whole: 96 rows in 6 shards, ")
    path = cache / SHARD
    flip(path, next(place.start for place in places(path) if place.column == "label" and place.rows == {2}))
    status, out, err = command("verify", "--cache", cache)
    assert status == 1
    source = CacheSource(made["jpeg"][1], "train")
    row = next(row for row in range(len(source.labels)) if f"{SHARD}, row 2 " in source.describe(row))
    assert f"{source.sample_ids[row]:016x}" in out
    assert SHARD in out.replace("\n", "")
    assert one_sentence(err)
    assert "--repair --data" in err


def test_fifty_damages_are_listed_and_the_rest_counted(own, command):
    _, cache = own("jpeg")
    for path in cache.glob("*/*.arrow"):
        for place in places(path):
            if place.column == "checksum":
                flip(path, place.start)
    _, out, _ = command("verify", "--cache", cache)
    assert "and 46 more: --json lists all" in out


# --- single bytes


def test_places_are_right(made):
    """The test's own view of a shard, held against the values that pyarrow reads there."""
    for kind in ("jpeg", "raw"):
        for path in made[kind][1].glob("*/*.arrow"):
            data, table = path.read_bytes(), pa.ipc.open_file(path).read_all().to_pylist()
            seen = set()
            for place in places(path):
                chunk = data[place.start : place.stop]
                if place.column in ("image", "source"):
                    (row,) = place.rows
                    value = table[row][place.column]
                    assert chunk == (value if isinstance(value, bytes) else value.encode())
                elif place.column in NUMBERS:
                    (row,) = place.rows
                    assert int.from_bytes(chunk, "little") == table[row][place.column]
                seen.add(place.column)
            assert {"op", "op text offsets", "magnitude", "centre", "source offsets"} <= seen or "train" not in str(
                path
            )


COLUMNS = [
    *NUMBERS, "image", "source", "source offsets", "op", "op offsets", "op text offsets", "magnitude",
    "magnitude offsets", "centre", "centre offsets",
]  # fmt: skip
FLIPPED = [
    *((kind, column) for kind in ("jpeg", "raw") for column in COLUMNS),
    ("jpeg", "image offsets"),  # once a bug: a start below 0 was taken for 0, an end behind the data for its end
]


@pytest.mark.parametrize(("kind", "column"), FLIPPED)
def test_a_flip_in_a_value_names_its_row(own, kind, column):
    _, cache = own(kind)
    path = first_shard(cache)
    clean = pa.ipc.open_file(path).read_all().to_pylist()
    found = [place for place in places(path) if place.column == column]
    whole = path.read_bytes()
    for place in (found[0], found[len(found) // 2], found[-1]):
        for position, bits in ((place.start, 1), (place.stop - 1, 128)):
            path.write_bytes(whole)
            flip(path, position, bits)
            damages = damage_of(cache)
            assert {damage.file for damage in damages} == {name_in(cache, path)}
            assert {damage.row for damage in damages} == place.rows
            for damage in damages:
                if column != "sample_id":
                    assert damage.sample_id == f"{clean[damage.row]['sample_id']:016x}"
                if not column.startswith("source") and damage.source is not None:
                    assert damage.source == clean[damage.row]["source"]


def test_a_flipped_sample_id_is_shown_as_it_stands(own):
    _, cache = own("jpeg")
    path = cache / SHARD
    clean = pa.ipc.open_file(path).read_all().to_pylist()
    flip(path, next(place.start for place in places(path) if place.column == "sample_id" and place.rows == {3}), 1)
    (damage,) = damage_of(cache)
    assert damage.sample_id == f"{clean[3]['sample_id'] ^ 1:016x}"
    assert damage.source == clean[3]["source"]


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_a_flip_outside_of_the_rows(own, kind):
    """Magic, schema, the record batch's own description, padding, footer: the file is named, and no row."""
    _, cache = own(kind)
    path = first_shard(cache, "val")
    whole = path.read_bytes()
    mine = places(path)
    inside = np.zeros(len(whole), bool)
    for place in mine:
        inside[place.start : place.stop] = True
    outside = np.flatnonzero(~inside)
    first, last = min(place.start for place in mine), max(place.stop for place in mine)
    assert ((outside > first) & (outside < last)).any(), "no padding to flip"
    draw = np.random.Generator(np.random.Philox(7))
    spots = [0, 6, 7, len(whole) - 1, len(whole) - 8, *draw.choice(outside, 100).tolist()]
    for position in spots:
        path.write_bytes(whole)
        flip(path, position, int(draw.integers(1, 256)))
        damage = damage_of(cache)
        assert damage, f"byte {position}"
        assert {found.file for found in damage} == {name_in(cache, path)}
        if first < position < last:
            assert [found.row for found in damage] == [None]
            assert "no row is hurt" in damage[0].what


def test_words_that_pyarrow_answers_with_nonsense(own):
    """Lowest and highest bytes of the record batch's numbers, which overflow: no crash, no exception, always found."""
    _, cache = own("jpeg")
    path = first_shard(cache, "val")
    whole, first = path.read_bytes(), min(place.start for place in places(path))
    name, others = name_in(cache, path), [other for other in cache.glob("*/*.arrow") if other != path]
    for other in others:  # only one shard is of interest
        other.unlink()
    for position in range(first - 1100, first):
        if position % 8 not in (0, 7):
            continue
        path.write_bytes(whole)
        flip(path, position, 0x80 if position % 8 else 0x04)
        assert name in {damage.file for damage in damage_of(cache)}, position


FLIPS = st.tuples(st.integers(0, 2**32), st.integers(0, 2**32), st.integers(1, 255))


@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_byte_is_found_and_its_row_is_named(made, tmp_path, kind):
    cache = Path(shutil.copytree(made[kind][1], tmp_path / "cache"))
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    mine = {path: places(path) for path in files if path.suffix == ".arrow"}

    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(FLIPS)
    @example((0, 0, 1))
    def run(flipped):
        which, where, bits = flipped
        path = files[which % len(files)]
        whole = path.read_bytes()
        position = where % len(whole)
        flip(path, position, bits)
        try:
            damage = damage_of(cache)
        finally:
            path.write_bytes(whole)
        assert {found.file for found in damage} == {name_in(cache, path)}
        rows = {row for place in mine.get(path, []) if place.start <= position < place.stop for row in place.rows} or {
            None
        }
        if rows != {None}:
            assert {found.row for found in damage} == rows

    run()
    assert not damage_of(cache)


def test_white_space_and_last_digits_of_the_manifest(own, repaired, hashes):
    """Its checksum is one of values: these say the same. Every byte counts all the same."""
    data, cache = own("jpeg")
    path, wanted = cache / "manifest.json", hashes(cache)
    whole = path.read_bytes()
    assert b": 0.15," in whole
    for old, new in ((b": 0.15,", b":\t0.15,"), (b"\n}\n", b"\r}\n"), (b"0.01", b"1e-2"), (b"}\n", b"}")):
        changed = new.join(whole.rsplit(old, 1))
        assert changed != whole
        path.write_bytes(changed)
        assert [damage.file for damage in damage_of(cache)] == ["manifest.json"]
        repaired(data, cache, wanted, ["manifest.json"])


# --- whole files


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _another_table(path):
    table = pa.table({"x": [1, 2]})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def _swap(path):
    shutil.copyfile(path.with_name("shard-00002-of-00004.arrow"), path)


FILE_DAMAGE = {
    "missing": Path.unlink,
    "truncated": _truncate,
    "last byte gone": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "foreign": lambda path: path.write_bytes(b"GIF89a" * 500),
    "another table": _another_table,
    "another shard": _swap,
}


@pytest.mark.parametrize("how", FILE_DAMAGE)
def test_a_damaged_shard(own, verify, repaired, hashes, how):
    data, cache = own("jpeg")
    wanted = hashes(cache)
    FILE_DAMAGE[how](cache / SHARD)
    status, report, err = verify(cache)
    assert status == 1
    assert one_sentence(err)
    (damage,) = report["damage"]
    assert (damage["file"], damage["row"]) == (SHARD, None)
    if how == "missing":
        assert damage["what"] == f"missing, with rows 0 to {read_manifest(cache).shards[SHARD].rows - 1}"
    repaired(data, cache, wanted, [SHARD])


BESIDE = [
    *(("jpeg", name) for name in ("build.json", "splits.csv", "manifest.json")),
    ("rejects", "rejected.csv"),
    ("folders", "manifest.json"),
]


@pytest.mark.parametrize(("kind", "name"), BESIDE)
@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "foreign", "flip"])
def test_a_damaged_file_beside_the_shards(own, verify, repaired, hashes, kind, name, how):
    data, cache = own(kind)
    wanted = hashes(cache)
    if how == "flip":
        flip(cache / name, (cache / name).stat().st_size // 2)
    else:
        FILE_DAMAGE[how](cache / name)
    status, report, err = verify(cache)
    assert one_sentence(err)
    if (name, how) == ("manifest.json", "missing"):  # which makes it an unfinished one
        assert (status, report) == (2, None)
        assert "augment_cache.build" in err
        return
    assert status == 1
    assert [(damage["file"], damage["row"]) for damage in report["damage"]] == [(name, None)]
    repaired(data, cache, wanted, [name])


@pytest.mark.parametrize("key", ["seed", "size", "copies", "quality", "val", "encoding", "engine"])
def test_a_build_json_that_tells_another_story(own, repaired, hashes, key):
    """It has no checksum of its own: a repair goes by the manifest, which has."""
    data, cache = own("jpeg")
    wanted = hashes(cache)
    value = json.loads((cache / "build.json").read_text(encoding="utf-8"))
    other = {"seed": 1, "size": 36, "copies": 3, "quality": 80, "val": 0.25, "encoding": "raw", "engine": "cpt"}
    (value["recipe"]["split"] if key == "val" else value["recipe"])[key] = other[key]
    (cache / "build.json").write_text(json.dumps(value))
    flip(cache / SHARD, 5000)
    repaired(data, cache, wanted, ["build.json", SHARD])


def test_more_shards_than_the_manifest_knows(own, verify, repaired, hashes):
    data, cache = own("jpeg")
    wanted = hashes(cache)
    extra = "train/shard-00000-of-00009.arrow"
    shutil.copyfile(cache / SHARD, cache / extra)
    status, report, _ = verify(cache)
    assert status == 1
    assert [(damage["file"], damage["what"]) for damage in report["damage"]] == [(extra, "not in the manifest")]
    repaired(data, cache, wanted, [extra])


def test_a_strange_file_is_named_and_never_removed(own, verify):
    data, cache = own("jpeg")
    (cache / "val" / "thesis.txt").write_text("mine")
    status, report, _ = verify(cache, "--repair", "--data", data)
    assert status == 1
    assert [damage["file"] for damage in report["damage"]] == ["val/thesis.txt"]
    assert (cache / "val" / "thesis.txt").read_text() == "mine"


COMBINATIONS = [
    ["build.json", "splits.csv", "rejected.csv"],
    ["manifest.json", SHARD],
    ["manifest.json", "splits.csv"],
    ["manifest.json", "rejected.csv", "val/shard-00000-of-00001.arrow"],
    ["splits.csv", SHARD],
    ["splits.csv", SHARD, "val/shard-00000-of-00001.arrow", "test/shard-00000-of-00001.arrow"],
    ["build.json", "splits.csv", "rejected.csv", SHARD, "train/shard-00002-of-00004.arrow"],
]


@pytest.mark.parametrize("names", COMBINATIONS, ids=" ".join)
@pytest.mark.parametrize(("kind", "how"), [("jpeg", "truncated"), ("rejects", "flip")])
def test_several_damages_at_once(own, repaired, hashes, kind, how, names):
    data, cache = own(kind)
    wanted = hashes(cache)
    for name in names:
        if how == "flip":
            flip(cache / name, (cache / name).stat().st_size // 3)
        else:
            _truncate(cache / name)
    found = {damage.file for damage in damage_of(cache)}
    assert found == ({"manifest.json"} if "manifest.json" in names else set(names))
    repaired(data, cache, wanted, names)


def test_padding_is_not_laundered_by_a_lost_manifest(own, repaired, hashes):
    """No row is hurt, so going on with the build would call this shard finished and write its checksum down."""
    data, cache = own("jpeg")
    wanted = hashes(cache)
    path = cache / SHARD
    mine = places(path)
    inside = {position for place in mine for position in range(place.start, place.stop)}
    flip(path, next(p for p in range(min(inside), max(inside)) if p not in inside))
    flip(cache / "manifest.json", 900)
    repaired(data, cache, wanted, [SHARD, "manifest.json"])


def test_build_json_and_manifest_both_damaged(own, verify, repaired, hashes):
    """The shards say how they were made."""
    data, cache = own("jpeg")
    wanted = hashes(cache)
    (cache / "build.json").write_bytes(b"{")
    flip(cache / "manifest.json", 900)
    status, report, _ = verify(cache)
    assert status == 1
    assert [damage["file"] for damage in report["damage"]] == ["manifest.json"]
    repaired(data, cache, wanted, ["build.json", "manifest.json"])


def test_nothing_left_that_says_how_it_was_made(own, verify, hashes):
    data, cache = own("jpeg")
    for path in cache.rglob("*"):
        if path.is_file():
            path.write_bytes(b"{")
    before = hashes(cache)
    status, _, err = verify(cache, "--repair", "--data", data)
    assert status == 2
    assert "no longer says how it was made; build it again with --force" in err
    assert hashes(cache) == before


@pytest.mark.parametrize("kind", KINDS)
def test_repair_of_every_kind(own, repaired, hashes, kind):
    data, cache = own(kind)
    wanted = hashes(cache)
    shards = sorted(name_in(cache, path) for path in cache.glob("*/*.arrow"))
    flip(cache / shards[0], (cache / shards[0]).stat().st_size // 2)
    (cache / shards[-1]).unlink()
    repaired(data, cache, wanted, [shards[0], shards[-1]])
    for name in wanted:
        if name != "manifest.json":
            (cache / name).unlink()
    repaired(data, cache, wanted, sorted(set(wanted) - {"manifest.json"}))


def test_repair_of_a_cache_that_has_grown(own_photos, build_cache, tmp_path, jpeg, repaired, hashes):
    """Files keep the split that they had first, which no cut of today would give them."""
    cache = tmp_path / "alone" / "cache"
    build_cache(own_photos, cache)
    for number in range(8):
        (own_photos / "Paper" / f"new{number}.jpg").write_bytes(jpeg(900 + number))
    build_cache(own_photos, cache)
    wanted = hashes(cache)
    for names in (["splits.csv"], ["splits.csv", "build.json"], [SHARD], [SHARD, "build.json"], ["manifest.json"]):
        for name in names:
            flip(cache / name, (cache / name).stat().st_size // 2)
        repaired(own_photos, cache, wanted, names)


# --- what cannot be repaired


def break_shard(cache):
    flip(cache / SHARD, 6000)


def break_manifest(cache):
    flip(cache / "manifest.json", 900)


def break_both(cache):
    break_shard(cache)
    break_manifest(cache)


def break_splits(cache):
    flip(cache / "splits.csv", 60)


BREAKS = [break_shard, break_manifest, break_both]


def refused(verify, hashes, cache, data, words, statuses=(1, 2)):
    before, seen = hashes(cache), stamps(cache)
    status, _, err = verify(cache, "--repair", "--data", data)
    assert status in statuses
    assert one_sentence(err), err
    assert re.search(words, err), err
    assert hashes(cache) == before
    assert stamps(cache) == seen
    assert list(cache.parent.iterdir()) == [cache]


def test_repair_needs_data(own, verify, hashes):
    _, cache = own("jpeg")
    break_shard(cache)
    before = hashes(cache)
    status, report, err = verify(cache, "--repair")
    assert (status, report) == (2, None)
    assert "--data" in err
    assert one_sentence(err)
    assert hashes(cache) == before


@pytest.mark.parametrize("break_it", BREAKS)
@pytest.mark.parametrize("kind", ["jpeg", "folders"])
def test_wrong_data(own, verify, hashes, jpeg, tmp_path, kind, break_it):
    """Same classes, same shape, other photos: nothing of it may get into the cache."""
    data, cache = own(kind)
    names = sorted(name_in(data, path) for path in data.rglob("*.jpg"))
    wrong = tmp_path / "wrong"
    for number, name in enumerate(names):
        path = wrong / Path(name).with_name(f"other{number}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(2000 + number))
    if kind == "folders" and break_it is not break_manifest:
        flip(first_shard(cache), 6000)
    if kind == "jpeg" or break_it is not break_shard:
        (break_it if kind == "jpeg" else break_manifest)(cache)
    refused(verify, hashes, cache, wrong, str(wrong))


@pytest.mark.parametrize("break_it", BREAKS)
def test_data_that_is_not_there(own, verify, hashes, tmp_path, break_it):
    _, cache = own("jpeg")
    break_it(cache)
    refused(verify, hashes, cache, tmp_path / "gone", "is no folder", (2,))


@pytest.mark.parametrize("break_it", BREAKS)
@pytest.mark.parametrize("change", ["other bytes", "gone", "new"])
def test_a_source_that_changed(own, own_photos, verify, hashes, jpeg, break_it, change):
    _, cache = own("jpeg")
    source = CacheSource(cache, "train")
    row = next(row for row in range(len(source.labels)) if SHARD in source.describe(row))
    path = own_photos / source.record(row).source
    if change == "other bytes":
        path.write_bytes(jpeg(77777))
    elif change == "gone":
        path.unlink()
    else:
        for number in range(40):  # so many that each shard gets one
            path.with_name(f"new{number}.jpg").write_bytes(jpeg(3000 + number))
    break_it(cache)
    refused(verify, hashes, cache, own_photos, "changed|not built from|not what the cache was built from")


def test_a_source_that_changed_elsewhere_does_no_harm(own, own_photos, repaired, hashes, jpeg):
    _, cache = own("jpeg")
    source = CacheSource(cache, "train")
    row = next(row for row in range(len(source.labels)) if SHARD not in source.describe(row))
    (own_photos / source.record(row).source).write_bytes(jpeg(77777))
    wanted = hashes(cache)
    break_shard(cache)
    repaired(own_photos, cache, wanted, [SHARD])


@pytest.mark.parametrize("break_it", BREAKS)
def test_other_libraries_that_give_other_pixels(own, verify, hashes, monkeypatch, break_it):
    data, cache = own("jpeg")
    break_it(cache)
    old = worker.ShardBuilder._encode
    monkeypatch.setattr(worker.ShardBuilder, "_encode", lambda self, pixels: old(self, pixels ^ 1))
    monkeypatch.setattr("augment_cache.build._version", lambda name: f"99.{len(name)}")
    refused(verify, hashes, cache, data, r"torch [0-9.]+\S* then, 99\.5 now", (1,))


def test_other_libraries_that_give_the_same_pixels(own, repaired, hashes, monkeypatch):
    """Bytes decide, not numbers of versions."""
    data, cache = own("jpeg")
    wanted = hashes(cache)
    break_shard(cache)
    monkeypatch.setattr("augment_cache.build._version", lambda name: "99")
    repaired(data, cache, wanted, [SHARD])


def test_damage_that_the_same_libraries_do_not_explain(own, verify, hashes, monkeypatch):
    data, cache = own("jpeg")
    break_shard(cache)
    old = worker.ShardBuilder._encode
    monkeypatch.setattr(worker.ShardBuilder, "_encode", lambda self, pixels: old(self, pixels ^ 1))
    refused(verify, hashes, cache, data, "came out differently", (1,))


def test_splits_that_cannot_be_known(own, own_photos, verify, hashes):
    """All that said where the removed photo went is gone."""
    _, cache = own("jpeg")
    next(iter(sorted(own_photos.glob("Paper/*.jpg")))).unlink()
    break_splits(cache)
    refused(verify, hashes, cache, own_photos, r"splits\.csv|not what the cache")


@pytest.mark.parametrize("break_it", [*BREAKS, break_splits])
def test_repair_waits_for_nobody_who_builds(own, verify, hashes, break_it):
    data, cache = own("jpeg")
    break_it(cache)
    before = hashes(cache)
    with building(cache, None):
        status, _, err = verify(cache, "--repair", "--data", data)
    assert status == 2
    assert f"is being built by process {os.getpid()}" in err
    assert one_sentence(err)
    assert hashes(cache) == before


def test_a_repair_that_is_stopped(own, verify, hashes, monkeypatch):
    data, cache = own("jpeg")
    break_shard(cache)
    before = hashes(cache)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker.ShardBuilder, "_encode", stop)
    status, _, err = verify(cache, "--repair", "--data", data)
    assert (status, one_sentence(err)) == (130, True)
    assert hashes(cache) == before
    assert list(cache.parent.iterdir()) == [cache]


# --- no cache


@pytest.mark.parametrize("words", [(), ("--repair", "--data", ".")])
@pytest.mark.parametrize("what", ["absent", "empty", "foreign", "file", "unfinished", "foreign manifest"])
def test_what_is_no_cache(own, verify, hashes, tmp_path, what, words):
    path = tmp_path / "other" / "cache"
    if what == "unfinished":
        _, path = own("jpeg")
        (path / "manifest.json").unlink()
    elif what == "file":
        path.parent.mkdir()
        path.write_text("text")
    elif what != "absent":
        path.mkdir(parents=True)
    if what == "foreign":
        (path / "thesis.txt").write_text("mine")
    if what == "foreign manifest":
        (path / "manifest.json").write_text('{"name": "a web page"}')
    before = hashes(path)
    status, report, err = verify(path, *words)
    assert (status, report) == (2, None)
    assert one_sentence(err)
    assert str(path) in err
    assert hashes(path) == before
    assert what != "absent" or not path.parent.exists()


def test_a_fresh_process_survives(own):
    """The interpreter itself, not only the exceptions: offsets far outside of the file, in a process of its own."""
    _, cache = own("jpeg")
    for path in cache.glob("train/*.arrow"):
        for place in places(path):
            if place.column.endswith("offsets"):
                flip(path, place.stop - 1, 0x7F)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from augment_cache.verify import main; main()", "--cache", cache, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    rows = {(damage["file"], damage["row"]) for damage in json.loads(done.stdout)["damage"]}
    train = read_manifest(cache).splits["train"].shards
    assert rows == {(entry.file, row) for entry in train for row in range(entry.rows)}


def test_damage_is_a_value():
    assert Damage(file="a", what="b") == Damage(file="a", what="b", row=None, sample_id=None, source=None)
