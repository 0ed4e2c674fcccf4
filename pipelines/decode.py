"""Encoded image → RGB pixels, upright, checked, and no larger than needed.

Baseline and progressive JPEG in grey or colour go through simplejpeg (libjpeg-turbo), which can decode straight to
1/8 … 8/8 of the size (DCT scaling). Everything else that Pillow reads (PNG, WebP, BMP, CMYK JPEG, palettes,
transparency, 16 bit) is converted to 8-bit RGB by Pillow; transparent pixels are laid over white.
"""

import io
import struct
import warnings
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from typing_extensions import Buffer

from pipelines.errors import CorruptSampleError

Pixels = NDArray[np.uint8]
"""uint8 [height, width, 3], RGB."""

MAX_PIXELS = 178_000_000
"""Larger images are refused: they are decompression bombs, not crops. Pillow's own limit lies just above."""

# Pillow warns of large images and odd metadata, once per file. `warnings.catch_warnings` around each call would not do:
# it swaps process-wide state and is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\b")

EXIF_SCAN_BYTES = 65_536 + 64
_ORIENTATION_TAG = 0x0112


class Header(NamedTuple):
    """What is known of an encoded image before decoding it."""

    height: int
    """Rows of the stored image, before the EXIF orientation is applied, in px."""
    width: int
    """Columns of the stored image, in px."""
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright."""
    turbo: bool
    """True for a grey or YCbCr JPEG, which simplejpeg decodes; False for what Pillow has to do."""

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) after the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: Buffer) -> Header:
    """Read size and orientation without decoding.

    Args:
        data: The encoded file, whole.

    Raises:
        CorruptSampleError: Empty, not an image, or larger than `MAX_PIXELS`.
    """
    view = memoryview(data)
    if len(view) == 0:
        raise CorruptSampleError("the file is empty")
    turbo = False
    if bytes(view[:2]) == b"\xff\xd8":
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(view, strict=False)
            turbo = colorspace in ("YCbCr", "Gray", "RGB")
        except KeyError as error:
            raise CorruptSampleError("damaged JPEG header: it names no colour space") from error
        except ValueError as error:
            raise CorruptSampleError(f"damaged JPEG header: {error}") from error
        orientation = exif_orientation(view)
    if not turbo:
        height, width, orientation = _pillow_header(view)
    if height * width > MAX_PIXELS:
        raise CorruptSampleError(f"{width} x {height} px is more than the {MAX_PIXELS:,} pixels that are read")
    return Header(int(height), int(width), orientation, turbo)


def _pillow_header(view: memoryview) -> tuple[int, int, int]:
    try:
        with Image.open(io.BytesIO(view)) as image:
            # Pillow's own getexif() of a PNG loads all pixels when it has not met an eXIf chunk before them.
            png = image.format == "PNG"
            orientation = _png_orientation(view) if png else image.getexif().get(_ORIENTATION_TAG, 1)
            return image.height, image.width, orientation if orientation in range(1, 9) else 1
    except UnidentifiedImageError as error:  # its words hold an address in memory, other ones in each run
        raise CorruptSampleError("not an image in any known format") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise CorruptSampleError(f"not an image that can be read: {error}") from error


def exif_orientation(view: memoryview) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; 1 where there is none or it makes no sense.

    Walks the marker segments up to the first scan, so that a thumbnail's own EXIF is never mistaken for the image's.
    """
    position, end = 2, min(len(view), EXIF_SCAN_BYTES)
    while position + 4 <= end and view[position] == 0xFF:
        marker = view[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in (0xDA, 0xD9):
            break
        length = view[position + 2] << 8 | view[position + 3]
        if marker == 0xE1 and bytes(view[position + 4 : position + 10]) == b"Exif\0\0":
            return _tiff_orientation(bytes(view[position + 10 : position + 2 + length]))
        position += 2 + length
    return 1


def _png_orientation(view: memoryview) -> int:
    """The orientation in a PNG's eXIf chunk, wherever it stands; hops from chunk to chunk."""
    position = 8
    while position + 8 <= len(view):
        length = int.from_bytes(view[position : position + 4], "big")
        if bytes(view[position + 4 : position + 8]) == b"eXIf":
            return _tiff_orientation(bytes(view[position + 8 : position + 8 + length]))
        position += 12 + length
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, offset)
        for index in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, offset + 2 + 12 * index)
            if tag == _ORIENTATION_TAG and kind == 3:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def decode(
    data: Buffer,
    *,
    header: Header | None = None,
    min_height: int = 0,
    min_width: int = 0,
    out: Pixels | None = None,
) -> Pixels:
    """Decode to RGB, upright, strictly: a truncated or damaged file is an error, never grey pixels.

    Args:
        data: The encoded file, whole.
        header: Result of `read_header`, if it is at hand.
        min_height: The upright result needs no more than this many rows; a JPEG may then be decoded at a fraction of
            its size (never below this). 0 decodes in full.
        min_width: The same for columns.
        out: uint8 [height, width, 3], contiguous: where the pixels of an upright JPEG of this very size go.

    Returns:
        uint8 [height, width, 3]; contiguous unless the image had to be turned upright.

    Raises:
        CorruptSampleError: The file is damaged or no image.
    """
    header = header or read_header(data)
    if not header.turbo:
        return turn_upright(_pillow_decode(memoryview(data)), header.orientation)
    if header.orientation >= 5:
        min_height, min_width = min_width, min_height
    try:
        stored = simplejpeg.decode_jpeg(data, min_height=min_height, min_width=min_width, buffer=out)
    except ValueError as error:
        raise CorruptSampleError(f"damaged JPEG: {error}") from error
    return turn_upright(stored, header.orientation)


def _pillow_decode(view: memoryview) -> Pixels:
    try:
        with Image.open(io.BytesIO(view)) as image:
            image.load()
            return _to_rgb(image)
    except Exception as error:
        raise CorruptSampleError(f"damaged image: {error}") from error


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):  # 16-bit grey: keep the high byte, not the low one
        levels = np.asarray(image).astype(np.int64)
        grey = (levels >> 8).clip(0, 255).astype(np.uint8)
        if isinstance(image.info.get("transparency"), int):
            grey[levels == image.info["transparency"]] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        over = Image.new("RGBA", image.size, "white")
        over.alpha_composite(image.convert("RGBA"))
        image = over
    return np.array(image.convert("RGB"), dtype=np.uint8)


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (1 to 8) to stored pixels.

    Source: EXIF 2.32, tag 0x0112: 2 mirrored, 3 half turn, 4 upside down mirrored, 5 to 8 the same with rows and
    columns exchanged.
    """
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    flip_code = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip_code is None else cv2.flip(pixels, flip_code)
