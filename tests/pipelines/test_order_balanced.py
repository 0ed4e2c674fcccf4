"""The balanced order, repeated draws, and shares of batches whose samples stay together in pairs."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.order import balanced, occurrences, share, shuffled

quick = settings(deadline=None, max_examples=150)
seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 2**32 - 2)
labelled = st.lists(st.sampled_from([0, 1, 2, 5, 9]), max_size=120).map(lambda found: np.array(found, np.int64))
CLASSES = 10
GOLDEN = [2, 5, 8, 5, 0, 4, 8, 9, 1, 6]


@quick
@given(labelled, seeds, epochs)
def test_every_class_comes_equally_often(labels, seed, epoch):
    rows = balanced(labels, CLASSES, seed=seed, epoch=epoch)
    assert rows.dtype == np.int64
    assert len(rows) == len(labels)
    counts = np.unique(labels[rows], return_counts=True)
    assert counts[0].tolist() == np.unique(labels).tolist(), "no class is left out, none is made up"
    assert len(labels) == 0 or np.ptp(counts[1]) <= 1


@quick
@given(labelled, seeds, epochs)
def test_within_a_class_counts_differ_by_at_most_one(labels, seed, epoch):
    times = np.bincount(balanced(labels, CLASSES, seed=seed, epoch=epoch), minlength=len(labels))
    for label in np.unique(labels):
        assert np.ptp(times[labels == label]) <= 1


@quick
@given(labelled, seeds, epochs)
def test_it_is_a_pure_function(labels, seed, epoch):
    before = labels.copy()
    first = balanced(labels, CLASSES, seed=seed, epoch=epoch)
    assert np.array_equal(first, balanced(labels, CLASSES, seed=seed, epoch=epoch))
    assert np.array_equal(labels, before)


@quick
@given(seeds, seeds, epochs, epochs)
def test_another_seed_or_epoch_is_another_order_and_another_choice(seed, other_seed, epoch, other_epoch):
    assume((seed, epoch) != (other_seed, other_epoch))
    labels = np.repeat(np.arange(3), (60, 120, 20))
    one, other = (
        balanced(labels, CLASSES, seed=seed, epoch=epoch),
        balanced(labels, CLASSES, seed=other_seed, epoch=other_epoch),
    )
    assert (one == other).mean() < 0.1
    assert not np.array_equal(np.sort(one), np.sort(other)), "the same samples come more often than others"


def test_the_classes_are_shuffled_among_each_other():
    labels = np.repeat(np.arange(2), (300, 300))
    drawn = labels[balanced(labels, CLASSES, seed=3, epoch=1)]
    assert 250 < np.count_nonzero(drawn[1:] != drawn[:-1]) < 350
    assert not np.array_equal(balanced(labels, CLASSES, seed=3, epoch=1), shuffled(600, seed=3, epoch=1))


def test_over_epochs_every_sample_and_every_class_get_their_turn():
    labels = np.repeat(np.arange(3), (50, 6, 1))
    draws = np.concatenate([balanced(labels, CLASSES, seed=0, epoch=epoch) for epoch in range(60)])
    times = np.bincount(draws, minlength=len(labels))
    assert times[:50].min() > 0
    assert np.ptp(np.bincount(labels[draws])) <= 1, "57 draws are 19 for each class"
    odd = np.repeat(np.arange(3), (50, 6, 2))
    counts = np.array([np.bincount(odd[balanced(odd, CLASSES, seed=0, epoch=epoch)]) for epoch in range(3)])
    assert (counts.sum(axis=0) == len(odd)).all(), "each class gets what is left over in turn"


def test_the_order_is_the_same_everywhere_and_for_ever():
    labels = np.array([0, 0, 0, 0, 1, 1, 0, 0, 2, 2], np.int64)
    assert balanced(labels, CLASSES, seed=7, epoch=3).tolist() == GOLDEN


@quick
@given(st.lists(st.integers(0, 12), max_size=80))
def test_occurrences_count_from_zero(rows):
    expected = [rows[:place].count(row) for place, row in enumerate(rows)]
    assert occurrences(np.array(rows, np.int64)).tolist() == expected


# --- shares in pairs


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 100), st.sampled_from([1, 2, 3, 5, 8, 13]), st.sampled_from([2, 2, 2, 3]))
def test_no_cut_between_ranks_parts_a_unit(length, world, unit):
    batch = np.arange(1000, 1000 + length, dtype=np.int64)
    parts = [share(batch, rank=rank, world=world, unit=unit) for rank in range(world)]
    real = [part.rows[: part.real].tolist() for part in parts]
    assert [row for rows in real for row in rows] == batch.tolist()
    ends = np.cumsum([len(rows) for rows in real])
    assert all(end % unit == 0 or end == length for end in ends.tolist())
    units = [-(-len(rows) // unit) for rows in real]
    assert max(units) - min(units) <= 1
    for part in parts:
        assert len(part.rows) >= 1
        assert part.real in (0, len(part.rows))


@pytest.mark.parametrize(
    ("length", "world", "sizes"), [(8, 2, [4, 4]), (7, 2, [4, 3]), (6, 2, [2, 4]), (5, 3, [2, 2, 1]), (2, 3, [0, 0, 2])]
)
def test_examples_of_shares_in_pairs(length, world, sizes):
    batch = np.arange(length, dtype=np.int64)
    assert [share(batch, rank=rank, world=world, unit=2).real for rank in range(world)] == sizes


def test_labels_that_are_no_class_take_no_part():
    labels = np.array([0, 0, 1, 1, 258, -1])
    drawn = labels[balanced(labels, 2, seed=0, epoch=0)]
    assert np.bincount(drawn, minlength=2).tolist() == [3, 3]
