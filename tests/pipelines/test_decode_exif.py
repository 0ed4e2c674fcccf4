"""The EXIF parser finds the orientation of the image, not of its thumbnail, and survives any bytes."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.decode import exif_orientation

ORIENTATION = 0x0112
quick = settings(deadline=None, max_examples=150)


def tiff(entries, order="<", offset=8):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(order + "HHIHH", tag, kind, 1, value, 0) for tag, kind, value in entries)
    padding = b"\0" * (offset - 8)
    return mark + struct.pack(order + "I", offset) + padding + struct.pack(order + "H", len(entries)) + body


def segment(marker, body):
    return b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2, "big") + body


def app1(tiff_bytes):
    return segment(0xE1, b"Exif\0\0" + tiff_bytes)


def parsed(*segments):
    return exif_orientation(memoryview(b"\xff\xd8" + b"".join(segments)))


SIX = tiff([(0x010F, 2, 0), (ORIENTATION, 3, 6)])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
def test_parser_reads_both_byte_orders(order, value):
    assert parsed(app1(tiff([(ORIENTATION, 3, value)], order))) == value
    assert parsed(app1(tiff([(0x0100, 3, 7), (ORIENTATION, 3, value)], order, offset=26))) == value


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ((segment(0xE0, b"JFIF\0" * 3), app1(SIX)), 6),
        ((segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), app1(SIX)), 6),
        ((b"\xff\xff", app1(SIX)), 6),  # fill bytes may stand before a marker
        ((segment(0xDA, b"\0" * 6), app1(SIX)), 1),  # after the first scan: a thumbnail's, not the image's
        ((b"\xff\xd9\0\0", app1(SIX)), 1),
        ((app1(tiff([(ORIENTATION, 4, 6)])),), 1),  # LONG instead of SHORT
        ((app1(b"XX" + SIX[2:]),), 1),
        ((app1(SIX[:4] + b"\xff\xff\xff\xff" + SIX[8:]),), 1),  # directory outside of the segment
        ((app1(SIX[:-6]),), 1),
        ((b"\xff\xe1\0\0",), 1),  # a length that does not even count itself
        ((), 1),
    ],
)
def test_parser_walks_segments(segments, expected):
    assert parsed(*segments) == expected


@quick
@given(st.binary(max_size=300))
def test_parser_never_raises(noise):
    assert parsed(noise) in range(1, 9)
    assert exif_orientation(memoryview(noise)) in range(1, 9)


@quick
@given(st.sampled_from([b"II*\0", b"MM\0*", b""]), st.integers(0, 40), st.binary(max_size=120), st.integers(0, 65535))
def test_parser_never_raises_inside_an_exif_segment(mark, offset, noise, length):
    body = b"Exif\0\0" + mark + offset.to_bytes(4, "little" if mark[:1] == b"I" else "big") + noise
    assert parsed(segment(0xE1, body)) in range(1, 9)
    assert parsed(b"\xff\xe1" + length.to_bytes(2, "big") + body) in range(1, 9)
