"""Damaged samples are left out and reported, or named and fatal; whatever else happens, nothing hangs."""

from collections import deque
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.engines.dali_compat import dali_version
from pipelines.errors import CorruptSampleError
from pipelines.mix import MixOptions
from pipelines.plan import View
from pipelines.sources import Lazy
from tests.pipelines.small_sources import MemorySource, loaders, pixels_by_row, png_folder, rows_of, same, steps

COUNT = 24
VIEW = View(flip=True, min_area=0.4)
MIX = MixOptions(mixup=1.0, cutmix=1.0)
pytestmark = pytest.mark.timeout(600)
needs_dali = [pytest.mark.dali, pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")]
ENGINES = ["cpu", "inline", pytest.param("dali", marks=needs_dali)]


@pytest.fixture(scope="module")
def engines():
    made = {}

    def get(name):
        if name not in made:
            inline = {"threads": 1, "inline": True} if name == "inline" else {"threads": 2}
            made[name] = make_engine("dali" if name == "dali" else "cpu", RenderSpec(14), device="cpu", **inline)
        return made[name]

    yield get
    for engine in made.values():
        engine.close()


def skipping(source, engine, world=1, **options):
    return loaders(source, engine, world, **{"batch_size": 4, "train": True, "damaged": "skip"} | options)


# --- left out


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_all_other_samples_are_as_without_the_damaged(engines, data):
    damaged = data.draw(st.sets(st.integers(0, COUNT - 1), max_size=COUNT))
    world, train = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.booleans())
    batch_size = data.draw(st.integers(world if train else 1, COUNT))
    options = {"batch_size": batch_size, "train": train, "view": VIEW, "epoch": data.draw(st.integers(0, 9))}
    ranks = skipping(MemorySource(COUNT, damaged=damaged), engines("cpu"), world, **options)
    found = steps(ranks)
    whole = steps(skipping(MemorySource(COUNT), engines("cpu"), 1, **options))
    assert len(found) == len(whole)
    assert rows_of(found) == [row for row in rows_of(whole) if row not in damaged]
    seen, expected = pixels_by_row(found), pixels_by_row(whole)
    assert all(torch.equal(seen[row], expected[row]) for row in seen)
    listed = sorted({skipped.row for rank in ranks for skipped in rank.skipped})
    assert listed == sorted(damaged & set(rows_of(whole)))
    for rank in ranks:
        assert rank.stats.skipped == len(rank.skipped)
    if train:
        assert sum(len(rank.skipped) for rank in ranks) == len(listed), "each is listed once"


def test_a_rank_without_work_does_not_list_what_others_skip(engines):
    """9 samples, 8 at a time, in an evaluation by 2: the last one is read by both, and counts for one."""
    ranks = skipping(MemorySource(9, damaged=[8]), engines("cpu"), 2, batch_size=8, train=False)
    steps(ranks)
    assert sum(len(rank.skipped) for rank in ranks) == 1


def test_a_sample_that_is_drawn_often_is_listed_once(engines):
    (rank,) = skipping(MemorySource(28, damaged=[6]), engines("cpu"), order="balanced")
    steps([rank])
    assert [skipped.row for skipped in rank.skipped] == [6]


@pytest.mark.parametrize("name", ENGINES)
def test_each_epoch_lists_them_with_a_place_and_a_reason(engines, name):
    (rank,) = skipping(MemorySource(COUNT, damaged=[3, 11]), engines(name))
    for epoch in range(3):
        rank.set_epoch(epoch)
        steps([rank])
        assert len(rank.skipped) == 2 * (epoch + 1)
        latest = sorted(rank.skipped[-2:])
        assert latest == [(row, f"memory, row {row}", f"sample {row} is damaged") for row in (3, 11)]


@pytest.mark.parametrize("name", ENGINES)
def test_files_of_all_kinds(engines, name, tmp_path):
    source = png_folder(tmp_path, COUNT)
    whole = pixels_by_row(steps(skipping(source, engines(name), train=False)))
    broken = {1: b"", 4: b"<html>404</html>", 9: None, 15: "half", 23: b"\x89PNG\r\n\x1a\n"}
    for row, data in broken.items():
        path = tmp_path / source.files[row]
        good = path.read_bytes()
        path.unlink()
        if data is not None:
            path.write_bytes(good[: len(good) // 2] if data == "half" else data)
    (rank,) = skipping(source, engines(name), train=False)
    found = pixels_by_row(steps([rank]))
    assert sorted(found) == [row for row in range(COUNT) if row not in broken]
    assert all(torch.equal(found[row], whole[row]) for row in found)
    assert [(skipped.row, skipped.where) for skipped in rank.skipped] == [
        (row, str(tmp_path / source.files[row])) for row in broken
    ]
    assert all(skipped.reason for skipped in rank.skipped)


@pytest.mark.parametrize("name", ENGINES)
def test_batches_of_one_sample(engines, name):
    (rank,) = skipping(MemorySource(6, damaged=[0, 4, 5]), engines(name), batch_size=1, train=False)
    found = list(rank)
    assert [batch.real for batch in found] == [0, 1, 1, 1, 0, 0]
    assert [batch.rows.tolist() for batch in found] == [[row] for row in range(6)]
    assert all(batch.images.shape == (1, 3, 14, 14) and len(batch.labels) == 1 for batch in found)
    assert rank.stats.images == 3


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", ENGINES)
def test_a_batch_with_nothing_left(engines, name, world):
    """One rank has only damaged samples in its second batch; it keeps step with a single row that does not count."""
    source = MemorySource(12, damaged=[6, 7] if world == 2 else [4, 5, 6, 7])
    ranks = skipping(source, engines(name), world, train=False)
    found = [list(rank) for rank in ranks]
    assert [len(batches) for batches in found] == [3] * world
    empty = found[-1][1]
    assert (empty.real, len(empty.rows), tuple(empty.images.shape), len(empty.labels)) == (0, 1, (1, 3, 14, 14), 1)
    rows = [row for step in zip(*found, strict=True) for batch in step for row in batch.rows[: batch.real].tolist()]
    assert rows == [row for row in range(12) if row not in source.damaged]


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_can_be_read_at_all(engines, name):
    (rank,) = skipping(MemorySource(COUNT, damaged=range(COUNT)), engines(name))
    assert [batch.real for batch in rank] == [0] * 6
    assert sorted(skipped.row for skipped in rank.skipped) == list(range(COUNT))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_who_loses_the_partner_is_not_mixed(engines, world):
    damaged = {2, 7, 8, 9, 20}
    options = {"batch_size": 8, "dtype": "float32", "view": VIEW}
    source = MemorySource(COUNT, damaged=damaged)
    plain = pixels_by_row(steps(skipping(MemorySource(COUNT), engines("cpu"), **options)))
    whole = steps(skipping(MemorySource(COUNT), engines("cpu"), mix=MIX, **options))
    found = steps(skipping(source, engines("cpu"), world, mix=MIX, **options))
    for step, expected in zip(found, whole, strict=True):
        assert step[4:] == expected[4:]
        wanted = {
            row: (image, partner) for row, image, partner in zip(expected[0], expected[1], expected[3], strict=True)
        }
        assert step[0] == [row for row in expected[0] if row not in damaged]
        for row, image, partner in zip(step[0], step[1], step[3], strict=True):
            if wanted[row][1] in damaged:
                assert partner == row
                assert torch.equal(image, plain[row])
            else:
                assert partner == wanted[row][1]
                assert torch.equal(image, wanted[row][0])


def test_two_images_stay_where_all_but_one_were_skipped(engines):
    """Batch normalisation has no statistics of one image."""
    for damaged, real in ((range(1, 8), 1), (range(8), 0)):
        source = MemorySource(8, damaged=damaged)
        (rank,) = skipping(source, engines("cpu"), batch_size=8, mix=MIX, dtype="float32")
        (batch,) = rank
        assert (len(batch.images), len(batch.rows), batch.real) == (2, 2, real)
        assert batch.mix.partners.tolist() == [0, 1]
        assert batch.rows[:real].tolist() == [0][:real]
        (alone,) = skipping(source, engines("cpu"), batch_size=8, train=False)
        assert [len(batch.images) for batch in alone] == [1]


def test_what_was_skipped_counts_for_the_position(engines):
    source = MemorySource(COUNT, damaged=[1, 2, 3, 4, 5])
    whole = steps(skipping(source, engines("cpu"), batch_size=5))
    for stop in range(5):
        ranks = skipping(source, engines("cpu"), 2, batch_size=5)
        found = steps(ranks, stop)
        assert ranks[0].state_dict() == ranks[1].state_dict()
        (after,) = skipping(source, engines("cpu"), batch_size=5)
        after.load_state_dict(ranks[0].state_dict())
        assert same(found + steps([after]), whole)


# --- fatal


@pytest.mark.parametrize("name", ENGINES)
def test_it_raises_in_the_batch_of_the_damaged_and_names_it(engines, name):
    (rank,) = skipping(MemorySource(COUNT, damaged=[9]), engines(name), train=False, damaged="raise")
    running = iter(rank)
    assert [next(running).rows.tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(CorruptSampleError, match="memory, row 9: sample 9 is damaged"):
        next(running)
    assert next(running, None) is None
    assert rank.state_dict()["position"] == 8, "the batch was not handed out"
    assert rank.skipped == []


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("row", [0, 7, COUNT - 1])
@pytest.mark.parametrize("name", ENGINES)
def test_what_nobody_expects_arrives_and_the_engine_goes_on(engines, name, row, world):
    engine = engines(name)
    good = steps(loaders(MemorySource(COUNT), engine, batch_size=4, train=False))
    for damaged in ("raise", "skip"):
        ranks = loaders(MemorySource(COUNT, exploding=[row]), engine, world, batch_size=4, train=False, damaged=damaged)
        with pytest.raises(RuntimeError, match=f"row {row} explodes"):
            deque(chain(*ranks), maxlen=0)
        assert same(steps(loaders(MemorySource(COUNT), engine, batch_size=4, train=False)), good)


class Refusing(MemorySource):
    """`fetch` itself fails, not the reading of one image."""

    def fetch(self, rows):
        if 9 in rows:
            raise OSError("no such disk")
        return super().fetch(rows)


class Short(MemorySource):
    """Says that it has as many images as were asked for, and has fewer."""

    def fetch(self, rows):
        return Lazy(lambda row: self.images[row + 1000], rows)


@pytest.mark.parametrize(("kind", "error"), [(Refusing, OSError), (Short, IndexError)])
@pytest.mark.parametrize("name", ENGINES)
def test_sources_that_break_their_promise(engines, name, kind, error):
    engine = engines(name)
    (rank,) = skipping(kind(COUNT), engine, train=False)
    with pytest.raises(error):
        list(rank)
    assert len(list(skipping(MemorySource(COUNT), engine, train=False)[0])) == 6


@pytest.mark.parametrize("name", ENGINES)
def test_two_iterators_when_one_fails(engines, name):
    """Training and validation share an engine: the error of one is not the other's."""
    engine = engines(name)
    (fine,) = skipping(MemorySource(COUNT), engine, train=False)
    (failing,) = skipping(MemorySource(COUNT, exploding=[9]), engine, train=False)
    expected, running, other = steps([fine]), iter(fine), iter(failing)
    found = [next(running), next(running)]
    with pytest.raises(RuntimeError, match="row 9 explodes"):
        list(other)
    found += running
    assert len(found) == len(expected)
    assert all(torch.equal(batch.images, step[1]) for batch, step in zip(found, expected, strict=True))
