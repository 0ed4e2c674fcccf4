"""Philox against the known answers of its authors (Random123, kat_vectors)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.philox import below, philox4x32, uniform, words

KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    result = philox4x32(np.array(counter, np.uint64), key)
    assert " ".join(f"{value:08x}" for value in result.tolist()) == answer


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_one_id_is_drawn_the_same_alone_and_among_others(seed, sample, round_number, block):
    alone = words(seed, np.array([sample], np.uint64), round_number, block)
    others = np.array([1, sample, 2**64 - 1], np.uint64)
    assert (words(seed, others, round_number, block)[1] == alone[0]).all()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1), st.integers(1, 2**31))
def test_ranges(values, bound):
    word = np.array(values, np.uint64)
    assert ((uniform(word) >= 0) & (uniform(word) < 1)).all()
    drawn = below(word, bound)
    assert ((drawn >= 0) & (drawn < bound)).all()


@pytest.mark.parametrize("change", [{"seed": -1}, {"seed": 2**64}, {"round_number": 2**32}, {"block": -1}])
def test_out_of_range_numbers_are_refused(change):
    arguments = {"seed": 0, "ids": np.zeros(1, np.uint64), "round_number": 0, "block": 0, **change}
    with pytest.raises(ValueError, match="must be in"):
        words(**arguments)
