"""One shard: an Arrow IPC file with one record batch, readable by anything that reads Arrow.

Columns: sample_id, copy, image, height, width, label, source, op, magnitude, centre, checksum, provenance_checksum.
Images are JPEG files or raw RGB rows; either way one contiguous buffer, so that a memory-mapped shard hands out views.
"""

import json
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from isal.isal_zlib import crc32
from numpy.typing import NDArray
from typing_extensions import Buffer

from augment_cache.format.buffers import range_of, slices
from augment_cache.format.checksums import number_checksums, pixel_checksum
from pipelines.console.files import Moving, replacing
from pipelines.errors import CorruptSampleError, UsageError

Encoding = Literal["jpeg", "raw"]
METADATA_KEY = b"tacopress"
CURE = "mend it with python -m augment_cache.verify --repair"
DTYPES: dict[str, type] = {
    "sample_id": np.uint64,
    "copy": np.int16,
    "height": np.int32,
    "width": np.int32,
    "label": np.int64,
    "checksum": np.uint32,
    "provenance_checksum": np.uint32,
}
"""The numeric columns."""
UNREADABLE = (OSError, pa.ArrowException, KeyError, ValueError, IndexError, TypeError, SystemError)
"""What pyarrow and numpy raise for a damaged file."""


class Row(NamedTuple):
    """One image of a shard.

    Attributes:
        sample_id: Id of the sample, the same for all of its copies.
        copy: 0 for the original.
        image: JPEG file, or height * width * 3 bytes of RGB.
        label: Class index.
        source: Path of the source file, relative to the source's root.
        op: Names of the ops, in the order in which they were applied; empty for an original.
        magnitude: Signed value of each op in its unit.
        centre: (x, y) of each op that is a Cutout, (0, 0) for others; two numbers per op.
    """

    sample_id: int
    copy: int
    image: bytes
    label: int
    source: str
    op: tuple[str, ...]
    magnitude: tuple[float, ...]
    centre: tuple[float, ...]

    def checksum(self) -> int:
        """CRC-32 of what training uses: image, label, sample id and copy. Checked at each fetch."""
        return pixel_checksum(self.image, self.sample_id, self.copy, self.label)

    def provenance_checksum(self, size: int) -> int:
        """CRC-32 of the rest of the row: height and width (both `size`), source, ops, magnitudes, centres."""
        words = "\0".join((self.source, *self.op)).encode("utf-8", "surrogatepass")
        count = len(self.magnitude) + len(self.centre)
        return crc32(words + struct.pack(f"<ii{count}f", size, size, *self.magnitude, *self.centre))


def _image_type(encoding: Encoding, size: int) -> pa.DataType:
    return pa.binary(size * size * 3) if encoding == "raw" else pa.binary()


def schema(classes: Sequence[str], encoding: Encoding, size: int, metadata: dict[str, Any]) -> pa.Schema:
    """The columns; the metadata holds class names and features, so that Hugging Face `datasets` sees named labels.

    It sees a JPEG column as bytes (its own image type would need a struct, which every other reader would have to take
    apart): `.cast_column("image", datasets.Image())` shows pictures.
    """
    fields = [
        pa.field("sample_id", pa.uint64()),
        pa.field("copy", pa.int16()),
        pa.field("image", _image_type(encoding, size)),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("label", pa.int64()),
        pa.field("source", pa.string()),
        pa.field("op", pa.list_(pa.string())),
        pa.field("magnitude", pa.list_(pa.float32())),
        pa.field("centre", pa.list_(pa.float32())),
        pa.field("checksum", pa.uint32()),
        pa.field("provenance_checksum", pa.uint32()),
    ]
    return pa.schema(
        fields,
        metadata={
            METADATA_KEY: json.dumps({**metadata, "classes": list(classes)}, sort_keys=True).encode(),
            b"huggingface": json.dumps({"info": {"features": _features(classes)}}).encode(),
        },
    )


def _features(classes: Sequence[str]) -> dict[str, Any]:
    def value(dtype: str) -> dict[str, str]:
        return {"dtype": dtype, "_type": "Value"}

    return {
        "sample_id": value("uint64"),
        "copy": value("int16"),
        "image": value("binary"),
        "height": value("int32"),
        "width": value("int32"),
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "source": value("string"),
        "op": {"feature": value("string"), "_type": "Sequence"},
        "magnitude": {"feature": value("float32"), "_type": "Sequence"},
        "centre": {"feature": value("float32"), "_type": "Sequence"},
        "checksum": value("uint32"),
        "provenance_checksum": value("uint32"),
    }


def write_shard(
    path: Path, rows: Sequence[Row], table_schema: pa.Schema, size: int, moving: Moving = nullcontext
) -> tuple[str, int]:
    """Write a shard; it exists whole or not at all.

    Args:
        path: The file.
        rows: What it holds.
        table_schema: From `schema`.
        size: Side of the images in px.
        moving: Around the moment in which it appears.

    Returns:
        SHA-256 of the file, hexadecimal, and its size in bytes.
    """
    columns: list[Sequence[Any]] = [
        [row.sample_id for row in rows],
        [row.copy for row in rows],
        [row.image for row in rows],
        [size] * len(rows),
        [size] * len(rows),
        [row.label for row in rows],
        [row.source for row in rows],
        [row.op for row in rows],
        [row.magnitude for row in rows],
        [row.centre for row in rows],
        [row.checksum() for row in rows],
        [row.provenance_checksum(size) for row in rows],
    ]
    arrays = [_array(values, field.type) for values, field in zip(columns, table_schema, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=table_schema)
    with replacing(path, moving) as file:
        hashing = _Hashing(file)
        with pa.ipc.new_file(pa.PythonFile(hashing, "w"), table_schema) as writer:
            writer.write_batch(batch)
        size_of_file = file.tell()
    return hashing.digest.hexdigest(), size_of_file


class _Hashing:
    """A file to write to, one byte after the other, that knows the checksum of what was written."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, sha256()

    def write(self, data: Buffer) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        """The file is closed by whoever opened it."""


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A column from its values. Not through pyarrow's own conversion, which imports pandas where it is installed."""
    if pa.types.is_list(kind):
        child = _array([item for value in values for item in value], kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [None, _offsets(values)], children=[child])
    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(b"".join(values))])
    if pa.types.is_binary(kind) or pa.types.is_string(kind):
        parts = [value.encode("utf-8") if isinstance(value, str) else value for value in values]
        return pa.Array.from_buffers(kind, len(values), [None, _offsets(parts), pa.py_buffer(b"".join(parts))])
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.array(values, kind.to_pandas_dtype()))])


def _offsets(values: Sequence[Any]) -> pa.Buffer:
    """Where each value starts among the values laid end to end, and where the last one ends."""
    ends = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=ends[1:])
    return pa.py_buffer(ends)


def read_metadata(path: Path) -> dict[str, Any] | None:
    """The Tacopress metadata of a shard; None if the file is no whole shard."""
    try:
        with pa.memory_map(str(path)) as file:
            return _metadata(pa.ipc.open_file(file).schema)
    except UNREADABLE:
        return None


def _metadata(table_schema: pa.Schema) -> dict[str, Any]:
    value = json.loads((table_schema.metadata or {})[METADATA_KEY])
    if not isinstance(value, dict):
        raise TypeError("metadata that is no mapping")
    return value


class Shard:
    """A memory-mapped shard.

    Args:
        path: The file.
        encoding: What the image column holds.
        size: Side of the images in px.

    Attributes:
        rows: How many.
        pixels: The image column as it lies in the file: uint8 [bytes] for JPEG, uint8 [rows, size, size, 3] for raw.
        checksums: uint32 [rows].

    Raises:
        UsageError: The file is missing or no shard, or too damaged to say what its rows are.
    """

    def __init__(self, path: Path, encoding: Encoding, size: int) -> None:
        self.path, self._encoding, self._size = path, encoding, size
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._schema, self._batch = reader.schema, reader.get_batch(0)
            images = self._batch.column("image")
            if images.type != _image_type(encoding, size):
                raise ValueError(f"it holds no {encoding} images of {size} px as the manifest says")
            self.rows: int = self._batch.num_rows
            self._ids, self._copies = self.column("sample_id"), self.column("copy")
            self._labels, self.checksums = self.column("label"), self.column("checksum")
            self._provenance = self.column("provenance_checksum")
            self._sides = np.stack((self.column("height"), self.column("width")), axis=1)
            self._place_images(images)
        except UNREADABLE as error:
            raise UsageError(f"{path} is missing or no shard of a cache ({error}); {CURE}") from error

    @property
    def metadata(self) -> dict[str, Any]:
        """The Tacopress metadata.

        Raises:
            UsageError: There is none.
        """
        try:
            return _metadata(self._schema)
        except UNREADABLE as error:
            raise UsageError(f"{self.path} does not say what it holds ({error}); {CURE}") from error

    def _place_images(self, images: pa.Array) -> None:
        size = self._size
        if self._encoding == "jpeg":
            _, offsets, data = images.buffers()
            self._offsets = np.frombuffer(offsets, np.int32, self.rows + 1).astype(np.int64)
            self.pixels = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
            starts, stops = self._offsets[:-1], self._offsets[1:]
            self._placed = (starts >= 0) & (starts <= stops) & (stops <= len(self.pixels))
        else:
            self._placed = np.ones(self.rows, np.bool_)
            self.pixels = np.frombuffer(images.buffers()[1], np.uint8)[: self.rows * size * size * 3]
            self.pixels = self.pixels.reshape(self.rows, size, size, 3)

    def column(self, name: str) -> NDArray[Any]:
        """A numeric column as a numpy array, without a copy."""
        # Not pyarrow's own to_numpy: it imports pandas, which takes longer than to open a cache.
        return np.frombuffer(self._batch.column(name).buffers()[1], DTYPES[name], self.rows)

    @cached_property
    def begun(self) -> NDArray[np.uint32]:
        """uint32 [rows]: the checksum of each row without its image."""
        return number_checksums(self._ids, self._copies, self._labels)

    def image(self, row: int) -> NDArray[np.uint8]:
        """The image of a row, a read-only view: uint8 [bytes] for JPEG, uint8 [size, size, 3] for raw."""
        if self._encoding == "jpeg":
            return self.pixels[self._offsets[row] : self._offsets[row + 1]]
        result: NDArray[np.uint8] = self.pixels[row]
        return result

    def row(self, row: int) -> Row:
        """A row as it was written.

        Raises:
            CorruptSampleError: It is too damaged to be read; names shard and row.
        """
        try:
            (source,) = self._texts("source", [row])
            ops = self._texts_of_list("op", row)
            magnitude, centre = self._floats("magnitude", row), self._floats("centre", row)
        except UNREADABLE as error:
            raise self.damaged(row) from error
        numbers = (int(self._ids[row]), int(self._copies[row]))
        return Row(*numbers, self.image(row).tobytes(), int(self._labels[row]), source, ops, magnitude, centre)

    def sources(self) -> list[str]:
        """Where each row came from; CorruptSampleError where that cannot be read."""
        try:
            return self._texts("source", range(self.rows))
        except UNREADABLE as error:
            raise CorruptSampleError(f"{self.path}: damaged since it was written; {CURE}") from error

    def _texts(self, name: str, rows: Sequence[int]) -> list[str]:
        return slices(self._batch.column(name), rows)

    def _texts_of_list(self, name: str, row: int) -> tuple[str, ...]:
        column = self._batch.column(name)
        start, stop = range_of(column, row)
        return tuple(slices(column.values, range(start, stop)))

    def _floats(self, name: str, row: int) -> tuple[float, ...]:
        column = self._batch.column(name)
        start, stop = range_of(column, row)
        values = column.values
        if stop > len(values):
            raise IndexError
        found = np.frombuffer(values.buffers()[1], np.float32)[start:stop] if stop > start else np.empty(0)
        return tuple(found.tolist())

    def check(self, row: int) -> None:
        """Hold image, label and ids of a row against their checksum.

        Raises:
            CorruptSampleError: They differ; names shard and row.
        """
        if not self._placed[row] or crc32(self.image(row), int(self.begun[row])) != int(self.checksums[row]):
            raise self.damaged(row)

    def check_provenance(self, row: int) -> None:
        """Hold source, ops, magnitudes, centres and size of a row against their checksum.

        Raises:
            CorruptSampleError: They differ; names shard and row.
        """
        right_size = self._sides[row].tolist() == [self._size, self._size]
        if not right_size or self.row(row).provenance_checksum(self._size) != int(self._provenance[row]):
            raise self.damaged(row)

    def damage(self) -> list[int]:
        """Rows that are not as they were written."""
        return [row for row in range(self.rows) if not self._is_whole(row)]

    def _is_whole(self, row: int) -> bool:
        try:
            self.check(row)
            self.check_provenance(row)
        except CorruptSampleError:
            return False
        return True

    def has_schema(self, wanted: pa.Schema) -> bool:
        """Whether columns and metadata are these."""
        return bool(self._schema.equals(wanted, check_metadata=True))

    def damaged(self, row: int) -> CorruptSampleError:
        """The error of a row that is not as it was written."""
        return CorruptSampleError(f"{self.path}, row {row}: damaged since it was written; {CURE}")
