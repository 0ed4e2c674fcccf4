"""A damaged cache is refused with the name of what is damaged, before a model learns from it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from augment_cache.format.source import CacheSource
from augment_cache.preview import PreviewConfig, preview
from pipelines.errors import CorruptSampleError, UsageError


def one_line(text):
    return text.count("\n") == 1 and "Traceback" not in text


def edit(folder, change, *, signed=True):
    """Change the manifest; `signed` as somebody would who knows how its checksum is made."""
    value = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(value)
    if signed:
        del value["checksum"]
        value["checksum"] = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(value), encoding="utf-8")


def test_a_path_that_is_no_cache(command, tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UsageError, match=r"is no cache: it has no manifest\.json"):
            CacheSource(path, "train")
        status, _, err = command("preview", "--cache", path, "--out", tmp_path / "sheet.png")
        assert status == 2
        assert "is no cache" in err
        assert one_line(err)
    assert not (tmp_path / "sheet.png").exists()


def test_an_unknown_split(own_cache, tmp_path):
    with pytest.raises(UsageError, match="no split 'dev'; it has train, val, test"):
        CacheSource(own_cache, "dev")
    with pytest.raises(UsageError, match="no split 'dev'"):
        preview(PreviewConfig(cache=own_cache, split="dev", out=tmp_path / "sheet.png"))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"tacopress-cache"', b'{"format": "tacopress-cache"}'], ids=repr
)
def test_a_manifest_that_is_none(own_cache, data):
    (own_cache / "manifest.json").write_bytes(data)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        CacheSource(own_cache, "train")


MANIFEST_CHANGES = {
    "no classes": (lambda m: m.pop("classes"), "damaged"),
    "no recipe": (lambda m: m.update(recipe=None), "damaged"),
    "empty recipe": (lambda m: m.update(recipe={}), "damaged"),
    "size as a word": (lambda m: m["recipe"].update(size="big"), "damaged"),
    "no such encoding": (lambda m: m["recipe"].update(encoding="png"), "damaged"),
    "splits as a list": (lambda m: m.update(splits=["train"]), "damaged"),
    "no shards": (lambda m: m["splits"]["train"].update(shards=[]), "damaged"),
    "shard without rows": (lambda m: m["splits"]["train"]["shards"][0].pop("rows"), "damaged"),
    "shard with more": (lambda m: m["splits"]["train"]["shards"][0].update(url="http://x"), "damaged"),
    "another version": (lambda m: m.update(version=99), "format version 99, this Tacopress reads 2"),
    "no version": (lambda m: m.pop("version"), "format version None"),
    "another format": (lambda m: m.update(format="zip"), "not the manifest of a Tacopress cache"),
    "shard above": (lambda m: m["splits"]["train"]["shards"][0].update(file="../x.arrow"), "outside of its folder"),
    "shard elsewhere": (lambda m: m["splits"]["val"]["shards"][0].update(file="/etc/passwd"), "outside of its folder"),
    "shard with no name": (lambda m: m["splits"]["val"]["shards"][0].update(file=""), "outside of its folder"),
    "shard with a number": (lambda m: m["splits"]["val"]["shards"][0].update(file=5), "damaged"),
    "shard that is gone": (lambda m: m["splits"]["train"]["shards"][0].update(file="train/x.arrow"), "missing"),
}


@pytest.mark.parametrize("kind", MANIFEST_CHANGES)
def test_a_damaged_manifest(own_cache, kind):
    change, words = MANIFEST_CHANGES[kind]
    edit(own_cache, change)
    with pytest.raises(UsageError, match=words):
        CacheSource(own_cache, "train")


@pytest.mark.parametrize("kind", MANIFEST_CHANGES)
def test_a_changed_manifest_does_not_match_its_checksum(own_cache, kind):
    edit(own_cache, MANIFEST_CHANGES[kind][0], signed=False)
    by_name = {"another version", "no version", "another format"}
    words = MANIFEST_CHANGES[kind][1] if kind in by_name else "does not match its checksum.*--repair"
    with pytest.raises(UsageError, match=words):
        CacheSource(own_cache, "train")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", ["no recipe", "empty recipe", "another version", "no classes"])
def test_building_over_a_damaged_manifest(photos, cache, own_cache, build_cache, hashes, kind, signed):
    """build.json still says which cache this is: building mends it, and does nothing over."""
    edit(own_cache, MANIFEST_CHANGES[kind][0], signed=signed)
    with pytest.raises(UsageError, match="another cache"):
        build_cache(photos, own_cache, seed=1)
    assert build_cache(photos, own_cache)["built_shards"] == 0
    assert hashes(own_cache) == hashes(cache)


@pytest.mark.parametrize("change", [{"size": 64}, {"size": 16}, {"encoding": "jpeg"}], ids=str)
def test_a_manifest_that_belongs_to_other_shards(own_raw_cache, change):
    edit(own_raw_cache, lambda m: m["recipe"].update(change))
    with pytest.raises(UsageError, match="no shard of a cache"):
        CacheSource(own_raw_cache, "train")


def test_a_link_out_of_the_cache(own_cache, tmp_path):
    shard = sorted(own_cache.glob("train/*.arrow"))[0]
    shard.rename(tmp_path / "elsewhere.arrow")
    shard.symlink_to(tmp_path / "elsewhere.arrow")
    with pytest.raises(UsageError, match="outside of its folder"):
        CacheSource(own_cache, "train")


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text", "another table"])
def test_a_shard_that_is_none(own_cache, command, tmp_path, damage):
    path = sorted(own_cache.glob("train/*.arrow"))[1]
    if damage == "missing":
        path.unlink()
    elif damage == "another table":
        table = pa.table({"x": [1, 2]})
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_bytes({"empty": b"", "truncated": path.read_bytes()[:-40], "text": b"text " * 300}[damage])
    with pytest.raises(UsageError, match=path.name):
        CacheSource(own_cache, "train")
    status, _, err = command("preview", "--cache", own_cache, "--out", tmp_path / "sheet.png")
    assert status == 2
    assert path.name in err
    assert one_line(err)


def place(path, column, row, buffer=1):
    """Where in a shard a value lies: (position in bytes, width in bytes)."""
    whole = pa.memory_map(str(path)).read_buffer()
    values = pa.ipc.open_file(whole).get_batch(0).column(column)
    values = values.field("bytes") if pa.types.is_struct(values.type) else values
    width = 4 if pa.types.is_binary(values.type) else values.type.bit_width // 8
    return values.buffers()[buffer].address - whole.address + row * width, width


def flip(path, position, bits=1):
    data = bytearray(path.read_bytes())
    data[position] ^= bits
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_a_flipped_bit_in_an_image(request, encoding, part):
    folder = request.getfixturevalue("own_cache" if encoding == "jpeg" else "own_raw_cache")
    source = CacheSource(folder, "train")
    image = source.fetch(np.array([4]))[0].tobytes()
    path, row = source.describe(4).split(", row ")
    data = Path(path).read_bytes()
    assert data.count(image) == 1
    flip(Path(path), data.index(image) + int(part * len(image)))
    source = CacheSource(folder, "train")
    with pytest.raises(CorruptSampleError) as error:
        list(source.fetch(np.array([3, 4])))
    assert f"{path}, row {row.split()[0]}:" in str(error.value)
    others = np.delete(np.arange(len(source.labels)), 4)
    assert len(list(source.fetch(others))) == len(others)
    assert len(list(CacheSource(folder, "train", check=False).fetch(np.array([4])))) == 1


@pytest.mark.parametrize("column", ["label", "sample_id", "copy", "checksum", "image"])
def test_a_flipped_bit_in_a_number(own_cache, column):
    """In a column that training uses; for images that is where one ends and the next begins."""
    path = sorted(own_cache.glob("train/*.arrow"))[0]
    flip(path, place(path, column, 2)[0])
    source = CacheSource(own_cache, "train")
    with pytest.raises(CorruptSampleError) as error:
        list(source.fetch(np.array([2])))
    assert f"{path}, row 2:" in str(error.value)
    list(source.fetch(np.arange(4, len(source.labels))))


def test_preview_names_the_damaged_row(own_cache, command, tmp_path):
    for path in own_cache.glob("train/*.arrow"):
        flip(path, place(path, "label", 0)[0])
    status, out, err = command("preview", "--cache", own_cache, "--rows", 40, "--out", tmp_path / "sheet.png")
    assert (status, out) == (1, "")
    assert ".arrow, row 0: damaged" in err
    assert one_line(err)
    assert not (tmp_path / "sheet.png").exists()
