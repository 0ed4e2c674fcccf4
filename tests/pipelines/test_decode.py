"""Decoding: upright RGB whatever the format, an error for anything damaged, never smaller than asked."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipelines import decode as decoding
from pipelines.decode import decode, read_header, turn_upright
from pipelines.errors import CorruptSampleError

ORIENTATION = 0x0112
HEIGHT, WIDTH = 40, 56

quick = settings(deadline=None, max_examples=100)  # no deadline: the machine may be busy with something else


def blocks(height=HEIGHT, width=WIDTH, seed=0):
    """uint8 [height, width, 3]: 8 px blocks of random colours, without any symmetry; survives JPEG well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def encoded(image, kind, **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def jpeg(pixels=None, **options):
    return encoded(blocks() if pixels is None else pixels, "JPEG", **{"quality": 95, "subsampling": 0, **options})


def exif(orientation):
    result = Image.Exif()
    result[ORIENTATION] = orientation
    return result


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def difference(a, b):
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# --- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 9), (9, 1), (1, 1)])
def test_turn_upright_is_what_pillow_does(orientation, size):
    stored = blocks()[: size[0], : size[1]]
    image = Image.fromarray(stored)
    image.getexif()[ORIENTATION] = orientation
    assert np.array_equal(turn_upright(stored, orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_comes_upright(orientation, progressive):
    data = jpeg(exif=exif(orientation), progressive=progressive)
    header = read_header(data)
    assert header == (HEIGHT, WIDTH, orientation, True)
    pixels = decode(data, header=header)
    assert pixels.shape[:2] == header.upright
    assert difference(pixels, by_pillow(data)) <= 2  # the two may be built with different versions of libjpeg-turbo


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_come_upright_too(orientation, kind):
    data = encoded(blocks(), kind, exif=exif(orientation), **({"lossless": True} if kind == "WEBP" else {}))
    header = read_header(data)
    assert (header.height, header.width, header.orientation, header.turbo) == (HEIGHT, WIDTH, orientation, False)
    pixels = decode(data)
    assert pixels.shape[:2] == header.upright
    assert np.array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_upright_too(orientation):
    pixels = blocks(64, 128)
    data = jpeg(pixels, exif=exif(orientation))
    height, width = read_header(data).upright
    small = decode(data, min_height=height // 8, min_width=width // 8)
    assert small.shape == (height // 8, width // 8, 3)
    # One pixel per block: reduction by 8 is the mean of a block.
    assert difference(small, by_pillow(data)[3::8, 3::8]) <= 4


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(value):
    assert read_header(jpeg(exif=exif(value))).orientation == 1
    assert read_header(encoded(blocks(), "PNG", exif=exif(value))).orientation == 1


# --- colour and depth


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_are_exact(kind):
    pixels = decode(encoded(blocks(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, blocks())


@pytest.mark.parametrize("wrap", [bytes, memoryview, lambda data: np.frombuffer(data, np.uint8)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_any_buffer_will_do(wrap, kind):
    data = encoded(blocks(), kind)
    assert np.array_equal(decode(wrap(data)), decode(data))


def test_grey_jpeg_has_three_equal_channels():
    data = jpeg(blocks()[:, :, 0])
    assert read_header(data).turbo
    pixels = decode(data)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert (pixels == pixels[:, :, :1]).all()
    assert difference(pixels, by_pillow(data)) <= 2


def test_cmyk_jpeg():
    data = jpeg(Image.fromarray(blocks()).convert("CMYK"), exif=exif(6))
    assert read_header(data) == (HEIGHT, WIDTH, 6, False)
    assert np.array_equal(decode(data), by_pillow(data))
    red = decode(jpeg(Image.new("CMYK", (8, 8), (0, 255, 255, 0))))
    assert difference(red, np.full((8, 8, 3), (255, 0, 0), np.uint8)) <= 8


@pytest.mark.parametrize("mode", ["P", "L", "1"])
def test_palette_grey_and_bilevel(mode):
    image = Image.fromarray(blocks()).convert(mode)
    pixels = decode(encoded(image, "PNG"))
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_transparent_pixels_lie_over_white():
    alpha = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    rgba = np.dstack([blocks(), alpha])
    share = alpha[:, :, None] / 255
    expected = np.rint(blocks() * share + 255 * (1 - share)).astype(np.uint8)
    pixels = decode(encoded(rgba, "PNG"))
    assert difference(pixels, expected) <= 1
    assert (pixels[:, 0] == 255).all()
    assert np.array_equal(pixels[:, -1], blocks()[:, -1])
    assert difference(decode(encoded(rgba, "WEBP", lossless=True, exact=True)), expected) <= 1


def test_transparent_palette_entry_and_colour_and_grey_lie_over_white():
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    pixels = decode(encoded(image, "PNG", transparency=0, exif=exif(3)))
    assert pixels[1, 2].tolist() == [200, 100, 50]  # turned by 180 degrees
    assert (np.delete(pixels.reshape(-1, 3), 6, axis=0) == 255).all()
    keyed = decode(encoded(Image.new("RGB", (3, 3), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert (keyed == 255).all()
    grey = np.dstack([np.full((2, 2), 90, np.uint8), np.array([[0, 255], [255, 0]], np.uint8)])
    assert decode(encoded(Image.fromarray(grey, "LA"), "PNG"))[:, :, 1].tolist() == [[255, 90], [90, 255]]


def test_sixteen_bit_grey_keeps_the_high_byte():
    levels = np.array([[0, 255, 256, 257], [32767, 32768, 65279, 65535]], np.uint16)
    pixels = decode(encoded(levels, "PNG"))
    assert pixels.shape == (2, 4, 3)
    for channel in range(3):
        assert pixels[:, :, channel].tolist() == [[0, 0, 1, 1], [127, 128, 254, 255]]


# Once a bug: `_to_rgb` returns 16-bit grey before it looks at transparency, so a tRNS key stays black instead of white.
def test_sixteen_bit_grey_with_a_transparent_level_lies_over_white():
    levels = np.array([[0, 30000]], np.uint16)
    assert decode(encoded(levels, "PNG", transparency=0))[0, :, 0].tolist() == [255, 30000 >> 8]


# --- damage


FILES = {
    "jpeg": jpeg(),
    "progressive": jpeg(progressive=True),
    "grey": jpeg(blocks()[:, :, 1]),
    "cmyk": jpeg(Image.fromarray(blocks()).convert("CMYK")),
    "png": encoded(blocks(), "PNG"),
    "webp": encoded(blocks(), "WEBP", lossless=True),
    "bmp": encoded(blocks(), "BMP"),
}
WHOLE = {name: decode(data) for name, data in FILES.items()}
TURBO = ("jpeg", "progressive", "grey")


@pytest.mark.parametrize("function", [read_header, decode])
@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"not an image", b"\x89PNG\r\n\x1a\n", b"BM"]
)
def test_no_image(function, data):
    with pytest.raises(CorruptSampleError):
        function(data)


@quick
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF\x40\0\0\0WEBPVP8 "])
)
def test_garbage_is_never_an_image(noise, start):
    with pytest.raises(CorruptSampleError):
        decode(start + noise)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(TURBO), st.floats(0, 1), st.booleans())
@example("jpeg", 1.0, False)
@example("progressive", 1.0, True)
def test_a_truncated_jpeg_is_an_error_at_any_size(name, where, reduced):
    data = FILES[name][: min(int(where * len(FILES[name])), len(FILES[name]) - 1)]
    with pytest.raises(CorruptSampleError):
        decode(data, min_height=5 * reduced, min_width=7 * reduced)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(set(FILES) - set(TURBO))), st.floats(0, 1))
def test_a_truncated_file_is_an_error_unless_all_of_its_pixels_are_there(name, where):
    data = FILES[name][: int(where * len(FILES[name]))]
    try:
        pixels = decode(data)
    except CorruptSampleError:
        return
    assert len(data) > 0.9 * len(FILES[name])  # only the trailer may be missing
    assert np.array_equal(pixels, WHOLE[name])


@pytest.mark.parametrize("name", ["jpeg", "progressive", "grey", "cmyk", "bmp"])
def test_a_header_alone_is_known_but_not_decoded(name):
    data = FILES[name]
    data = data[:54] if name == "bmp" else data[: data.index(b"\xff\xda") + 20]
    assert read_header(data)[:2] == (HEIGHT, WIDTH)
    with pytest.raises(CorruptSampleError, match="damaged"):
        decode(data)


# Once a bug: Pillow's PngImageFile.getexif() loads the whole image when no eXIf chunk stands before the pixels, so
# `read_header` decodes every PNG (which `decode` then does again), against its promise and before the limit is checked.
def test_the_header_of_a_png_is_read_without_decoding():
    data = FILES["png"][: FILES["png"].index(b"IDAT") + 14]
    assert read_header(data) == (HEIGHT, WIDTH, 1, False)
    with pytest.raises(CorruptSampleError, match="damaged"):
        decode(data)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_flipped_bytes_give_pixels_or_the_one_error(name, changes):
    data = bytearray(FILES[name])
    for where, value in changes:
        data[int(where**3 * (len(data) - 1))] = value  # mostly near the front, where the headers are
    try:
        pixels = decode(bytes(data))
    except CorruptSampleError:
        return
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, idat)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_a_bomb_is_refused_by_its_header(monkeypatch, kind):
    data = encoded(np.zeros((10, 11, 3), np.uint8), kind)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 110)
    assert decode(data).shape == (10, 11, 3)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 109)
    for function in (read_header, decode):
        with pytest.raises(CorruptSampleError, match=r"11 x 10 px is more than the 109 pixels"):
            function(data)


def test_a_real_bomb_is_refused():
    with pytest.raises(CorruptSampleError):
        read_header(png_header(30_000, 30_000))
    bomb = jpeg()
    start = bomb.index(b"\xff\xc0") + 5
    with pytest.raises(CorruptSampleError, match="178,000,000"):
        read_header(bomb[:start] + struct.pack(">HH", 40_000, 40_000) + bomb[start + 4 :])


# Once a bug: `Image.open` runs before `simplefilter("ignore")`, so Pillow's warning for 90 to 179 million pixels gets
# out: noise on stderr, and under `python -W error` a good image counts as damaged.
def test_a_large_but_allowed_image_gives_no_warning():
    data = FILES["bmp"][:18] + struct.pack("<ii", 10_000, 10_000) + FILES["bmp"][26:]
    code = "import sys; from pipelines.decode import read_header; print(read_header(sys.stdin.buffer.read()).upright)"
    command = [sys.executable, "-W", "error:Image size", "-c", code]
    done = subprocess.run(command, input=data, capture_output=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == (b"(10000, 10000)\n", b"")


# Once a bug: `warnings.catch_warnings` swaps a process-wide list and is not safe in threads: after a few PNG in the
# cpu engine its ("ignore", Warning) stays, and the whole process shows no warning of any kind any more.
def test_decoding_in_threads_leaves_the_warning_filters_alone():
    interval = sys.getswitchinterval()
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        before = list(warnings.filters)
        sys.setswitchinterval(1e-5)
        try:
            list(pool.map(decode, [FILES["png"]] * 400))
        finally:
            sys.setswitchinterval(interval)
        assert warnings.filters == before


# --- reduced decoding

LARGE = jpeg(blocks(93, 141, seed=1), subsampling=2)
LARGE_TURNED = jpeg(blocks(93, 141, seed=1), exif=exif(6))


@quick
@given(st.integers(1, 200), st.integers(1, 200), st.booleans())
@example(12, 18, False)
@example(93, 141, False)
def test_the_result_is_never_smaller_than_asked(min_height, min_width, turned):
    data = LARGE_TURNED if turned else LARGE
    height, width = read_header(data).upright
    pixels = decode(data, min_height=min_height, min_width=min_width)
    assert min(min_height, height) <= pixels.shape[0] <= height
    assert min(min_width, width) <= pixels.shape[1] <= width
    assert decode(FILES["png"], min_height=min_height, min_width=min_width).shape == (HEIGHT, WIDTH, 3)
    if min_height > height or min_width > width:
        assert pixels.shape[:2] == (height, width)
