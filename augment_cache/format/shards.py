"""One shard: an Arrow IPC file with one record batch, readable by anything that reads Arrow.

Columns: sample_id, copy, image, height, width, label, source, op, magnitude, centre, checksum, provenance_checksum.
Images are JPEG files or raw RGB rows; either way one contiguous buffer, so that a memory-mapped shard hands out views.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import Buffer

from pipelines.console.files import replacing
from pipelines.errors import CorruptSampleError, UsageError

Encoding = Literal["jpeg", "raw"]
METADATA_KEY = b"tacopress"
_NUMBERS = struct.Struct("<Qhq")


@dataclass(frozen=True)
class Row:
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

    def provenance_checksum(self) -> int:
        """CRC-32 of the rest of the row."""
        return zlib.crc32(repr((self.source, self.op, self.magnitude, self.centre)).encode("utf-8"))


def pixel_checksum(image: Buffer, sample_id: int, copy: int, label: int) -> int:
    """CRC-32 over an image and the numbers that belong to it."""
    return zlib.crc32(image, zlib.crc32(_NUMBERS.pack(sample_id, copy, label)))


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


def write_shard(path: Path, rows: Sequence[Row], table_schema: pa.Schema, size: int) -> None:
    """Write a shard; it exists whole or not at all."""
    columns = [
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
        [row.provenance_checksum() for row in rows],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, table_schema, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=table_schema)
    with replacing(path) as file, pa.ipc.new_file(file, table_schema) as writer:
        writer.write_batch(batch)


def read_metadata(path: Path) -> dict[str, Any] | None:
    """The Tacopress metadata of a shard; None if the file is no whole shard."""
    try:
        with pa.memory_map(str(path)) as file:
            found = pa.ipc.open_file(file).schema.metadata or {}
        value = json.loads(found[METADATA_KEY])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None
    return value if isinstance(value, dict) else None


class Shard:
    """A memory-mapped shard.

    Args:
        path: The file.
        encoding: What the image column holds.
        size: Side of the images in px.

    Raises:
        UsageError: The file is missing or no shard.
    """

    def __init__(self, path: Path, encoding: Encoding, size: int) -> None:
        self.path, self._encoding, self._size = path, encoding, size
        try:
            self._batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
            images = self._batch.column("image")
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise UsageError(f"{path} is missing or no shard of a cache ({error}); build the cache again") from error
        self.rows: int = self._batch.num_rows
        self._ids, self._copies = self.column("sample_id"), self.column("copy")
        self._labels, self._checksums = self.column("label"), self.column("checksum")
        self._provenance = self.column("provenance_checksum")
        if images.type != _image_type(encoding, size):
            raise UsageError(
                f"{path} holds no {encoding} images of {size} px as the manifest says; build the cache again"
            )
        if encoding == "jpeg":
            _, offsets, data = images.buffers()
            self._offsets = np.frombuffer(offsets, np.int32)[: self.rows + 1].astype(np.int64)
            self._pixels = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        else:
            self._pixels = np.frombuffer(images.buffers()[1], np.uint8)[: self.rows * size * size * 3]
            self._pixels = self._pixels.reshape(self.rows, size, size, 3)

    def column(self, name: str) -> NDArray[Any]:
        """A numeric column as a numpy array, without a copy."""
        result: NDArray[Any] = self._batch.column(name).to_numpy()
        return result

    def image(self, row: int) -> NDArray[np.uint8]:
        """The image of a row, a read-only view: uint8 [bytes] for JPEG, uint8 [size, size, 3] for raw."""
        if self._encoding == "jpeg":
            return self._pixels[self._offsets[row] : self._offsets[row + 1]]
        result: NDArray[np.uint8] = self._pixels[row]
        return result

    def row(self, row: int) -> Row:
        """A row as it was written."""
        values = self._batch.slice(row, 1).to_pylist()[0]
        return Row(
            sample_id=values["sample_id"],
            copy=values["copy"],
            image=values["image"],
            label=values["label"],
            source=values["source"],
            op=tuple(values["op"]),
            magnitude=tuple(values["magnitude"]),
            centre=tuple(values["centre"]),
        )

    def check(self, row: int) -> None:
        """Hold image, label and ids of a row against their checksum.

        Raises:
            CorruptSampleError: They differ; names shard and row.
        """
        numbers = (int(self._ids[row]), int(self._copies[row]), int(self._labels[row]))
        if pixel_checksum(self.image(row), *numbers) != int(self._checksums[row]):
            raise CorruptSampleError(f"{self.path}, row {row}: damaged since it was written; build the cache again")

    def check_provenance(self, row: int) -> None:
        """Hold source, ops, magnitudes and centres of a row against their checksum.

        Raises:
            CorruptSampleError: They differ; names shard and row.
        """
        try:
            whole = self.row(row).provenance_checksum() == int(self._provenance[row])
        except (UnicodeDecodeError, pa.ArrowInvalid):
            whole = False
        if not whole:
            raise CorruptSampleError(f"{self.path}, row {row}: damaged since it was written; build the cache again")
