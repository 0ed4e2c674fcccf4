"""Which sample goes where depends on its id alone, and a fingerprint covers everything that decides bytes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment_cache.building.shard_plan import ShardTask, assign, content_digest, fingerprint, shard_count
from pipelines.sources import sample_id

IDS = st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=60)
COUNTS = st.integers(1, 40)


def shards_of(ids, count):
    """The ids in each shard."""
    array = np.array(ids, np.uint64)
    return [array[rows].tolist() for rows in assign(array, count)]


@given(IDS, COUNTS)
def test_every_sample_is_in_one_shard(ids, count):
    rows = assign(np.array(ids, np.uint64), count)
    assert len(rows) == count
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(ids)))


@given(IDS, COUNTS)
def test_shards_one_after_the_other_are_sorted_by_id(ids, count):
    assert [number for shard in shards_of(ids, count) for number in shard] == sorted(ids)


@given(IDS, COUNTS, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(ids, count, random):
    shuffled = random.sample(ids, len(ids))
    assert shards_of(shuffled, count) == shards_of(ids, count)


@given(IDS.filter(bool), COUNTS)
def test_an_added_sample_touches_one_shard(ids, count):
    *old, new = ids
    before, after = shards_of(old, count), shards_of(ids, count)
    touched = [number for number in range(count) if before[number] != after[number]]
    assert len(touched) == 1
    assert sorted([*before[touched[0]], new]) == after[touched[0]]


@given(st.integers(0, 2**64 - 1), COUNTS)
def test_a_shard_is_an_equal_part_of_the_range(number, count):
    (found,) = [index for index, shard in enumerate(shards_of([number], count)) if shard]
    assert found == (number >> 32) * count // 2**32


def test_ids_of_names_spread_evenly():
    """512 a shard on average; five standard deviations are 113."""
    sizes = [len(shard) for shard in shards_of([sample_id(f"Paper/{number:06d}.jpg") for number in range(8192)], 16)]
    assert max(abs(size - 512) for size in sizes) < 113


@given(IDS.filter(bool), COUNTS)
def test_the_same_id_twice_is_refused(ids, count):
    with pytest.raises(ValueError, match="same id"):
        assign(np.array([*ids, ids[0]], np.uint64), count)


@given(
    st.integers(0, 10**6),
    st.integers(0, 10),
    st.integers(4, 512),
    st.sampled_from(["jpeg", "raw"]),
    st.integers(1, 2**30),
)
def test_shard_count_is_between_one_and_the_samples(samples, copies, size, encoding, target):
    count = shard_count(samples, copies, size, encoding, target)
    assert 1 <= count <= max(samples, 1)
    assert count <= shard_count(samples, copies, size, "raw", target)
    assert count >= shard_count(samples, copies, size, encoding, 2 * target)


def test_shards_are_about_as_large_as_wanted():
    assert shard_count(10_000, 2, 64, "raw", 4 << 20) == round(30_000 * (64 * 64 * 3 + 200) / (4 << 20)) == 89


TASK = ShardTask("train", 0, 2, 2, ("A/1.jpg", "B/2.jpg"), (0, 1), (11, 22), "/somewhere")
RECIPE = {"size": 32, "seed": 0, "policy": {"ops": [{"op": "Rotate", "range": [0.0, 30.0]}]}}
MADE_WITH = {"opencv": "5.0"}
DIGESTS = [content_digest(b"one"), content_digest(b"two")]


def mark(recipe=RECIPE, made_with=MADE_WITH, classes=("A", "B"), digests=DIGESTS, **changes):
    return fingerprint(recipe, made_with, classes, dataclasses.replace(TASK, **changes), digests)


OTHERS = {
    "size": {"recipe": RECIPE | {"size": 33}},
    "seed": {"recipe": RECIPE | {"seed": 1}},
    "policy": {"recipe": RECIPE | {"policy": {"ops": [{"op": "Rotate", "range": [0.0, 29.0]}]}}},
    "another library": {"made_with": {"opencv": "5.1"}},
    "one more thing": {"recipe": RECIPE | {"new": None}},
    "classes": {"classes": ("A", "C")},
    "order of the classes": {"classes": ("B", "A")},
    "split": {"split": "val"},
    "number": {"index": 1},
    "count": {"count": 3},
    "copies": {"copies": 1},
    "name": {"files": ("A/1.jpg", "B/3.jpg")},
    "label": {"labels": (0, 0)},
    "content": {"digests": [DIGESTS[0], content_digest(b"2")]},
    "order of the contents": {"digests": DIGESTS[::-1]},
    "fewer": {"files": ("A/1.jpg",), "labels": (0,), "digests": DIGESTS[:1]},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_fingerprint_changes_with_each_thing(kind):
    assert mark(**OTHERS[kind]) != mark()


def test_all_of_these_fingerprints_differ():
    assert len({mark(**change) for change in OTHERS.values()} | {mark()}) == len(OTHERS) + 1


def test_a_fingerprint_does_not_know_places_and_order_of_keys():
    assert mark(root="/elsewhere") == mark(recipe=dict(reversed(RECIPE.items()))) == mark()
    assert mark() == mark(classes=["A", "B"])
    assert len(mark()) == 64


def test_a_digest_is_of_the_bytes_whatever_holds_them():
    assert content_digest(np.frombuffer(b"one", np.uint8)) == content_digest(b"one") == DIGESTS[0] != DIGESTS[1]
    assert len(content_digest(b"")) == 16
