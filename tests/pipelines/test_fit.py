"""Fitting is integer geometry: always inside, never empty, and exact where exactness is possible."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.fit import WHOLE, Rect, place, round_half_up, scaled

FITS = ("pad", "stretch", "crop")
lengths = st.integers(1, 5000)
sizes = st.integers(4, 512)
quick = settings(deadline=None, max_examples=200)


@st.composite
def boxes(draw):
    width, height = draw(st.floats(0.001, 1)), draw(st.floats(0.001, 1))
    left, top = draw(st.floats(0, 1)) * (1 - width), draw(st.floats(0, 1)) * (1 - height)
    return left, top, width, height


def holds(rect, height, width):
    assert all(isinstance(value, int) for value in rect)
    assert rect.width >= 1
    assert rect.height >= 1
    assert rect.left >= 0
    assert rect.top >= 0
    assert rect.left + rect.width <= width
    assert rect.top + rect.height <= height


@settings(deadline=None, max_examples=500)
@given(lengths, lengths, sizes, st.sampled_from(FITS), boxes())
@example(1, 5000, 4, "pad", (0.0, 0.0, 0.001, 0.001))
@example(5000, 1, 512, "pad", (0.9, 0.9, 0.1, 0.1))
@example(1, 1, 512, "crop", (0.5, 0.5, 0.001, 0.001))
def test_both_rectangles_stay_inside(height, width, size, fit, box):
    placement = place(height, width, size, fit, box)
    holds(placement.source, height, width)
    holds(placement.target, size, size)


@quick
@given(lengths, lengths, sizes)
def test_pad_shows_all_and_keeps_the_aspect_to_a_pixel(height, width, size):
    source, target = place(height, width, size, "pad").source, place(height, width, size, "pad").target
    assert source == Rect(0, 0, width, height)
    assert max(target.width, target.height) == size
    longer = max(height, width)
    assert abs(target.width - width * size / longer) <= 1
    assert abs(target.height - height * size / longer) <= 1
    # Centred: the two margins differ by at most a pixel of rounding on either side.
    assert abs((size - target.width) - 2 * target.left) <= 2
    assert abs((size - target.height) - 2 * target.top) <= 2


@quick
@given(lengths, lengths, sizes)
def test_stretch_shows_all_everywhere(height, width, size):
    placement = place(height, width, size, "stretch")
    assert placement.source == Rect(0, 0, width, height)
    assert placement.target == Rect(0, 0, size, size)


@quick
@given(lengths, lengths, sizes)
def test_crop_shows_the_central_square_everywhere(height, width, size):
    placement = place(height, width, size, "crop")
    source = placement.source
    assert placement.target == Rect(0, 0, size, size)
    assert source.width == source.height == min(height, width)
    assert abs(2 * source.left + source.width - width) <= 1
    assert abs(2 * source.top + source.height - height) <= 1


@quick
@given(lengths, sizes, boxes())
def test_all_fits_agree_on_a_square(side, size, box):
    assert place(side, side, size, "pad", box) == place(side, side, size, "crop", box)
    assert place(side, side, size, "pad", box) == place(side, side, size, "stretch", box)


@quick
@given(lengths, lengths, sizes, st.sampled_from(("stretch", "crop")), boxes())
def test_without_padding_a_box_fills_the_square(height, width, size, fit, box):
    placement = place(height, width, size, fit, box)
    assert placement.target == Rect(0, 0, size, size)
    across = min(height, width) if fit == "crop" else width
    assert abs(placement.source.width - max(box[2] * across, 1)) <= 1


@quick
@given(lengths, lengths, sizes, st.sampled_from(FITS), boxes())
def test_rows_and_columns_are_treated_alike(height, width, size, fit, box):
    one = place(height, width, size, fit, box)
    other = place(width, height, size, fit, (box[1], box[0], box[3], box[2]))
    for a, b in ((one.source, other.source), (one.target, other.target)):
        assert a == Rect(b.top, b.left, b.height, b.width)


@pytest.mark.parametrize(
    ("arguments", "source", "target"),
    [
        ((200, 100, 50, "pad"), (0, 0, 100, 200), (13, 0, 25, 50)),  # 12.5 px of margin
        ((100, 200, 50, "pad"), (0, 0, 200, 100), (0, 13, 50, 25)),
        ((200, 100, 50, "crop"), (0, 50, 100, 100), (0, 0, 50, 50)),
        ((101, 100, 50, "crop"), (0, 1, 100, 100), (0, 0, 50, 50)),  # half a pixel goes up
        ((200, 100, 50, "stretch"), (0, 0, 100, 200), (0, 0, 50, 50)),
        ((100, 100, 50, "pad", (0.25, 0.5, 0.5, 0.5)), (25, 50, 50, 50), (0, 0, 50, 50)),
        ((100, 200, 50, "stretch", (0.5, 0.0, 0.25, 1.0)), (100, 0, 50, 100), (0, 0, 50, 50)),
        ((200, 100, 64, "crop", (0.0, 0.5, 0.5, 0.5)), (0, 100, 50, 50), (0, 0, 64, 64)),
        # Square of 200 with 50 px of padding at either side; the left half of it starts in the padding.
        ((200, 100, 64, "pad", (0.0, 0.0, 0.5, 0.5)), (0, 0, 50, 100), (32, 0, 32, 64)),
        # Nothing but padding: the nearest column of pixels at the edge.
        ((200, 100, 64, "pad", (0.0, 0.0, 0.2, 1.0)), (0, 0, 1, 200), (63, 0, 1, 64)),
        ((200, 100, 64, "pad", (0.8, 0.0, 0.2, 1.0)), (99, 0, 1, 200), (0, 0, 2, 64)),
        ((1, 1, 4, "pad"), (0, 0, 1, 1), (0, 0, 4, 4)),
        ((1, 1000, 100, "pad"), (0, 0, 1000, 1), (0, 50, 100, 1)),
    ],
)
def test_known_values(arguments, source, target):
    placement = place(*arguments)
    assert placement.source == Rect(*source)
    assert placement.target == Rect(*target)


def test_whole_is_the_default():
    assert place(30, 70, 32, "pad") == place(30, 70, 32, "pad", WHOLE)


@st.composite
def rect_and_sizes(draw):
    from_size = draw(st.tuples(lengths, lengths))
    to_size = draw(st.tuples(lengths, lengths))
    left, top = draw(st.integers(0, from_size[1] - 1)), draw(st.integers(0, from_size[0] - 1))
    width, height = draw(st.integers(1, from_size[1] - left)), draw(st.integers(1, from_size[0] - top))
    return Rect(left, top, width, height), from_size, to_size


@settings(deadline=None, max_examples=400)
@given(rect_and_sizes())
def test_scaled_is_the_smallest_rectangle_that_covers(case):
    rect, from_size, to_size = case
    result = scaled(rect, from_size, to_size)
    holds(result, *to_size)
    for start, length, new_start, new_length, before, after in (
        (rect.left, rect.width, result.left, result.width, from_size[1], to_size[1]),
        (rect.top, rect.height, result.top, result.height, from_size[0], to_size[0]),
    ):
        assert new_start * before <= start * after
        assert (new_start + new_length) * before >= (start + length) * after
        assert (new_start + 1) * before > start * after
        assert new_length == 1 or (new_start + new_length - 1) * before < (start + length) * after


@quick
@given(rect_and_sizes())
def test_scaled_keeps_what_did_not_change(case):
    rect, from_size, to_size = case
    assert scaled(rect, from_size, from_size) == rect
    whole = Rect(0, 0, from_size[1], from_size[0])
    assert scaled(whole, from_size, to_size) == Rect(0, 0, to_size[1], to_size[0])


def test_scaled_known_values():
    assert scaled(Rect(16, 8, 32, 24), (64, 128), (8, 16)) == Rect(2, 1, 4, 3)
    assert scaled(Rect(17, 9, 1, 1), (64, 128), (8, 16)) == Rect(2, 1, 1, 1)
    assert scaled(Rect(15, 0, 2, 64), (64, 128), (8, 16)) == Rect(1, 0, 2, 8)


@quick
@given(st.integers(0, 10**9), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_halves_go_up(whole, part):
    assert round_half_up(whole + part) == whole + (part >= 0.5)


# Once a bug: below zero `round_half_up` rounds halves away from zero, that is down, against its docstring.
@quick
@given(st.integers(-(10**6), -1))
def test_halves_go_up_below_zero_too(whole):
    assert round_half_up(whole + 0.5) == whole + 1
