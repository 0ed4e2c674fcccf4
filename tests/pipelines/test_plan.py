"""The plan is a pure function; its values are golden."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.augmentations import CODES, OPS, Choice, Policy, full_range
from pipelines.plan import PLAIN_VIEW, Stage, View, draw, nothing
from tests.pipelines.golden_plan import GOLDEN, golden_values

ALL_OPS = Policy.repeated("all", tuple(full_range(op.name) for op in OPS[1:]), turns=2)
VIEW = View(flip=True, min_area=0.4)
IDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20, unique=True)


def test_golden_values():
    assert golden_values() == json.loads(Path(GOLDEN).read_text(encoding="utf-8"))


def _equal(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("op", "value", "centre", "flip", "box"))


@given(IDS, st.integers(0, 2**64 - 1), st.data())
def test_a_sample_has_the_same_plan_in_any_batch(ids, seed, data):
    whole = draw(ALL_OPS, np.array(ids, np.uint64), seed=seed, stage=Stage.LOAD, rounds=(3,), view=VIEW)
    index = data.draw(st.integers(0, len(ids) - 1))
    alone = draw(ALL_OPS, np.array([ids[index]], np.uint64), seed=seed, stage=Stage.LOAD, rounds=(3,), view=VIEW)
    assert _equal(whole.take(np.array([index])), alone)


@given(IDS, st.integers(0, 2**64 - 1))
def test_rounds_are_independent_of_each_other(ids, seed):
    array = np.array(ids, np.uint64)
    both = draw(ALL_OPS, array, seed=seed, stage=Stage.BUILD, rounds=(0, 1, 2))
    second = draw(ALL_OPS, array, seed=seed, stage=Stage.BUILD, rounds=(2,))
    assert np.array_equal(both.op[2:], second.op)
    assert np.array_equal(both.value[2:], second.value)


@given(IDS, st.integers(0, 2**64 - 1))
def test_the_original_of_a_build_stays_as_it_is(ids, seed):
    plan = draw(ALL_OPS, np.array(ids, np.uint64), seed=seed, stage=Stage.BUILD, rounds=(0,), view=VIEW)
    assert not plan.op.any()
    assert not plan.flip.any()
    assert (plan.box == nothing(len(ids)).box).all()


def test_stages_and_seeds_and_rounds_differ():
    ids = np.arange(200, dtype=np.uint64)
    base = {"seed": 1, "stage": Stage.BUILD, "rounds": (1,)}
    plans = [
        draw(ALL_OPS, ids, **{**base, **change})
        for change in ({}, {"seed": 2}, {"stage": Stage.LOAD}, {"rounds": (2,)})
    ]
    for i, a in enumerate(plans):
        for b in plans[i + 1 :]:
            assert (a.op != b.op).mean() > 0.5


@settings(max_examples=30)
@given(st.integers(0, 2**64 - 1))
def test_values_stay_in_their_ranges_and_use_them(seed):
    ids = np.arange(4000, dtype=np.uint64)
    plan = draw(ALL_OPS, ids, seed=seed, stage=Stage.BUILD, rounds=(1,))
    assert set(np.unique(plan.op)) == set(range(1, len(OPS)))
    for op in OPS[1:]:
        values = plan.value[plan.op == CODES[op.name]]
        least, most = sorted((op.low, op.high))
        size = np.abs(values) if op.signed else values
        assert size.min() >= least - 1e-6
        assert size.max() <= most + 1e-6
        if op.has_value:
            assert size.min() < least + 0.26 * (most - least)  # Posterize: 4 of 4 … 8
            assert size.max() > most - 0.1 * (most - least)
        if op.signed:
            assert 0.3 < (values < 0).mean() < 0.7
        if op.whole:
            assert (values == np.rint(values)).all()


def test_probability_leaves_the_rest_alone():
    policy = Policy("quarter", ((Choice("Invert", 0, 0, probability=0.25),),))
    plan = draw(policy, np.arange(4000, dtype=np.uint64), seed=0, stage=Stage.LOAD, rounds=(0,))
    assert 0.22 < (plan.op == CODES["Invert"]).mean() < 0.28
    assert ((plan.op == 0) | (plan.op == CODES["Invert"])).all()


def test_each_turn_has_its_own_choices():
    """A turn draws what it would draw in any other policy, so turns never get in each other's way."""
    levels = (full_range("Invert"), full_range("Brightness", 0.5))
    moves = (full_range("FlipX", 0.3),)
    ids = np.arange(20_000, dtype=np.uint64)
    options = {"seed": 3, "stage": Stage.BUILD, "rounds": (1,)}
    plan = draw(Policy("two", (levels, moves)), ids, **options)
    first = draw(Policy("one", (levels,)), ids, **options)
    assert np.array_equal(plan.op[:, :, :1], first.op)
    assert np.array_equal(plan.value[:, :, :1], first.value)
    shares = {name: (plan.op[0] == CODES[name]).mean(axis=0).round(2).tolist() for name in CODES}
    assert {name: share for name, share in shares.items() if any(share)} == {
        "Identity": [0.25, 0.7],
        "Invert": [0.5, 0.0],
        "Brightness": [0.25, 0.0],
        "FlipX": [0.0, 0.3],
    }
    both = (plan.op[0] == [CODES["Invert"], CODES["FlipX"]]).all(axis=1).mean()
    assert abs(both - 0.15) < 0.01, "turns are independent"


@pytest.mark.parametrize(("low", "high"), [(0, 3), (3, 0), (1, 2), (2, 2), (0.6, 2.4)])
def test_quarter_turns_come_evenly(low, high):
    policy = Policy("p", ((Choice("Rotate90", low, high),),))
    plan = draw(policy, np.arange(20_000, dtype=np.uint64), seed=1, stage=Stage.LOAD, rounds=(0,))
    values, counts = np.unique(plan.value, return_counts=True)
    assert values.tolist() == list(range(round(min(low, high)), round(max(low, high)) + 1))
    assert np.abs(counts / 20_000 - 1 / len(values)).max() < 0.015
    assert not np.signbit(plan.value).any()


@pytest.mark.parametrize(
    ("turns", "words"), [((), "1 to 16, got 0"), (((full_range("Invert"),),) * 17, "got 17"), (((),), "offers no op")]
)
def test_policies_that_make_no_sense(turns, words):
    with pytest.raises(ValueError, match=words):
        Policy("p", turns)


@given(st.floats(0.05, 1.0), st.floats(1.0, 3.0), st.integers(0, 2**32))
def test_crops_lie_in_the_square_and_have_the_asked_area(min_area, max_aspect, seed):
    view = View(min_area=min_area, max_aspect=max_aspect)
    box = draw(None, np.arange(100, dtype=np.uint64), seed=seed, stage=Stage.LOAD, rounds=(0,), view=view).box[0]
    assert (box >= 0).all()
    assert (box[:, 0] + box[:, 2] <= 1 + 1e-6).all()
    assert (box[:, 1] + box[:, 3] <= 1 + 1e-6).all()
    assert (box[:, 2] * box[:, 3] <= 1 + 1e-6).all()
    # A crop wider than the square is cut to it, which loses at most the aspect's share of the area.
    assert (box[:, 2] * box[:, 3] >= min_area / max_aspect - 1e-6).all()


@pytest.mark.parametrize(("arguments", "words"), [({"min_area": 0.0}, "min_area"), ({"max_aspect": 0.5}, "max_aspect")])
def test_views_that_make_no_sense(arguments, words):
    with pytest.raises(ValueError, match=words):
        View(**arguments)


def test_plain_view_draws_nothing():
    plan = draw(None, np.arange(5, dtype=np.uint64), seed=0, stage=Stage.LOAD, rounds=(0,), view=PLAIN_VIEW)
    assert _equal(plan, nothing(5))
