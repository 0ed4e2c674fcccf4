"""Crop windows: inside the frame, around the box, square wherever the frame allows it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment_cache.annotations.window import Box, Window, clip_box, crop_window

sizes = st.integers(1, 5000)
numbers = st.floats(-6000, 6000)
any_box = st.builds(Box, numbers, numbers, st.floats(0, 6000), st.floats(0, 6000))
margins = st.floats(0, 3)


@given(any_box, sizes, sizes, st.sampled_from(["square", "tight"]), margins)
def test_window_is_inside_the_frame_and_around_the_box(raw, width, height, shape, margin):
    box = clip_box(raw, width, height)
    if box is None:
        return
    window = crop_window(box, width, height, shape=shape, margin=margin)
    assert all(isinstance(number, int) for number in window)
    assert window.width >= 1
    assert window.height >= 1
    assert window.x >= 0
    assert window.y >= 0
    assert window.x + window.width <= width
    assert window.y + window.height <= height
    assert window.x < box.x + 1
    assert window.y < box.y + 1
    assert window.x + window.width > box.x + box.width - 1
    assert window.y + window.height > box.y + box.height - 1


@given(any_box, sizes, sizes, margins)
def test_square_unless_the_frame_is_too_short(raw, width, height, margin):
    box = clip_box(raw, width, height)
    if box is None:
        return
    window = crop_window(box, width, height, shape="square", margin=margin)
    wanted = max(1, math.floor(max(box.width, box.height) * (1 + margin) + 0.5))
    assert (window.width, window.height) == (min(wanted, width), min(wanted, height))


@given(any_box, sizes, sizes)
def test_a_clipped_box_is_inside_and_clipping_again_changes_nothing(raw, width, height):
    box = clip_box(raw, width, height)
    if box is None:
        return
    assert 0 <= box.x < width
    assert 0 <= box.y < height
    assert 0 < box.side <= min(width, height)
    again = clip_box(box, width, height)
    assert again is not None
    assert again == pytest.approx(box, abs=1e-9)


@pytest.mark.parametrize(
    ("box", "shape", "margin", "window"),
    [
        (Box(40, 30, 20, 10), "square", 0.0, Window(40, 25, 20, 20)),
        (Box(40, 30, 20, 10), "square", 0.1, Window(39, 24, 22, 22)),
        (Box(0, 0, 20, 10), "square", 0.1, Window(0, 0, 22, 22)),  # shifted right and down
        (Box(80, 70, 20, 10), "square", 0.1, Window(78, 58, 22, 22)),  # shifted left and up
        (Box(5, 5, 90, 10), "square", 0.0, Window(5, 0, 90, 80)),  # the frame is 80 high: clipped
        (Box(40, 30, 20, 10), "tight", 0.0, Window(40, 30, 20, 10)),
        (Box(40, 30, 20, 10), "tight", 0.2, Window(38, 28, 24, 14)),
        (Box(0, 0, 20, 10), "tight", 0.2, Window(0, 0, 22, 12)),
        (Box(99.6, 79.7, 0.2, 0.2), "tight", 0.0, Window(99, 79, 1, 1)),
        (Box(10.5, 10.5, 2, 2), "tight", 0.0, Window(11, 11, 2, 2)),  # halves go up on both sides
    ],
)
def test_windows_worked_out_by_hand(box, shape, margin, window):
    assert crop_window(box, 100, 80, shape=shape, margin=margin) == window


@pytest.mark.parametrize(
    "box",
    [
        Box(10, 10, 0, 5),
        Box(10, 10, 5, -1),
        Box(100, 10, 5, 5),
        Box(-5, 10, 5, 5),
        Box(10, 80, 5, 5),
        Box(math.nan, 10, 5, 5),
        Box(10, 10, math.inf, 5),
        Box(-math.inf, 10, math.inf, 5),
    ],
)
def test_boxes_with_nothing_inside_the_frame(box):
    assert clip_box(box, 100, 80) is None


def test_an_overhanging_box_is_clipped():
    assert clip_box(Box(-1.5, 70, 11.5, 20), 100, 80) == Box(0, 70, 10, 10)
