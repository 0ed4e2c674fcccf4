"""CRC-32 over an image and the numbers that belong to it.

The numbers come first, so that those of a whole shard can be added up at once; what is left for each row is its image.
"""

import struct
from functools import cache

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray
from typing_extensions import Buffer

_NUMBERS = struct.Struct("<Qhq")
_PACKED = np.dtype([("sample_id", "<u8"), ("copy", "<i2"), ("label", "<i8")])
_POLYNOMIAL = np.uint32(0xEDB88320)


def pixel_checksum(image: Buffer, sample_id: int, copy: int, label: int) -> int:
    """CRC-32 over sample id, copy and label, then the image."""
    return crc32(image, crc32(_NUMBERS.pack(sample_id, copy, label)))


def number_checksums(
    sample_ids: NDArray[np.uint64], copies: NDArray[np.int16], labels: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """CRC-32 over the numbers of many rows: where the checksum of each row's image goes on.

    Args:
        sample_ids: uint64 [n].
        copies: int16 [n].
        labels: int64 [n].

    Returns:
        uint32 [n]; `crc32(image, found[row])` is the `pixel_checksum` of a row.
    """
    rows = np.empty(len(sample_ids), _PACKED)
    rows["sample_id"], rows["copy"], rows["label"] = sample_ids, copies, labels
    found = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in rows.view(np.uint8).reshape(len(rows), _PACKED.itemsize).T:
        found = _table()[(found ^ column) & np.uint32(0xFF)] ^ (found >> np.uint32(8))
    return ~found


@cache
def _table() -> NDArray[np.uint32]:
    """What each byte does to a CRC-32: uint32 [256]."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & np.uint32(1), (table >> np.uint32(1)) ^ _POLYNOMIAL, table >> np.uint32(1))
    return table
