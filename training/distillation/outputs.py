"""What a teacher said, on disk: Arrow files beside the data, each row of which says for which image it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.console.files import replacing
from pipelines.plan import Plan

FORMAT = "tacopress-teacher-outputs"
KEY, DIGEST = b"key", b"sha256"


@dataclass(frozen=True)
class Identity:
    """Which images an answer is about: row by row, whatever file it stands in.

    Attributes:
        ids: uint64 [n]; ids of the samples; each copy of a sample has its own.
        plans: uint64 [n]; digest of what was done to each image, see `plan_digests`.
    """

    ids: NDArray[np.uint64]
    plans: NDArray[np.uint64]


def plan_digests(plan: Plan) -> NDArray[np.uint64]:
    """A number for what a plan of one round does to each sample: uint64 [n]."""
    parts = (plan.op, plan.value, plan.centre, plan.flip, plan.box)
    flat = [
        np.frombuffer(part[0].tobytes(), np.uint8).reshape(plan.samples, part[0].nbytes // max(plan.samples, 1))
        for part in parts
    ]
    rows = np.ascontiguousarray(np.concatenate(flat, axis=1))
    digests = [blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def write_outputs(path: Path, key: str, identity: Identity, columns: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a file, atomically.

    Logits and embeddings are stored as float32, maps as float16.

    Args:
        path: The file.
        key: What all of it depends on.
        identity: Of the rows.
        columns: Name → float32 [n, …]. Rows of images that cannot be decoded hold NaN.

    Raises:
        OSError: There is no room.
    """
    arrays = {"sample_id": pa.array(identity.ids), "plan": pa.array(identity.plans)}
    arrays |= {name: _packed(values) for name, values in columns.items()}
    fields = [
        pa.field(
            name, array.type, metadata={b"shape": repr(columns[name].shape[1:]).encode()} if name in columns else None
        )
        for name, array in arrays.items()
    ]
    batch = pa.record_batch(list(arrays.values()), schema=pa.schema(fields))
    about = {b"format": FORMAT.encode(), KEY: key.encode(), DIGEST: _digest(batch).encode()}
    batch = batch.replace_schema_metadata(about)
    with replacing(path) as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _packed(values: NDArray[np.float32]) -> pa.FixedSizeListArray:
    kind = np.float16 if values.ndim > 2 else np.float32
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values, kind).reshape(-1)), values[0].size if len(values) else 1
    )


def _digest(batch: pa.RecordBatch) -> str:
    described = batch.schema.remove_metadata().to_string(show_field_metadata=True)
    digest = sha256(repr((batch.num_rows, described, [field.metadata for field in batch.schema])).encode())
    for name in batch.schema.names:
        for buffer in batch.column(name).buffers():
            if buffer is not None:
                digest.update(buffer)
    return digest.hexdigest()


def read_outputs(path: Path, key: str, identity: Identity) -> dict[str, NDArray[np.float32]] | str:
    """Read a file, and hold it against what it should be.

    Args:
        path: The file.
        key: See `write_outputs`.
        identity: Of the rows that are wanted, in their order.

    Returns:
        Name → float32 [n, …]; or why it cannot be used, "" if there is none.
    """
    if not path.is_file():
        return ""
    try:
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
            batch.validate()  # or a damaged length would have it read what is not there
            about = batch.schema.metadata or {}
            if about.get(b"format") != FORMAT.encode() or about.get(KEY) != key.encode():
                return "it is of something else"
            if about.get(DIGEST) != _digest(batch).encode():
                return "its checksum is wrong"
            found = {name: batch.column(name).to_numpy() for name in ("sample_id", "plan")}
            same = np.array_equal(found["sample_id"], identity.ids) and np.array_equal(found["plan"], identity.plans)
            if not same:
                return "its rows are not those of this data"
            return {
                field.name: _unpacked(batch.column(field.name), field)
                for field in batch.schema
                if field.name not in found
            }
    except (pa.ArrowException, OSError, ValueError, KeyError, SyntaxError) as error:
        return f"it cannot be read ({error})"


def _unpacked(column: pa.FixedSizeListArray, field: pa.Field) -> NDArray[np.float32]:
    shape = [int(word) for word in field.metadata[b"shape"].decode().strip("()").split(",") if word.strip()]
    values = column.values.to_numpy().astype(np.float32)
    return values.reshape(len(column), *shape)
