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


def split(samples, shares=SHARES, seed=0, known=None):
    groups = [group for group, _ in samples]
    return stratified_split(groups, np.array([label for _, label in samples], dtype=np.int64), shares, seed, known)


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
    start = time.process_time()
    result = stratified_split(groups, labels.astype(np.int64), SHARES, 0)
    assert time.process_time() - start < 2
    assert np.bincount(result) / 33_000 == pytest.approx([0.7, 0.15, 0.15], abs=0.001)


# --- known groups ----------------------------------------------------------------------------------------------------


def homes(samples, result, shares):
    """Group → name of its split."""
    return {group: list(shares)[where] for (group, _), where in zip(samples, result.tolist(), strict=True)}


known_of = st.dictionaries(
    st.sampled_from([f"p{i}" for i in range(30)]), st.sampled_from(["train", "val", "test", "gone", ""]), max_size=30
)


@given(samples_of, known_of, st.integers(0, 9))
def test_known_groups_never_move(samples, known, seed):
    """Names that are no group or no split are ignored."""
    found = homes(samples, split(samples, seed=seed, known=known), SHARES)
    assert all(found[group] == where for group, where in known.items() if group in found and where in SHARES)


@given(samples_of, shares_of, st.integers(0, 9), st.integers(0, 9))
def test_what_is_known_of_all_groups_is_the_result_whatever_the_seed(samples, shares, seed, other):
    result = split(samples, shares, seed)
    again = split(samples, shares, other, homes(samples, result, shares))
    assert again.tolist() == result.tolist()


@given(samples_of, shares_of, st.integers(0, 9))
def test_nothing_known_is_no_difference(samples, shares, seed):
    strangers = {"somebody": "s0", "p0": "nowhere"}
    assert split(samples, shares, seed, strangers).tolist() == split(samples, shares, seed).tolist()


@given(samples_of, known_of, st.randoms(use_true_random=False))
def test_order_of_samples_does_not_matter_with_known_groups_either(samples, known, random):
    order = list(range(len(samples)))
    random.shuffle(order)
    straight = split(samples, known=known)
    assert split([samples[i] for i in order], known=known).tolist() == straight[np.array(order, np.int64)].tolist()


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=150),
    st.integers(1, 8),
    st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.2), (0.34, 0.33, 0.33)]),
    st.integers(0, 9),
)
def test_a_data_set_that_grows_keeps_its_shares(labels, steps, parts, seed):
    """Built again after each of several additions: per class never further off than a cut from scratch may be."""
    shares = {f"s{i}": part for i, part in enumerate(parts)}
    samples = [(f"photo{i}", label) for i, label in enumerate(labels)]
    known = {}
    for step in range(1, steps + 1):
        some = samples[: len(samples) * step // steps]
        result = split(some, shares, seed, known)
        before, known = known, homes(some, result, shares)
        assert before.items() <= known.items()
    for label in set(labels):
        mine = result[np.array(labels) == label]
        for position, part in enumerate(parts):
            assert abs((mine == position).sum() - part * len(mine)) < 2 + 1e-9


@given(st.lists(st.integers(0, 3), min_size=3, max_size=60), st.integers(0, 9), st.data())
def test_every_split_gets_a_class_if_new_groups_can_bring_it(labels, seed, data):
    """Everything known lies in train, as after a first build without other splits."""
    samples = [(f"photo{i}", label) for i, label in enumerate(labels)]
    fixed = data.draw(st.sets(st.sampled_from([group for group, _ in samples])))
    result = split(samples, seed=seed, known=dict.fromkeys(fixed, "train"))
    for label in set(labels):
        free = [group for group, other in samples if other == label and group not in fixed]
        held = any(group in fixed for group, other in samples if other == label)
        if len(free) + held >= 3 and len(free) >= 2:
            assert all(groups_with(samples, result, label, position) for position in range(3))


def test_known_groups_of_a_split_that_is_full_send_new_ones_elsewhere():
    samples = [(f"old{i}", 0) for i in range(10)] + [(f"new{i}", 0) for i in range(10)]
    result = split(samples, {"a": 0.5, "b": 0.5}, known={f"old{i}": "a" for i in range(10)})
    assert result.tolist() == [0] * 10 + [1] * 10
