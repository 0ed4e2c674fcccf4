"""Which sample goes where depends on its id alone, and a fingerprint covers everything that decides bytes."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment_cache.building.shard_plan import (
    FEW_ROWS,
    FEW_SHARDS,
    ShardTask,
    assign,
    content_digest,
    fingerprint,
    listing_checksum,
    shard_count,
)
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


@given(st.integers(0, 10**6), st.integers(4, 512), st.sampled_from(["jpeg", "raw"]), st.floats(10, 2**30).map(int))
def test_shard_count_is_a_power_of_two_up_to_the_rows(rows, size, encoding, target):
    count = shard_count(rows, size, encoding, target)
    assert count.bit_count() == 1
    assert 1 <= count < max(2 * rows, 2)
    assert count <= shard_count(rows, size, "raw", target)
    assert count >= shard_count(rows, size, encoding, 2 * target)
    assert count <= shard_count(rows + 1, size, encoding, target)


@given(st.integers(100_000, 10**7), st.integers(32, 512), st.sampled_from([("jpeg", 0.4), ("raw", 3.0)]))
def test_shards_are_about_as_large_as_wanted(rows, size, encoding):
    """From 0.75 to 1.5 times the target, where the data fills more shards than the least number."""
    target = 4 << 20
    in_all = rows * (size * size * encoding[1] + 200)
    count = shard_count(rows, size, encoding[0], target)
    if count > FEW_SHARDS:
        assert 0.75 * target <= in_all / count <= 1.5 * target


@pytest.mark.parametrize(
    ("rows", "count"), [(0, 1), (1, 1), (384, 1), (385, 2), (768, 2), (769, 4), (3072, 8), (3073, 16), (10**6, 16)]
)
def test_small_splits_are_cut_for_several_processes(rows, count):
    """At least 256 rows a shard, give or take half, and never more than 16 shards for this reason alone."""
    assert (FEW_SHARDS, FEW_ROWS) == (16, 256)
    assert shard_count(rows, 4, "raw", 1 << 40) == count


@given(IDS.filter(bool), st.integers(0, 5))
def test_twice_as_many_shards_are_the_same_shards_halved(ids, doublings):
    count = 2**doublings
    halves = shards_of(ids, 2 * count)
    assert shards_of(ids, count) == [halves[2 * index] + halves[2 * index + 1] for index in range(count)]


TASK = ShardTask(
    split="train",
    index=0,
    count=2,
    files=("A/1.jpg", "B/2.jpg"),
    labels=np.array([0, 1], np.int64),
    ids=np.array([11, 22], np.uint64),
    copies=np.array([2, 2], np.int16),
    root="/somewhere",
)
RECIPE = {"size": 32, "seed": 0, "policy": {"ops": [{"op": "Rotate", "range": [0.0, 30.0]}]}}
DIGESTS = [content_digest(b"one"), content_digest(b"two")]


def listing(recipe=RECIPE, classes=("A", "B"), **changes):
    return listing_checksum(recipe, classes, dataclasses.replace(TASK, **changes))


def mark(digests=DIGESTS, **changes):
    return fingerprint(listing(**changes), digests)


OTHERS = {
    "size": {"recipe": RECIPE | {"size": 33}},
    "seed": {"recipe": RECIPE | {"seed": 1}},
    "policy": {"recipe": RECIPE | {"policy": {"ops": [{"op": "Rotate", "range": [0.0, 29.0]}]}}},
    "one more thing": {"recipe": RECIPE | {"new": None}},
    "classes": {"classes": ("A", "C")},
    "order of the classes": {"classes": ("B", "A")},
    "split": {"split": "val"},
    "number": {"index": 1},
    "count": {"count": 3},
    "copies": {"copies": np.array([2, 1], np.int16)},
    "order of the copies": {"copies": np.array([1, 2], np.int16)},
    "name": {"files": ("A/1.jpg", "B/3.jpg")},
    "label": {"labels": np.array([0, 0])},
    "fewer": {"files": ("A/1.jpg",), "labels": np.array([0]), "copies": np.array([2], np.int16)},
}
CONTENTS = {
    "content": {"digests": [DIGESTS[0], content_digest(b"2")]},
    "order of the contents": {"digests": DIGESTS[::-1]},
    "fewer contents": {"digests": DIGESTS[:1]},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_listing_changes_with_each_thing_but_the_contents(kind):
    assert listing(**OTHERS[kind]) != listing()


@pytest.mark.parametrize("kind", [*OTHERS, *CONTENTS])
def test_a_fingerprint_changes_with_each_thing(kind):
    assert mark(**(OTHERS | CONTENTS)[kind]) != mark()


def test_all_of_these_fingerprints_differ():
    everything = OTHERS | CONTENTS
    assert len({mark(**change) for change in everything.values()} | {mark()}) == len(everything) + 1


def test_a_fingerprint_does_not_know_places_and_order_of_keys():
    assert mark(root="/elsewhere") == mark(recipe=dict(reversed(RECIPE.items()))) == mark()
    assert mark() == mark(classes=["A", "B"])
    assert len(mark()) == len(listing()) == 64


def test_a_digest_is_the_sha256_of_the_bytes_whatever_holds_them():
    assert content_digest(np.frombuffer(b"one", np.uint8)) == content_digest(b"one") == DIGESTS[0] != DIGESTS[1]
    assert content_digest(b"one") == hashlib.sha256(b"one").digest()
    assert content_digest(np.empty(0, np.uint8)) == content_digest(b"")
