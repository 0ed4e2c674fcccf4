"""Order is a pure function, and the ranks' shares of a batch are the batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.order import share, shuffled, steps_per_epoch

WORLDS = (1, 2, 3, 8)
GOLDEN = [11, 10, 5, 0, 2, 4, 1, 6, 8, 7, 9, 3]
quick = settings(deadline=None, max_examples=100)
seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 2**32 - 1)


@quick
@given(st.integers(0, 500), seeds, epochs)
def test_every_row_once_and_the_same_each_time(length, seed, epoch):
    order = shuffled(length, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(length))
    assert np.array_equal(order, shuffled(length, seed=seed, epoch=epoch))


@quick
@given(seeds, epochs, seeds, epochs)
def test_another_seed_or_epoch_is_another_order(seed, epoch, other_seed, other_epoch):
    order = shuffled(200, seed=seed, epoch=epoch)
    assert (order == np.arange(200)).mean() < 0.2  # about one row stays in its place by chance
    if seed != other_seed:
        assert not np.array_equal(order, shuffled(200, seed=other_seed, epoch=epoch))
    if epoch != other_epoch:
        assert not np.array_equal(order, shuffled(200, seed=seed, epoch=other_epoch))


def test_the_order_is_the_same_everywhere_and_for_ever():
    assert shuffled(12, seed=7, epoch=3).tolist() == GOLDEN
    assert shuffled(0, seed=7, epoch=3).tolist() == []
    assert shuffled(1, seed=7, epoch=3).tolist() == [0]


def test_every_row_has_the_same_chance_of_every_place():
    places = np.stack([np.argsort(shuffled(5, seed=1, epoch=epoch)) for epoch in range(2000)])
    for row in range(5):
        assert np.bincount(places[:, row], minlength=5) == pytest.approx([400] * 5, abs=90)  # five sigma


@pytest.mark.parametrize(
    ("seed", "epoch", "name"), [(-1, 0, "seed"), (2**64, 0, "seed"), (0, -1, "round"), (0, 2**32, "round")]
)
def test_seed_and_epoch_out_of_range(seed, epoch, name):
    with pytest.raises(ValueError, match=name):
        shuffled(3, seed=seed, epoch=epoch)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 300), st.integers(1, 70), st.sampled_from(WORLDS), st.booleans(), seeds)
def test_the_shares_of_all_ranks_are_the_batch(length, batch_size, world, drop_last, seed):
    if drop_last and length < batch_size:
        return
    order = shuffled(length, seed=seed, epoch=0)
    seen = []
    for step in range(steps_per_epoch(length, batch_size, drop_last=drop_last)):
        batch = order[step * batch_size : (step + 1) * batch_size]
        shares = [share(batch, rank=rank, world=world) for rank in range(world)]
        real = np.concatenate([part.rows[: part.real] for part in shares])
        assert real.tolist() == batch.tolist()
        assert sum(part.real for part in shares) == len(batch)
        for part in shares:
            assert len(part.rows) >= 1
            assert part.real in (0, len(part.rows))
            assert set(part.rows.tolist()) <= set(batch.tolist())
        counts = [part.real for part in shares]
        assert max(counts) - min(counts) <= 1
        seen += real.tolist()
    assert len(seen) == (length // batch_size * batch_size if drop_last else length)
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("world", WORLDS)
def test_a_batch_that_is_smaller_than_the_world_keeps_all_ranks_busy(world):
    order = np.array([5, 3])
    shares = [share(order, rank=rank, world=world) for rank in range(world)]
    assert [row for part in shares for row in part.rows[: part.real].tolist()] == [5, 3]
    assert all(len(part.rows) >= 1 for part in shares)
    assert sum(part.real == 0 for part in shares) == max(world - 2, 0)


@pytest.mark.parametrize(
    ("length", "batch_size", "drop_last", "steps"),
    [(10, 5, True, 2), (10, 5, False, 2), (11, 5, True, 2), (11, 5, False, 3), (4, 5, False, 1), (1, 1, True, 1)],
)
def test_steps(length, batch_size, drop_last, steps):
    assert steps_per_epoch(length, batch_size, drop_last=drop_last) == steps


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("batch_size", [0, -3])
def test_no_batch_of_nothing(batch_size, drop_last):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        steps_per_epoch(10, batch_size, drop_last=drop_last)


def test_no_epoch_without_a_batch():
    with pytest.raises(ValueError, match=r"batch size 5 is larger than the 4 samples"):
        steps_per_epoch(4, 5, drop_last=True)
    with pytest.raises(ValueError, match="0 samples"):
        steps_per_epoch(0, 5, drop_last=False)
