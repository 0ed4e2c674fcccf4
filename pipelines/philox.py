"""Counter-based random numbers: a pure function of (key, counter), equal on every machine and numpy version.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. numpy's own
Philox gives no vectorised access to many counters, and its `Generator` methods may change their streams (NEP 19).
"""

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
ROUNDS = 10


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Ten rounds of Philox4x32.

    Args:
        counter: uint64 [..., 4], each value below 2**32.
        key: Two 32-bit words.

    Returns:
        uint64 [..., 4], each value uniform in [0, 2**32).
    """
    c0, c1, c2, c3 = (counter[..., index] for index in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = _wrapped_sum(k0, _KEY_STEPS[0]), _wrapped_sum(k1, _KEY_STEPS[1])
    return np.stack((c0, c1, c2, c3), axis=-1)


def _wrapped_sum(a: np.uint64, b: np.uint64) -> np.uint64:
    return np.uint64((int(a) + int(b)) & 0xFFFFFFFF)


def words(seed: int, ids: NDArray[np.uint64], round_number: int, block: int) -> NDArray[np.uint64]:
    """Four random words for each id.

    Args:
        seed: 0 to 2**64 - 1; becomes the key.
        ids: uint64 [n]; the sample ids, half of the counter.
        round_number: Copy number or epoch, 0 to 2**32 - 1.
        block: Which quantity is drawn, 0 to 2**32 - 1.

    Returns:
        uint64 [n, 4], each below 2**32.

    Raises:
        ValueError: A number is out of its range.
    """
    for name, value, bits in (("seed", seed, 64), ("round", round_number, 32), ("block", block, 32)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} must be in [0, 2**{bits}), got {value}")
    counter = np.empty((len(ids), 4), dtype=np.uint64)
    counter[:, 0] = ids & _LOW
    counter[:, 1] = ids >> _SHIFT
    counter[:, 2] = round_number
    counter[:, 3] = block
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def uniform(word: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words → float64 in [0, 1), exact multiples of 2**-32."""
    return word.astype(np.float64) * 2.0**-32


def below(word: NDArray[np.uint64], bound: int) -> NDArray[np.int64]:
    """Words → int64 in [0, bound), by multiplication (Lemire 2019; bias below bound / 2**32)."""
    return ((word * np.uint64(bound)) >> _SHIFT).astype(np.int64)
