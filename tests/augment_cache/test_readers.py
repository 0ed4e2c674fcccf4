"""A shard is an Arrow file: pyarrow, pandas and Hugging Face `datasets` read it as it stands."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest
from PIL import Image

from augment_cache.format.source import CacheSource

SIDE = 32
COLUMNS = {
    "sample_id": "uint64",
    "copy": "int16",
    "height": "int32",
    "width": "int32",
    "label": "int64",
    "source": "string",
    "op": "list<item: string>",
    "magnitude": "list<item: float>",
    "centre": "list<item: float>",
    "checksum": "uint32",
    "provenance_checksum": "uint32",
}


@pytest.fixture(params=["jpeg", "raw"])
def folder(request):
    """A cache of each encoding."""
    return request.getfixturevalue("cache" if request.param == "jpeg" else "raw_cache")


def shards(folder, split="train"):
    return sorted(folder.glob(f"{split}/*.arrow"))


def file_of(image: bytes | dict) -> bytes:
    """A reader that knows no images gives bytes, or the struct that `datasets` keeps images in."""
    return image["bytes"] if isinstance(image, dict) else image


def pixels_of(image: bytes | dict) -> np.ndarray:
    image = file_of(image)
    if len(image) == SIDE * SIDE * 3:
        return np.frombuffer(image, np.uint8).reshape(SIDE, SIDE, 3)
    return np.asarray(Image.open(io.BytesIO(image)))


def test_pyarrow_maps_a_shard(folder):
    for path in shards(folder):
        before = pa.total_allocated_bytes()
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        assert pa.total_allocated_bytes() == before, "a mapped shard must not be copied"
        table.validate(full=True)
        types = {field.name: str(field.type) for field in table.schema}
        assert "binary" in types.pop("image")
        assert types == COLUMNS
        assert json.loads(table.schema.metadata[b"tacopress"])["classes"] == ["Glass bottle", "Métal", "Paper"]
        assert set(table["height"].to_pylist() + table["width"].to_pylist()) == {SIDE}


def test_pyarrow_sees_what_the_source_sees(folder):
    source = CacheSource(folder, "train")
    rows = [row for path in shards(folder) for row in pa.ipc.open_file(path).read_all().to_pylist()]
    assert [row["label"] for row in rows] == source.labels.tolist()
    assert [row["copy"] for row in rows] == source.copies.tolist()
    images = source.fetch(np.arange(len(rows)))
    assert [file_of(row["image"]) for row in rows] == [image.tobytes() for image in images]


def test_rows_are_sorted_by_id_and_copy(folder):
    for split in ("train", "val", "test"):
        source = CacheSource(folder, split)
        keys = list(zip(source.sample_ids.tolist(), source.copies.tolist(), strict=True))
        assert keys == sorted(set(keys))


def check_frame(frame):
    assert list(frame.columns)[2] == "image"
    assert set(COLUMNS) < set(frame.columns)
    for row in frame.itertuples():
        assert pixels_of(row.image).shape == (SIDE, SIDE, 3)
        assert len(row.op) == len(row.magnitude) == (row.copy > 0)
        assert len(row.centre) == 2 * len(row.op)
    assert (frame.groupby("sample_id").copy.count() == 3).all()


def test_pandas(folder):
    for path in shards(folder):
        frame = pa.ipc.open_file(pa.memory_map(str(path))).read_all().to_pandas()
        check_frame(frame)
        check_frame(pa.ipc.open_file(path).read_pandas())


def test_pandas_read_feather(folder):
    """Feather version 2 is the Arrow file format."""
    for path in shards(folder):
        frame = pd.read_feather(path)
        check_frame(frame)
        names = ["sample_id", "copy", "label", "source"]
        assert frame[names].equals(pyarrow.feather.read_table(path, columns=names).to_pandas())


def test_hugging_face_datasets(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = {split: [str(path) for path in shards(folder, split)] for split in ("train", "val", "test")}
    loaded = datasets.load_dataset("arrow", data_files=files, cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "val", "test"}
    for split, rows in loaded.items():
        source = CacheSource(folder, split)
        assert isinstance(rows.features["label"], datasets.ClassLabel)
        assert rows.features["label"].names == list(source.classes)
        assert len(rows) == len(source.labels)
        assert list(rows["label"]) == source.labels.tolist()
        images = source.fetch(np.arange(len(rows)))
        for number, row in enumerate(rows):
            shown = np.asarray(row["image"]) if isinstance(row["image"], Image.Image) else pixels_of(row["image"])
            assert np.array_equal(shown, pixels_of(images[number].tobytes()))
            record = source.record(number)
            assert (tuple(row["op"]), tuple(row["magnitude"])) == (record.op, record.magnitude)
            assert row["source"] == record.source


def test_hugging_face_shows_raw_as_bytes(raw_cache, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(
        "arrow", data_files=[str(shards(raw_cache)[0])], cache_dir=str(tmp_path), split="train"
    )
    arrays = rows.with_format("numpy", columns=["label"], output_all_columns=True)
    assert np.frombuffer(arrays[0]["image"], np.uint8).size == SIDE * SIDE * 3
    assert arrays[0]["label"].dtype == np.int64


def test_hugging_face_decodes_jpeg_when_told_to(cache, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("arrow", data_files=[str(shards(cache)[0])], cache_dir=str(tmp_path), split="train")
    assert rows.cast_column("image", datasets.Image())[0]["image"].size == (SIDE, SIDE)
    augmented = rows.filter(lambda copy: copy > 0, input_columns="copy")
    assert len(augmented) == len(rows) * 2 // 3
