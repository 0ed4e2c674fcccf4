"""Which of n channels are kept, as a short text."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def to_text(kept: Sequence[bool] | NDArray[np.bool_]) -> str:
    """`n:hex`, four channels a digit, the first channel in the highest bit."""
    flags = np.asarray(kept, bool)
    return f"{len(flags)}:{np.packbits(flags).tobytes().hex()}"


def from_text(text: str) -> NDArray[np.bool_]:
    """Read `to_text`: bool [n].

    Raises:
        ValueError: It is no such text.
    """
    count, _, digits = text.partition(":")
    packed = np.frombuffer(bytes.fromhex(digits), np.uint8)
    length = int(count)
    if not 0 < length <= 8 * len(packed) < length + 8:
        raise ValueError(f"{len(packed)} bytes for {length} channels")
    return np.unpackbits(packed, count=length).astype(bool)
