"""Checksums of many rows at once are those of each row."""

import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from augment_cache.format.checksums import number_checksums, pixel_checksum

INT16, INT64 = ((int(np.iinfo(kind).min), int(np.iinfo(kind).max)) for kind in (np.int16, np.int64))
ROWS = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(*INT16), st.integers(*INT64)), min_size=0, max_size=20)


@given(rows=ROWS, image=arrays.arrays(np.uint8, st.integers(0, 50)))
def test_numbers_first_then_the_image(rows, image):
    ids, copies, labels = zip(*rows, strict=True) if rows else ((), (), ())
    begun = number_checksums(np.array(ids, np.uint64), np.array(copies, np.int16), np.array(labels, np.int64))
    assert begun.dtype == np.uint32
    expected = [pixel_checksum(image, *row) for row in rows]
    assert [zlib.crc32(image.tobytes(), int(number)) for number in begun] == expected


def test_a_known_value():
    """What shards of version 1 hold: 18 bytes of numbers, little-endian, then the image."""
    numbers = bytes.fromhex("efcdab896745230102000500000000000000")
    assert pixel_checksum(b"pixels", 0x0123456789ABCDEF, 2, 5) == zlib.crc32(numbers + b"pixels")
