"""Images as DALI can read them: whole ones, and upright."""

from collections.abc import Sequence

import cv2
import numpy as np

from pipelines.augmentations import FILL
from pipelines.decode import decode, read_header
from pipelines.engines.base import Image
from pipelines.errors import CorruptSampleError


def taken(images: Sequence[Image], index: int) -> Image | str:
    """An image, or what is wrong with it."""
    try:
        return images[index]
    except CorruptSampleError as error:
        return str(error)


def check(images: Sequence[Image], index: int) -> Image | str:
    """An image, or what is wrong with it. Decodes strictly, at an eighth of the size, to see whether it is whole."""
    try:
        image = images[index]
        if image.ndim == 3:
            return image
        header = read_header(image)
        if header.turbo and header.orientation == 1:
            decode(image, header=header, min_height=1, min_width=1)
            return image
        # What only Pillow reads, and what has to be turned upright (DALI 1.34 does not), goes to DALI as a PNG.
        encoded = cv2.imencode(".png", cv2.cvtColor(decode(image), cv2.COLOR_RGB2BGR))[1]
        return encoded.reshape(-1)
    except CorruptSampleError as error:
        return str(error)


GREY_PNG: Image = cv2.imencode(".png", np.full((8, 8, 3), FILL, np.uint8))[1].reshape(-1)
