"""The split is a pure function of the photos: whole groups, every class in proportion, in any order."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.splits import stratified_split

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def split(samples, shares=SHARES, seed=0):
    groups = [group for group, _ in samples]
    return stratified_split(groups, np.array([label for _, label in samples], dtype=np.int64), shares, seed)


def groups_with(samples, result, label, position):
    return {
        group for (group, other), where in zip(samples, result, strict=True) if other == label and where == position
    }


samples_of = st.lists(st.tuples(st.sampled_from([f"p{i}" for i in range(25)]), st.integers(0, 4)), max_size=80)
shares_of = st.lists(st.integers(1, 10), min_size=1, max_size=5).map(
    lambda parts: {f"s{i}": part / sum(parts) for i, part in enumerate(parts)}
)


@given(samples_of, shares_of, st.integers(0, 2**40))
def test_every_sample_is_in_one_split_and_every_group_too(samples, shares, seed):
    result = split(samples, shares, seed)
    assert result.shape == (len(samples),)
    assert result.dtype == np.int64
    assert all(0 <= where < len(shares) for where in result)
    homes = {}
    for (group, _), where in zip(samples, result, strict=True):
        assert homes.setdefault(group, where) == where


@given(samples_of, shares_of, st.integers(0, 9), st.randoms(use_true_random=False))
def test_order_of_samples_does_not_matter(samples, shares, seed, random):
    shuffled = list(range(len(samples)))
    random.shuffle(shuffled)
    straight = split(samples, shares, seed)
    mixed = split([samples[i] for i in shuffled], shares, seed)
    assert mixed.tolist() == straight[np.array(shuffled, dtype=np.int64)].tolist()


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=300),
    st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.2), (0.5, 0.25, 0.25), (0.34, 0.33, 0.33)]),
    st.integers(0, 9),
)
def test_shares_hold_for_each_class_where_a_group_is_one_sample(labels, parts, seed):
    shares = {f"s{i}": part for i, part in enumerate(parts)}
    result = split([(f"photo{i}", label) for i, label in enumerate(labels)], shares, seed)
    for label in set(labels):
        mine = result[np.array(labels) == label]
        for position, part in enumerate(parts):
            # Handing out whole samples is off by less than one, the repair of an empty split by at most one more.
            assert abs((mine == position).sum() - part * len(mine)) < 2


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), shares_of, st.integers(0, 9))
def test_a_class_with_enough_groups_is_in_every_split(labels, shares, seed):
    samples = [(f"photo{i}", label) for i, label in enumerate(labels)]
    result = split(samples, shares, seed)
    for label in set(labels):
        if labels.count(label) >= len(shares):
            assert all(groups_with(samples, result, label, position) for position in range(len(shares)))


def test_repair_takes_from_a_split_that_keeps_the_class():
    # Shares of 1 % want a fraction of a group; without the repair all four groups would go to "most".
    samples = [(f"photo{i}", 7) for i in range(4)]
    result = split(samples, {"most": 0.98, "a": 0.01, "b": 0.01})
    assert sorted(result.tolist()) == [0, 0, 1, 2]


def test_repair_does_not_rob_another_class():
    # Each of the shared photos holds classes 0 and 1; class 1 occurs nowhere else.
    samples = [(f"shared{i}", label) for i in range(3) for label in (0, 1)]
    samples += [(f"plain{i}", 0) for i in range(30)]
    for seed in range(20):
        result = split(samples, {"train": 0.9, "val": 0.05, "test": 0.05}, seed)
        for label in (0, 1):
            assert all(groups_with(samples, result, label, position) for position in range(3))


def test_rare_class_in_a_crowded_photo_is_still_spread():
    rng = np.random.default_rng(5)
    samples = [(f"p{photo}", int(label)) for photo in range(200) for label in rng.choice(3, size=rng.integers(1, 6))]
    samples += [(f"p{photo}", 9) for photo in range(0, 200, 25)]  # eight photos with a class nobody else has
    result = split(samples)
    rare = [len(groups_with(samples, result, 9, position)) for position in range(3)]
    assert rare[0] >= 4
    assert min(rare) >= 1
    assert np.bincount(result) / len(samples) == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_seed_changes_the_split_and_nothing_else_does():
    samples = [(f"photo{i}", i % 3) for i in range(90)]
    assert split(samples, seed=1).tolist() == split(samples, seed=1).tolist()
    assert split(samples, seed=1).tolist() != split(samples, seed=2).tolist()


def test_known_answer():
    """A golden: a change here means that everybody's splits change."""
    samples = [(f"photo{i:02d}", i % 2) for i in range(14)] + [("photo00", 1), ("photo01", 1)]
    assert "".join(map(str, split(samples))) == "0000001222000100"


def test_neither_hash_randomization_nor_torch_matters():
    code = (
        "import sys, numpy as np; from pipelines.splits import stratified_split as s; "
        "print(s([f'p{i}' for i in range(60)], np.arange(60) % 4, {'a': .5, 'b': .5}, 3).tolist()); "
        "print('torch' in sys.modules)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    assert runs.pop().strip().endswith("False")


def test_names_with_any_character_are_groups():
    samples = [("a", 0), ("a\0", 0), ("a ", 0), ("\ud800", 0), ("ä", 0), ("", 0)]
    assert len(split(samples)) == 6


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"train": 0.7, "val": 0.2}, "add up to 0.9"),
        ({"train": 0.7, "val": 0.3001}, "add up to"),
        ({"train": 1.0, "val": 0.0}, "fraction of val"),
        ({"train": 1.5, "val": -0.5}, "fraction of val"),
        ({"train": float("nan"), "val": 0.5}, "fraction of train"),
        ({}, "no split"),
    ],
)
def test_impossible_fractions(shares, words):
    with pytest.raises(ValueError, match=words):
        split([("a", 0)], shares)


def test_fractions_may_be_off_by_rounding():
    assert len(split([("a", 0)], {"a": 1 / 3, "b": 1 / 3, "c": 0.3333333})) == 1


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="one label per sample"):
        stratified_split(["a", "b"], np.zeros(3, dtype=np.int64), SHARES, 0)


def test_no_samples_no_splits():
    assert split([]).tolist() == []


def test_thirty_three_thousand_photos_in_two_seconds():
    labels = np.random.default_rng(0).choice(60, 33_000, p=np.arange(1, 61) / 1830)
    groups = [f"batch/{i}.jpg" for i in range(33_000)]
    start = time.perf_counter()
    result = stratified_split(groups, labels.astype(np.int64), SHARES, 0)
    assert time.perf_counter() - start < 2
    assert np.bincount(result) / 33_000 == pytest.approx([0.7, 0.15, 0.15], abs=0.001)
