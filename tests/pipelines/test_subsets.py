"""Fractions and folds: classes keep their shares, groups stay whole, and no row is counted twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources import Subset
from pipelines.subsets import fold, fraction
from tests.pipelines.small_sources import MemorySource

quick = settings(deadline=None, max_examples=150)
seeds = st.integers(0, 2**64 - 1)
shares = st.floats(0.001, 1.0)


@st.composite
def tables(draw, most=60):
    """(ids, labels) of samples with one to four rows each, in random order; ids far apart and close together."""
    count = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = rng.integers(0, 2**64, count, np.uint64) if draw(st.booleans()) else np.arange(count)
    labels = rng.choice(draw(st.sampled_from([[0], [0, 1], [0, 1, 2, 7], list(range(20))])), count)
    rows = rng.permutation(np.repeat(np.arange(count), rng.integers(1, 5, count)))
    return ids.astype(np.uint64)[rows], labels.astype(np.int64)[rows]


def groups_of(ids, labels, rows):
    """Class → ids of the groups among some rows."""
    return {label: set(ids[rows][labels[rows] == label].tolist()) for label in np.unique(labels).tolist()}


@quick
@given(tables(), shares, seeds)
def test_a_fraction_is_stratified_and_takes_groups_whole(table, part, seed):
    ids, labels = table
    rows = fraction(ids, labels, part, seed=seed)
    assert rows.dtype == np.int64
    assert np.array_equal(rows, np.unique(rows)), "ascending, each once"
    assert np.array_equal(rows, np.flatnonzero(np.isin(ids, ids[rows]))), "all rows of a group or none"
    every = groups_of(ids, labels, np.arange(len(ids)))
    for label, chosen in groups_of(ids, labels, rows).items():
        assert len(chosen) >= 1
        assert len(chosen) == 1 or abs(len(chosen) - part * len(every[label])) <= 0.5 + 1e-9


@quick
@given(tables(), shares, shares, seeds)
def test_a_smaller_fraction_lies_within_a_larger_one(table, one, other, seed):
    ids, labels = table
    less, more = sorted((one, other))
    assert set(fraction(ids, labels, less, seed=seed)) <= set(fraction(ids, labels, more, seed=seed))
    assert len(fraction(ids, labels, 1.0, seed=seed)) == len(ids)


@quick
@given(tables(), shares, seeds, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_rows(table, part, seed, random):
    ids, labels = table
    mixed = np.array(random.sample(range(len(ids)), len(ids)))
    chosen = ids[fraction(ids, labels, part, seed=seed)]
    assert set(ids[mixed][fraction(ids[mixed], labels[mixed], part, seed=seed)]) == set(chosen)


def test_another_seed_is_another_fraction_and_no_group_is_preferred():
    ids, labels = np.arange(40, dtype=np.uint64), np.repeat(np.arange(2), 20)
    times = np.bincount(np.concatenate([fraction(ids, labels, 0.25, seed=seed) for seed in range(800)]))
    assert times.min() > 120
    assert times.max() < 290


@pytest.mark.parametrize("part", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_share_out_of_range(part):
    with pytest.raises(ValueError, match="share must be in"):
        fraction(np.arange(3, dtype=np.uint64), np.zeros(3, np.int64), part, seed=0)


@quick
@given(tables(), st.integers(2, 12), seeds)
def test_over_all_folds_every_row_is_held_out_once(table, of, seed):
    ids, labels = table
    every = np.arange(len(ids))
    folds = [fold(ids, labels, number=number, of=of, seed=seed) for number in range(of)]
    assert np.array_equal(np.sort(np.concatenate([held for _, held in folds])), every)
    for kept, held in folds:
        assert kept.dtype == held.dtype == np.int64
        assert np.array_equal(np.sort(np.concatenate((kept, held))), every)
        assert np.array_equal(kept, np.sort(kept))
        assert np.array_equal(held, np.sort(held))
        assert not set(ids[kept]) & set(ids[held]), "a group is on one side"
    sizes = [{label: len(found) for label, found in groups_of(ids, labels, held).items()} for _, held in folds]
    for label in sizes[0]:
        assert max(size[label] for size in sizes) - min(size[label] for size in sizes) <= 1


def test_the_odd_ones_of_the_classes_go_to_different_folds():
    ids, labels = np.arange(30, dtype=np.uint64), np.repeat(np.arange(10), 3)
    assert [len(fold(ids, labels, number=number, of=5, seed=1)[1]) for number in range(5)] == [6] * 5


def test_another_seed_is_another_fold():
    ids, labels = np.arange(60, dtype=np.uint64), np.repeat(np.arange(2), 30)
    held = {tuple(fold(ids, labels, number=0, of=5, seed=seed)[1].tolist()) for seed in range(10)}
    assert len(held) == 10
    assert set(fold(ids, labels, number=0, of=5, seed=3)[1]) != set(fraction(ids, labels, 0.2, seed=3))


@pytest.mark.parametrize(("number", "of"), [(0, 1), (0, 0), (-1, 3), (3, 3), (5, 3)])
def test_a_fold_that_does_not_exist(number, of):
    with pytest.raises(ValueError, match=f"fold {number} of {of} does not exist"):
        fold(np.arange(6, dtype=np.uint64), np.zeros(6, np.int64), number=number, of=of, seed=0)


def test_choices_are_the_same_everywhere_and_for_ever():
    ids, labels = np.arange(100, 116, dtype=np.uint64), np.repeat(np.arange(2), (10, 6))
    assert fraction(ids, labels, 0.3, seed=7).tolist() == GOLDEN_FRACTION
    assert fold(ids, labels, number=1, of=4, seed=7)[1].tolist() == GOLDEN_FOLD


GOLDEN_FRACTION = [4, 5, 6, 12, 14]
GOLDEN_FOLD = [0, 3, 6, 11, 15]


def test_a_subset_is_those_rows_of_its_source():
    source = MemorySource(14)
    rows = np.array([13, 0, 5, 2], np.int64)
    part = Subset(source, rows)
    assert part.labels.tolist() == source.labels[rows].tolist()
    assert part.ids.tolist() == source.ids[rows].tolist()
    assert part.classes == source.classes
    assert part.checked == source.checked
    assert part.describe(2) == "memory, row 5"
    for image, row in zip(part.fetch(np.array([3, 1])), (2, 0), strict=True):
        assert np.array_equal(image, source.images[row])
    assert len({part.fingerprint, source.fingerprint, Subset(source, rows[::-1]).fingerprint}) == 3


@pytest.mark.parametrize("depth", [1, 2])
def test_a_subset_of_a_subset(depth):
    source, rows = MemorySource(14), np.arange(13, -1, -2)
    part = source
    for _ in range(depth):
        part = Subset(part, rows[rows < len(part.labels)])
    inner = rows if depth == 1 else rows[rows[rows < len(rows)]]
    assert [part.describe(row) for row in range(len(inner))] == [f"memory, row {row}" for row in inner.tolist()]
