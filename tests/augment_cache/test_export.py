"""The export job: what comes out is what is stored, under names that are safe, whole or not at all."""

import csv
import dataclasses
import errno
import io
import json
import shutil
import tarfile
import threading
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from augment_cache.export import ExportConfig, export, table
from augment_cache.exporting.names import STEM_BYTES, class_fault, key, source_fault, stem
from augment_cache.exporting.rows import CheckedRows, in_order, worker_threads
from augment_cache.exporting.webdataset import TarShards, tar_member
from augment_cache.format.manifest import read_manifest
from augment_cache.format.shards import Shard, write_shard
from augment_cache.format.source import CacheSource
from pipelines.errors import CorruptSampleError, UsageError

SPLITS = ("train", "val", "test")
SIDE = 32


@pytest.fixture(params=["jpeg", "raw"])
def folder(request):
    """A cache of each encoding."""
    return request.getfixturevalue("cache" if request.param == "jpeg" else "raw_cache")


def run(cache, out, **options):
    return export(ExportConfig(cache=cache, out=out, **options))


def provenance(out):
    with (out / "provenance.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stored(cache, split, **options):
    """Key → (record, image) of every row."""
    source = CacheSource(cache, split, **options)
    records = [source.record(row) for row in range(len(source.labels))]
    images = source.fetch(np.arange(len(records)))
    return {key(record.sample_id, record.copy): (record, image) for record, image in zip(records, images, strict=True)}


def same_image(data, image):
    """JPEG: the very bytes; raw: a PNG of these very pixels, and small for one."""
    if image.ndim == 1:
        return data == image.tobytes()
    assert data.startswith(b"\x89PNG")
    return np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image)


def members(out, split):
    """Names and contents of all tars of a split, in order."""
    found = []
    for path in sorted(out.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            found += [(member, tar.extractfile(member).read()) for member in tar]
    return found


def change_rows(cache, change, split="train"):
    """Write the first shard of a split anew, its rows changed, its checksums right."""
    manifest = read_manifest(cache)
    path = cache / manifest.splits[split].shards[0].file
    shard = Shard(path, manifest.recipe["encoding"], manifest.size)
    rows = [shard.row(row) for row in range(shard.rows)]
    write_shard(path, change(rows), pa.ipc.open_file(path).schema, manifest.size)


def change_manifest(cache, **changes):
    dataclasses.replace(read_manifest(cache), **changes).write(cache)


def damage_image(cache, split, row):
    """Flip a bit in an image; returns how an error names the place."""
    source = CacheSource(cache, split)
    path, where = source.describe(row).split(", row ")
    image = source.fetch(np.array([row]))[0].tobytes()
    data = bytearray(Path(path).read_bytes())
    data[data.index(image) + len(image) // 2] ^= 1
    Path(path).write_bytes(data)
    return f"{path}, row {where.split()[0]}:"


# --- folders


def test_folders_hold_every_row_as_it_is_stored(folder, tmp_path):
    report = run(folder, tmp_path / "plain")
    suffix = "png" if read_manifest(folder).recipe["encoding"] == "raw" else "jpg"
    lines = provenance(tmp_path / "plain")
    files = {path.relative_to(tmp_path / "plain").as_posix() for path in (tmp_path / "plain").rglob(f"*.{suffix}")}
    assert [line["file"] for line in lines] == list(dict.fromkeys(line["file"] for line in lines))
    assert {line["file"] for line in lines} == files
    for split in SPLITS:
        rows = stored(folder, split)
        own = [line for line in lines if line["split"] == split]
        assert [f"{line['sample_id']}_{line['copy']}" for line in own] == list(rows)
        for line, (name, (record, image)) in zip(own, rows.items(), strict=True):
            where = f"{split}/{line['class']}/{PurePosixPath(record.source).stem}_{name}.{suffix}"
            assert line["file"] == where
            assert same_image((tmp_path / "plain" / where).read_bytes(), image)
        counts = {"rows": len(rows), "files": len(rows)}
        counts["bytes"] = sum((tmp_path / "plain" / line["file"]).stat().st_size for line in own)
        assert report["splits"][split] == counts


def test_provenance_says_what_the_cache_says(folder, tmp_path):
    run(folder, tmp_path / "plain")
    for line in provenance(tmp_path / "plain"):
        record, _ = stored_record(folder, line)
        assert line["class"] == read_manifest(folder).classes[record.label]
        assert line["source"] == record.source
        assert tuple(filter(None, line["op"].split(";"))) == record.op
        assert tuple(float(value) for value in line["magnitude"].split(";") if value) == record.magnitude
        centres = line["centre"].replace(";", " ").split()
        assert tuple(float(value) for value in centres) == record.centre


_STORED: dict[tuple[Path, str], dict] = {}


def stored_record(cache, line):
    rows = _STORED.setdefault((cache, line["split"]), stored(cache, line["split"]))
    return rows[f"{line['sample_id']}_{line['copy']}"]


def test_several_ops_are_joined_in_order(own_cache, tmp_path):
    def two_ops(rows):
        ops = {"op": ("Cutout", "Rotate"), "magnitude": (0.25, -14.5), "centre": (0.5, 0.125, 0.0, 0.0)}
        return [rows[0]._replace(**ops), *rows[1:]]

    change_rows(own_cache, two_ops)
    run(own_cache, tmp_path / "plain")
    line = provenance(tmp_path / "plain")[0]
    assert (line["op"], line["magnitude"], line["centre"]) == ("Cutout;Rotate", "0.25;-14.5", "0.5 0.125;0.0 0.0")
    run(own_cache, tmp_path / "tars", to="webdataset")
    name = f"{line['sample_id']}_{line['copy']}.json"
    (found,) = [json.loads(data) for member, data in members(tmp_path / "tars", "train") if member.name == name]
    assert found["op"] == ["Cutout", "Rotate"]
    assert found["magnitude"] == [0.25, -14.5]
    assert found["centre"] == [[0.5, 0.125], [0.0, 0.0]]


def test_counts_per_class_as_the_manifest_has_them(folder, tmp_path):
    run(folder, tmp_path / "plain")
    manifest = read_manifest(folder)
    for split, entry in manifest.splits.items():
        found = Counter(path.parent.name for path in (tmp_path / "plain" / split).glob("*/*"))
        assert found == Counter(entry.classes)


def test_torchvision_imagefolder(raw_cache, tmp_path):
    from torchvision.datasets import ImageFolder

    run(raw_cache, tmp_path / "plain")
    classes = list(read_manifest(raw_cache).classes)
    for split in SPLITS:
        rows = stored(raw_cache, split)
        seen = ImageFolder(str(tmp_path / "plain" / split))
        assert seen.classes == classes
        assert len(seen) == len(rows)
        for (path, label), (picture, _) in zip(seen.samples, seen, strict=True):
            record, pixels = rows["_".join(Path(path).stem.split("_")[-2:])]
            assert label == record.label
            assert np.array_equal(np.asarray(picture), pixels)


def test_hugging_face_imagefolder(cache, tmp_path):
    datasets = pytest.importorskip("datasets")
    run(cache, tmp_path / "plain")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "plain"), cache_dir=str(tmp_path / "hf"), drop_labels=False
    )
    sizes = {split: CacheSource(cache, split).labels for split in SPLITS}
    assert loaded["train"].features["label"].names == list(read_manifest(cache).classes)
    assert Counter(loaded["train"]["label"]) == Counter(sizes["train"].tolist())
    assert {"validation" if split == "val" else split: len(rows) for split, rows in sizes.items()} == {
        split: len(rows) for split, rows in loaded.items()
    }


def test_a_cache_built_from_an_export_has_the_same_pixels(raw_cache, build_cache, tmp_path):
    run(raw_cache, tmp_path / "plain")
    build_cache(tmp_path / "plain", tmp_path / "again", copies=0, encoding="raw")
    for split in SPLITS:
        rows = stored(raw_cache, split)
        again = [(record, image) for record, image in stored(tmp_path / "again", split).values()]
        assert len(again) == len(rows)
        for record, image in again:
            original, pixels = rows["_".join(PurePosixPath(record.source).stem.split("_")[-2:])]
            assert record.label == original.label
            assert np.array_equal(image, pixels)


# --- webdataset


def test_tars_hold_every_row_once(folder, tmp_path):
    report = run(folder, tmp_path / "tars", to="webdataset", shard_mib=0.05)
    suffix = "png" if read_manifest(folder).recipe["encoding"] == "raw" else "jpg"
    for split in SPLITS:
        rows, found = stored(folder, split), members(tmp_path / "tars", split)
        assert [member.name.split(".")[1] for member, _ in found] == [suffix, "cls", "json"] * len(rows)
        names = [member.name.split(".")[0] for member, _ in found]
        assert names[::3] == names[1::3] == names[2::3]
        assert sorted(names[::3]) == sorted(rows)
        for name, (_, data), (_, label), (_, text) in zip(names[::3], *(found[k::3] for k in range(3)), strict=True):
            record, image = rows[name]
            assert same_image(data, image)
            assert label == str(record.label).encode()
            assert json.loads(text) == {
                "class": read_manifest(folder).classes[record.label],
                "label": record.label,
                "source": record.source,
                "sample_id": f"{record.sample_id:016x}",
                "copy": record.copy,
                "op": list(record.op),
                "magnitude": list(record.magnitude),
                "centre": [list(record.centre[k : k + 2]) for k in range(0, len(record.centre), 2)],
            }
        tars = sorted((tmp_path / "tars").glob(f"{split}-*.tar"))
        assert [path.name for path in tars] == [f"{split}-{number:06d}.tar" for number in range(len(tars))]
        size = sum(path.stat().st_size for path in tars)
        assert report["splits"][split] == {"rows": len(rows), "tars": len(tars), "bytes": size}


def test_members_tell_nothing_of_when_and_by_whom(cache, tmp_path):
    run(cache, tmp_path / "tars", to="webdataset")
    for member, _ in members(tmp_path / "tars", "train"):
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        assert member.mode == 0o644
        assert member.isreg()
        assert not member.pax_headers


def test_tars_are_near_the_wanted_size(raw_cache, tmp_path):
    target = int(0.06 * (1 << 20))
    run(raw_cache, tmp_path / "tars", to="webdataset", shard_mib=0.06)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "tars").glob("train-*.tar"))]
    assert len(sizes) > 3
    assert max(sizes) <= target
    assert min(sizes[:-1]) > 0.8 * target


def test_webdataset_reads_them(folder, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    run(folder, tmp_path / "tars", to="webdataset", shard_mib=0.05)
    raw = read_manifest(folder).recipe["encoding"] == "raw"
    for split in SPLITS:
        rows = stored(folder, split)
        urls = [str(path) for path in sorted((tmp_path / "tars").glob(f"{split}-*.tar"))]
        plain = webdataset.WebDataset(urls, shardshuffle=False)
        seen = list(plain.decode("rgb8") if raw else plain.decode())
        assert sorted(sample["__key__"] for sample in seen) == sorted(rows)
        for sample in seen:
            record, image = rows[sample["__key__"]]
            assert sample["cls"] == record.label
            assert sample["json"]["source"] == record.source
            if raw:
                assert np.array_equal(sample["png"], image)


def test_the_order_is_shuffled_by_the_seed(cache, tmp_path):
    orders = {}
    for name, options in {"a": {}, "b": {"seed": 1}, "stored": {"shuffle": False}}.items():
        run(cache, tmp_path / name, to="webdataset", shard_mib=1, **options)
        orders[name] = [member.name.split(".")[0] for member, _ in members(tmp_path / name, "train")[::3]]
    assert orders["stored"] == list(stored(cache, "train"))
    assert len({tuple(order) for order in orders.values()}) == 3
    assert len({tuple(sorted(order)) for order in orders.values()}) == 1
    beside = [a.split("_")[0] == b.split("_")[0] for a, b in zip(orders["a"], orders["a"][1:], strict=False)]
    assert np.mean(beside) < 0.3, "copies of a sample lie side by side"


@given(sizes=st.lists(st.integers(0, 3000), max_size=30), target=st.integers(512, 9000))
def test_tar_shards_for_any_sizes(tmp_path_factory, sizes, target):
    out = tmp_path_factory.mktemp("any")
    with TarShards(out, "train", target) as tars:
        for number, size in enumerate(sizes):
            tars.add(tar_member(f"{number}.bin", bytes([number]) * size))
    paths = sorted(out.glob("*.tar"))
    assert tars.count == len(paths)
    assert tars.bytes == sum(path.stat().st_size for path in paths)
    found = members(out, "train")
    assert [(member.name, data) for member, data in found] == [
        (f"{number}.bin", bytes([number]) * size) for number, size in enumerate(sizes)
    ]
    for path in paths:
        with tarfile.open(path) as tar:
            assert path.stat().st_size <= target or len(tar.getmembers()) == 1
    shutil.rmtree(out)


# --- both


@pytest.mark.parametrize("to", ["folders", "webdataset"])
def test_same_cache_same_bytes_whatever_the_threads(folder, tmp_path, hashes, to):
    for threads in (1, 5):
        run(folder, tmp_path / str(threads), to=to, threads=threads, shard_mib=0.05)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "5")
    assert len(hashes(tmp_path / "1")) > 4


@pytest.mark.parametrize("to", ["folders", "webdataset"])
def test_split_and_copies(cache, tmp_path, to):
    one = run(cache, tmp_path / "val", to=to, split="val")
    assert list(one["splits"]) == ["val"]
    assert not list((tmp_path / "val").glob("train*"))
    for copies in (0, 1):
        report = run(cache, tmp_path / f"copies{copies}", to=to, copies=copies)
        for split in SPLITS:
            assert report["splits"][split]["rows"] == len(stored(cache, split, copies=copies))
    assert run(cache, tmp_path / "many", to=to, copies=99)["splits"]["train"]["rows"] == len(stored(cache, "train"))
    if to == "folders":
        assert {line["copy"] for line in provenance(tmp_path / "copies0")} == {"0"}
        assert {line["copy"] for line in provenance(tmp_path / "copies1")} == {"0", "1"}


def test_report_and_classes_file(cache, command, tmp_path):
    status, out, _ = command("export", "--cache", cache, "--out", tmp_path / "plain", "--json")
    report = json.loads(out)
    assert status == 0
    assert list(report) == ["out", "to", "splits", "classes", "seconds"]
    made = json.loads((tmp_path / "plain" / "classes.json").read_text(encoding="utf-8"))
    assert made["format"] == "tacopress-export"
    assert made["classes"] == report["classes"] == ["Glass bottle", "Métal", "Paper"]
    assert made["splits"] == report["splits"]
    assert (made["to"], made["image"], made["size"]) == ("folders", "jpg", SIDE)
    assert "train" in table(report)
    assert "3 classes" in table(report)
    status, out, _ = command(
        "export", "--cache", cache, "--out", tmp_path / "tars", "--to", "webdataset", "--split=val"
    )
    assert status == 0
    assert "tars" in out


def test_a_class_without_rows_has_its_folder(own_cache, tmp_path):
    change_manifest(own_cache, classes=(*read_manifest(own_cache).classes, "Zinc"))
    run(own_cache, tmp_path / "plain")
    assert all(list((tmp_path / "plain" / split / "Zinc").iterdir()) == [] for split in SPLITS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--copies", "-1"], "--copies must be at least 0, got -1"),
        (["--shard_mib", "0"], "--shard_mib must be"),
        (["--shard_mib", ".nan"], "--shard_mib must be"),
        (["--seed", "-1"], "--seed must be"),
        (["--threads", "-1"], "--threads must be"),
        (["--to", "zip"], "zip"),
        (["--split", "dev"], "dev"),
    ],
)
def test_wrong_use(cache, command, tmp_path, options, words):
    status, out, err = command("export", "--cache", cache, "--out", tmp_path / "plain", *options)
    assert (status, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "plain").exists()


def test_a_split_that_is_not_there(photos, build_cache, tmp_path):
    build_cache(photos, tmp_path / "cache", test=0.0)
    with pytest.raises(UsageError, match="has no split 'test'; it has train, val"):
        run(tmp_path / "cache", tmp_path / "plain", split="test")
    assert list(run(tmp_path / "cache", tmp_path / "plain")["splits"]) == ["train", "val"]


# --- names


NAMES = {
    "paper/a b.c.jpg": "a b.c",
    "Métal/été 3.JPG": "été 3",
    "x/..hidden.jpg": "__hidden",
    "x/.jpg": "_jpg",
    'x/a<>:"\\|?*b.png': "a________b",
    "": "image",
    "plain": "plain",
    "x/C:\\..\\y.jpg": "C__.._y",
    "x/" + "é" * 120 + ".jpg": "é" * 50,
    "x/a" + "é" * 120 + ".jpg": "a" + "é" * 49,
}


@pytest.mark.parametrize("source", NAMES)
def test_stems(source):
    assert stem(source) == NAMES[source]


@given(st.text(st.characters(exclude_categories=[]), max_size=300))
def test_any_source_is_refused_or_makes_a_file_name(source):
    if source_fault(source):
        return
    name = stem(source)
    assert 1 <= len(name.encode("utf-8")) <= STEM_BYTES
    assert not set(name) & set('<>:"/\\|?*\0\r\n')
    assert not name.startswith(".")
    assert len(f"{name}_{key(2**64 - 1, 32767)}.jpg".encode()) <= 143, "what the narrowest usual file system takes"


@pytest.mark.parametrize("to", ["folders", "webdataset"])
def test_a_source_that_is_no_utf8_survives(cache, tmp_path, monkeypatch, to):
    source, read = "Paper/caf\udce9.jpg", CheckedRows.read

    def foreign(rows, position):
        item = read(rows, position)
        return dataclasses.replace(item, record=item.record._replace(source=source))

    monkeypatch.setattr(CheckedRows, "read", foreign)
    run(cache, tmp_path / "out", to=to, split="val")
    if to == "folders":
        line = provenance(tmp_path / "out")[0]
        assert line["source"] == "Paper/caf\\udce9.jpg"
        assert Path(line["file"]).name.startswith("caf__")
        assert (tmp_path / "out" / line["file"]).is_file()
    else:
        assert json.loads(members(tmp_path / "out", "val")[2][1])["source"] == source


HOSTILE = {
    "/etc/passwd": "absolute",
    "../../x.jpg": "climbs out",
    "paper/../../x.jpg": "climbs out",
    "..": "climbs out",
    "paper/a\0b.jpg": "control character",
    "paper/a\nb.jpg": "control character",
    "paper/\x1b[2J.jpg": "control character",
}


@pytest.mark.parametrize("to", ["folders", "webdataset"])
@pytest.mark.parametrize("source", HOSTILE, ids=repr)
def test_a_hostile_source(own_cache, command, tmp_path, source, to):
    change_rows(own_cache, lambda rows: [*rows[:2], rows[2]._replace(source=source), *rows[3:]])
    before = {path.name for path in tmp_path.iterdir()}
    status, out, err = command("export", "--cache", own_cache, "--out", tmp_path / "plain", "--to", to)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert ".arrow, row 2: source " in err
    assert HOSTILE[source] in err
    assert {path.name for path in tmp_path.iterdir()} == before


HOSTILE_CLASSES = ["", ".", "..", ".hid", "/tmp/x", "../x", "a/b", "a\\b", "a\0b", "a\nb", "é" * 128]


@pytest.mark.parametrize("name", HOSTILE_CLASSES, ids=ascii)
def test_a_hostile_class(own_cache, command, tmp_path, name):
    change_manifest(own_cache, classes=("Glass bottle", name, "Paper"))
    before = {path.name for path in tmp_path.iterdir()}
    status, out, err = command("export", "--cache", own_cache, "--out", tmp_path / "plain")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"class {name!r} " in err
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["a b", "日本", "v1.0", "con", "é" * 127, "a:b", " "])
def test_unusual_classes_keep_their_names(own_cache, tmp_path, name):
    change_manifest(own_cache, classes=("Glass bottle", name, "Paper"))
    run(own_cache, tmp_path / "plain")
    assert {path.name for path in (tmp_path / "plain" / "train").iterdir()} == {"Glass bottle", name, "Paper"}


def test_a_class_that_is_no_text():
    assert "UTF-8" in class_fault("\ud800")


def test_other_things_that_no_build_writes(own_cache, tmp_path):
    manifest = read_manifest(own_cache)
    change_manifest(own_cache, classes=("Paper", "Métal", "Paper"))
    with pytest.raises(UsageError, match="two classes have the same name"):
        run(own_cache, tmp_path / "plain")
    change_manifest(own_cache, classes=("Glass bottle",))
    with pytest.raises(UsageError, match=r"label [12] is none of 1 classes"):
        run(own_cache, tmp_path / "plain")
    change_manifest(own_cache, classes=manifest.classes, splits={"../up": manifest.splits["train"]})
    with pytest.raises(UsageError, match=r"split '\.\./up' is none of train, val, test"):
        run(own_cache, tmp_path / "plain")
    manifest.write(own_cache)
    change_rows(own_cache, lambda rows: [rows[0], rows[0], *rows[2:]])
    with pytest.raises(UsageError, match=r"holds sample [0-9a-f]{16}, copy 0, twice; .*verify .*--repair"):
        run(own_cache, tmp_path / "plain")
    change_rows(own_cache, lambda rows: [rows[0]._replace(copy=1000, label=-1), *rows[1:]])
    with pytest.raises(UsageError, match=r"row 0: label -1 is none of 3 classes"):
        run(own_cache, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["own_cache"]


def test_an_original_that_lost_its_number_is_missed(own_cache, tmp_path):
    change_rows(own_cache, lambda rows: [rows[0]._replace(copy=77), *rows[1:]])
    with pytest.raises(UsageError, match=r"originals .*verify .*--repair"):
        run(own_cache, tmp_path / "plain", copies=0)
    assert not (tmp_path / "plain").exists()


# --- damage, full disks, things in the way


@pytest.mark.parametrize("to", ["folders", "webdataset"])
@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_a_damaged_row_stops_the_export(request, command, tmp_path, encoding, to):
    own = request.getfixturevalue("own_cache" if encoding == "jpeg" else "own_raw_cache")
    where = damage_image(own, "val", 4)
    before = {path.name for path in tmp_path.iterdir()}
    status, out, err = command("export", "--cache", own, "--out", tmp_path / "plain", "--to", to)
    assert (status, out) == (1, "")
    assert where in err
    assert f"python -m augment_cache.verify --cache {own} --repair" in err
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before


def test_damaged_provenance_stops_the_export_too(own_cache, tmp_path):
    path = own_cache / read_manifest(own_cache).splits["train"].shards[0].file
    data = path.read_bytes()
    source = CacheSource(own_cache, "train").record(0).source.encode()
    assert data.count(source) >= 1
    path.write_bytes(data.replace(source, source[:-1] + b"\xff", 1))
    with pytest.raises(CorruptSampleError, match=r"row 0: damaged .*--repair"):
        run(own_cache, tmp_path / "plain")
    assert [entry.name for entry in tmp_path.iterdir()] == ["own_cache"]


class FullDisk:
    """Stands for an open file; the disk takes so many bytes, all files together."""

    left = 0
    lock = threading.Lock()

    def __init__(self, file):
        self._file = file

    def write(self, data):
        with FullDisk.lock:
            FullDisk.left -= len(data)
            if FullDisk.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def close(self):
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


@pytest.mark.parametrize("to", ["folders", "webdataset"])
def test_a_full_disk_leaves_nothing(raw_cache, command, tmp_path, monkeypatch, to):
    whole = Path.open

    def opened(path, mode="r", **options):
        file = whole(path, mode, **options)
        return FullDisk(file) if mode == "xb" else file

    monkeypatch.setattr(FullDisk, "left", 100_000)
    monkeypatch.setattr(Path, "open", opened)
    status, out, err = command("export", "--cache", raw_cache, "--out", tmp_path / "plain", "--to", to)
    assert FullDisk.left < 0
    assert (status, out) == (1, "")
    assert "No space left on device" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_overwrite(cache, raw_cache, tmp_path, hashes):
    run(cache, tmp_path / "plain")
    with pytest.raises(UsageError, match="--overwrite true"):
        run(raw_cache, tmp_path / "plain")
    run(raw_cache, tmp_path / "plain", to="webdataset", overwrite=True)
    run(cache, tmp_path / "fresh")
    run(cache, tmp_path / "plain", overwrite=True)
    assert hashes(tmp_path / "plain") == hashes(tmp_path / "fresh")
    assert {entry.name for entry in tmp_path.iterdir()} == {"plain", "fresh"}


@pytest.mark.parametrize("there", ["thesis.txt", "classes.json", "train/x.jpg"])
def test_overwrite_keeps_what_is_no_export(cache, tmp_path, hashes, there):
    (tmp_path / "out" / there).parent.mkdir(parents=True)
    (tmp_path / "out" / there).write_text('{"classes": []}')
    before = hashes(tmp_path)
    with pytest.raises(UsageError, match="holds no export, so it is kept; choose another --out"):
        run(cache, tmp_path / "out", overwrite=True)
    assert hashes(tmp_path) == before


def test_overwrite_keeps_what_somebody_put_beside(cache, tmp_path, hashes):
    run(cache, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = hashes(tmp_path)
    with pytest.raises(UsageError, match=r"'notes\.txt', which no export writes"):
        run(cache, tmp_path / "out", overwrite=True)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("out", ["own_cache", "own_cache/plain", "."])
def test_cache_and_export_never_lie_in_one_another(own_cache, tmp_path, hashes, out):
    before = hashes(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="choose another --out"):
            run(own_cache, tmp_path / out, overwrite=overwrite)
    assert hashes(tmp_path) == before


def test_a_failed_overwrite_keeps_the_old_export(own_cache, tmp_path, hashes):
    run(own_cache, tmp_path / "plain")
    before = hashes(tmp_path / "plain")
    damage_image(own_cache, "train", 3)
    with pytest.raises(CorruptSampleError):
        run(own_cache, tmp_path / "plain", overwrite=True)
    assert hashes(tmp_path / "plain") == before


# --- threads


@given(count=st.integers(0, 60), threads=st.integers(1, 4), part=st.integers(1, 9))
def test_in_order_is_map(count, threads, part):
    with worker_threads(threads) as pool:
        assert list(in_order(pool, threads, lambda n: n * n, range(count), part)) == [n * n for n in range(count)]


def test_in_order_does_not_run_ahead():
    done = []
    with worker_threads(2) as pool:
        for taken, _ in enumerate(in_order(pool, 2, done.append, range(2000), 3), start=1):
            assert len(done) <= taken + 3 * (2 * 2 + 2)


def test_the_first_bad_row_in_order_is_the_one_named(own_cache, tmp_path):
    where = damage_image(own_cache, "train", 5)
    damage_image(own_cache, "train", 60)
    for _ in range(3):
        with pytest.raises(CorruptSampleError) as error:
            run(own_cache, tmp_path / "plain", threads=4)
        assert where in str(error.value)


def test_rows_agree_with_the_source(folder):
    manifest = read_manifest(folder)
    for copies in (None, 0, 1):
        source = CacheSource(folder, "train", copies=copies)
        rows = CheckedRows(folder, manifest, "train", copies)
        assert len(rows) == len(source.labels)
        for position in range(len(rows)):
            item = rows.read(position)
            assert item.record == source.record(position)
            assert np.array_equal(item.image, source.fetch(np.array([position]))[0])
