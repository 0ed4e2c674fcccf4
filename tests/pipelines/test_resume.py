"""Any number of processes, stopped anywhere and continued by any other number, see the epoch that one process sees."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import loader as loader_module
from pipelines.augmentations import OPS, Policy, full_range
from pipelines.engines.base import RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.errors import UsageError
from pipelines.mix import MixOptions
from pipelines.plan import View
from pipelines.resident import ResidentSource
from pipelines.sources import Subset
from tests.pipelines.small_sources import MemorySource, loaders, pixels_by_row, png_folder, rows_of, same, steps

SIZE = 13
COUNT = 43
WORLDS = (1, 2, 3, 8)
VIEW = View(flip=True, min_area=0.4)
POLICY = Policy.repeated("all", tuple(full_range(op.name) for op in OPS[1:]), turns=2)
MIX = MixOptions(mixup=1.0, cutmix=1.0, probability=0.8)
RECIPES = {
    "plain": {"train": True},
    "augmented": {"train": True, "view": VIEW, "policy": POLICY},
    "balanced": {"train": True, "order": "balanced", "view": VIEW, "policy": POLICY},
    "mixed": {"train": True, "view": VIEW, "mix": MIX, "dtype": "float32"},
    "all": {"train": True, "order": "balanced", "view": VIEW, "policy": POLICY, "mix": MIX, "dtype": "float32"},
    "evaluation": {"train": False, "view": VIEW, "policy": POLICY},
    "mixed evaluation": {"train": False, "mix": MIX, "dtype": "float32"},
}
STATE_BYTES = 200


@pytest.fixture(scope="module")
def engine():
    made = CpuEngine(RenderSpec(SIZE), threads=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def sources(engine, tmp_path_factory):
    """Kind → the same samples from elsewhere."""
    folder = png_folder(tmp_path_factory.mktemp("images"), COUNT)
    return {"folder": folder, "memory": MemorySource(COUNT), "resident": ResidentSource(folder, engine)}


def options_of(recipe, batch_size, **more):
    return {"batch_size": batch_size, "seed": 5, "epoch": 3} | RECIPES[recipe] | more


def moved(ranks, source, engine, world, **options):
    """Loaders for another number of ranks that go on where these stand."""
    states = [rank.state_dict() for rank in ranks]
    assert all(state == states[0] for state in states), "the state is the same on every rank"
    text = json.dumps(states[0])
    assert len(text) < STATE_BYTES
    assert all(type(value) is int for value in states[0].values())
    made = loaders(source, engine, world, **{**options, "epoch": 0})
    for loader in made:
        loader.load_state_dict(json.loads(text))
    return made


# --- the number of ranks


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_order_and_pixels_do_not_depend_on_the_number_of_ranks(sources, engine, data):
    recipe, world = data.draw(st.sampled_from(sorted(RECIPES))), data.draw(st.sampled_from(WORLDS[1:]))
    source = sources[data.draw(st.sampled_from(["folder", "memory", "resident"]))]
    if recipe not in ("plain", "evaluation") and "view" in RECIPES[recipe] and isinstance(source, ResidentSource):
        source = sources["folder"]  # a resident source is not meant for crops of other sizes
    least = world * (2 if "mix" in RECIPES[recipe] else 1) if RECIPES[recipe]["train"] else 1
    batch_size = data.draw(st.integers(least, 24))
    length = data.draw(st.integers(batch_size if RECIPES[recipe]["train"] else 1, COUNT))
    rows = np.random.default_rng(data.draw(st.integers(0, 1000))).permutation(COUNT)[:length]
    part = Subset(source, rows)
    options = options_of(recipe, batch_size, seed=data.draw(st.integers(0, 2**64 - 1)), epoch=data.draw(epochs))
    alone = steps(loaders(part, engine, 1, **options))
    assert len(alone) == (length // batch_size if RECIPES[recipe]["train"] else -(-length // batch_size))
    assert same(steps(loaders(part, engine, world, **options)), alone)


epochs = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize(("world", "dtype"), [(2, "float32"), (3, "float32"), (8, "float16"), (3, "bfloat16")])
def test_float_formats_are_equal_to_the_last_bit(sources, engine, recipe, world, dtype):
    options = options_of(recipe, 17, dtype=dtype)
    alone = steps(loaders(sources["memory"], engine, 1, **options))
    assert same(steps(loaders(sources["memory"], engine, world, **options)), alone)


# --- every position


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [("memory", recipe) for recipe in sorted(RECIPES)]
    + [(kind, recipe) for kind in ("folder", "resident") for recipe in ("plain", "all", "evaluation")],
)
def test_one_process_two_processes_one_process(sources, engine, recipe, kind):
    source, options = sources[kind], options_of(recipe, 8)
    whole = steps(loaders(source, engine, 1, **options))
    for first in range(len(whole) + 1):
        for second in range(first, len(whole) + 1):
            one = loaders(source, engine, 1, **options)
            found = steps(one, first)
            two = moved(one, source, engine, 2, **options)
            found += steps(two, second - first)
            found += steps(moved(two, source, engine, 1, **options))
            assert same(found, whole), f"stopped after {first} and {second}"


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (3, 2), (2, 3), (8, 3)])
@pytest.mark.parametrize("recipe", ["all", "evaluation", "balanced"])
def test_other_numbers_of_ranks(sources, engine, recipe, before, after):
    source, options = sources["memory"], options_of(recipe, 16)
    whole = steps(loaders(source, engine, 1, **options))
    for stop in range(len(whole) + 1):
        first = loaders(source, engine, before, **options)
        found = steps(first, stop) + steps(moved(first, source, engine, after, **options))
        assert same(found, whole), f"stopped after {stop}"


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_another_batch_size_loses_and_repeats_nothing(sources, engine, data):
    recipe = data.draw(st.sampled_from(["augmented", "balanced", "evaluation"]))
    train, source = RECIPES[recipe]["train"], sources["memory"]
    sizes = [data.draw(st.integers(3, 12)) for _ in range(3)]
    whole = steps(loaders(source, engine, 1, **options_of(recipe, 1)))
    ranks, found = loaders(source, engine, 1, **options_of(recipe, sizes[0])), []
    for size in sizes[1:]:
        found += steps(ranks, data.draw(st.integers(0, 4)))
        position = len(rows_of(found))
        ranks = moved(ranks, source, engine, data.draw(st.sampled_from([1, 2, 3])), **options_of(recipe, size))
        left = (COUNT - position) // size if train else -(-(COUNT - position) // size)
        assert [rank.steps_left for rank in ranks] == [left] * len(ranks)
    last = steps(ranks)
    assert len(last) == left
    found += last
    rows = rows_of(found)
    assert rows == rows_of(whole)[: len(rows)]
    assert len(rows) > COUNT - size if train else len(rows) == COUNT
    images = torch.cat([step[1] for step in found])
    assert torch.equal(images, torch.cat([step[1] for step in whole])[: len(images)])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("batch_size", [4, 8, 11, 100])
def test_a_continued_evaluation_counts_each_sample_once(sources, engine, world, batch_size):
    options = {"batch_size": batch_size, "train": False}
    whole = pixels_by_row(steps(loaders(sources["memory"], engine, 1, **options)))
    for stop in range(-(-COUNT // batch_size) + 1):
        first = loaders(sources["memory"], engine, world, **options)
        found = steps(first, stop)
        found += steps(moved(first, sources["memory"], engine, 1 if world > 1 else 8, **options))
        seen = pixels_by_row(found)
        assert list(seen) == list(range(COUNT))
        assert all(torch.equal(seen[row], whole[row]) for row in seen)


def test_the_tail_of_a_training_epoch_is_not_made_up(sources, engine):
    """43 samples, 8 at a time: three are left out, whether the epoch was disturbed or not."""
    options = options_of("plain", 8)
    (first,) = loaders(sources["memory"], engine, 1, **options)
    assert len(list(first)) == 5
    (after,) = moved([first], sources["memory"], engine, 1, **options)
    assert after.steps_left == 0
    assert list(after) == []
    assert after.steps_left == 5


# --- what the state says


def test_the_state_after_each_batch(sources, engine):
    (loader,) = loaders(sources["memory"], engine, 1, **options_of("plain", 8))
    assert loader.state_dict() == {"epoch": 3, "position": 0, "seed": 5, "samples": COUNT, "order": 1}
    assert loader.steps_left == len(loader) == 5
    for number, _ in enumerate(loader, 1):
        assert loader.state_dict() == {"epoch": 3, "position": 8 * number, "seed": 5, "samples": COUNT, "order": 1}


def test_the_largest_state_is_small(engine):
    (loader,) = loaders(MemorySource(9), engine, 1, batch_size=2, train=True, seed=2**64 - 1, epoch=2**32 - 1)
    next(iter(loader))
    assert len(json.dumps(loader.state_dict())) < STATE_BYTES


def test_what_was_read_ahead_does_not_count(sources, engine):
    (loader,) = loaders(sources["memory"], engine, 1, **options_of("plain", 4))
    running = iter(loader)
    next(running)
    assert loader.state_dict()["position"] == 4, "the engine has been given three batches"
    (other,) = moved([loader], sources["memory"], engine, 1, **options_of("plain", 4))
    assert next(iter(other)).rows.tolist() == next(running).rows.tolist()


@pytest.mark.parametrize(
    ("change", "words"), [({"seed": 6}, "another seed"), ({"samples": COUNT + 1}, "data set of another size")]
)
def test_a_foreign_state_is_refused_and_changes_nothing(sources, engine, change, words):
    (loader,) = loaders(sources["memory"], engine, 1, **options_of("plain", 8))
    before = loader.state_dict()
    with pytest.raises(UsageError, match=words):
        loader.load_state_dict({**before, "epoch": 7, "position": 16} | change)
    assert loader.state_dict() == before
    assert loader.steps_left == 5


@pytest.mark.parametrize("position", [-8, COUNT + 1, 10**9])
def test_a_position_outside_of_the_epoch_is_refused(sources, engine, position):
    (loader,) = loaders(sources["memory"], engine, 1, **options_of("plain", 8))
    with pytest.raises(UsageError):
        loader.load_state_dict({**loader.state_dict(), "position": position})


@pytest.mark.parametrize("name", ["epoch", "position", "seed", "samples"])
def test_a_state_of_something_else_is_refused(sources, engine, name):
    (loader,) = loaders(sources["memory"], engine, 1, **options_of("plain", 8))
    state = loader.state_dict()
    del state[name]
    with pytest.raises(UsageError):
        loader.load_state_dict(state)


def test_a_state_of_another_order_is_refused(sources, engine):
    (balanced,) = loaders(sources["memory"], engine, 1, **options_of("balanced", 8))
    next(iter(balanced))
    (shuffled,) = loaders(sources["memory"], engine, 1, **options_of("plain", 8))
    with pytest.raises(UsageError):
        shuffled.load_state_dict(balanced.state_dict())


# --- epochs


def test_the_same_epoch_keeps_the_position_and_another_one_does_not(sources, engine):
    source, options = sources["memory"], options_of("plain", 8)
    (first,) = loaders(source, engine, 1, **options)
    whole = steps([first])
    state = {**first.state_dict(), "position": 16}
    first.load_state_dict(state)
    first.set_epoch(3)
    assert (first.steps_left, first.state_dict()) == (3, state)
    assert same(steps([first]), whole[2:])
    first.load_state_dict(state)
    first.set_epoch(4)
    assert (first.steps_left, first.state_dict()["position"]) == (5, 0)
    assert same(steps([first]), steps(loaders(source, engine, 1, **options | {"epoch": 4})))


def test_after_a_continued_epoch_the_next_one_is_whole(sources, engine):
    source, options = sources["memory"], options_of("augmented", 8)
    (loader,) = loaders(source, engine, 1, **options)
    loader.load_state_dict({**loader.state_dict(), "position": 24})
    assert len(steps([loader])) == 2
    for epoch in (4, 5):
        loader.set_epoch(epoch)
        assert same(steps([loader]), steps(loaders(source, engine, 1, **options | {"epoch": epoch})))


def test_an_iteration_that_was_left_begins_again_from_the_start(sources, engine):
    (loader,) = loaders(sources["memory"], engine, 1, **options_of("augmented", 8))
    whole = steps([loader])
    assert same(steps([loader], 2), whole[:2])
    assert loader.state_dict()["position"] == 16
    assert same(steps([loader]), whole)
    loader.load_state_dict({**loader.state_dict(), "position": 8})
    assert same(steps([loader], 1), whole[1:2])
    assert same(steps([loader]), whole), "not from where it was once loaded"


def test_set_epoch_does_not_reach_into_a_long_iteration(engine, monkeypatch):
    """The plan is drawn for many steps at once: what comes after the first of these must not see the new epoch."""
    monkeypatch.setattr(loader_module, "STEPS_PER_DRAW", 2)
    source, options = MemorySource(30), {"batch_size": 2, "train": True, "view": View(flip=True)}
    whole = steps(loaders(source, engine, 1, **options))
    (loader,) = loaders(source, engine, 1, **options)
    running = iter(loader)
    found = [next(running)]
    loader.set_epoch(1)
    found += running
    assert all(torch.equal(batch.images, step[1]) for batch, step in zip(found, whole, strict=True))


def test_the_mix_of_a_running_iteration_is_that_of_its_epoch(engine, monkeypatch):
    monkeypatch.setattr(loader_module, "STEPS_PER_DRAW", 2)
    source, options = MemorySource(30), {"batch_size": 2, "train": True, "mix": MIX, "dtype": "float32"}
    whole = steps(loaders(source, engine, 1, **options))
    (loader,) = loaders(source, engine, 1, **options)
    running = iter(loader)
    found = [next(running)]
    loader.set_epoch(1)
    found += running
    assert [batch.mix.share for batch in found] == [step[4] for step in whole]


def test_a_running_iteration_does_not_move_the_position_in_another_epoch(sources, engine):
    (loader,) = loaders(sources["memory"], engine, 1, **options_of("plain", 8))
    running = iter(loader)
    next(running)
    loader.set_epoch(9)
    next(running)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) in ((9, 0), (3, 16)), "nothing of epoch 9 has been handed out"


def test_batches_read_in_large_and_small_draws_are_the_same(sources, engine, monkeypatch):
    options = options_of("all", 4)
    whole = steps(loaders(sources["memory"], engine, 1, **options))
    for drawn in (1, 3, 10**6):
        monkeypatch.setattr(loader_module, "STEPS_PER_DRAW", drawn)
        assert same(steps(loaders(sources["memory"], engine, 2, **options)), whole)


@pytest.mark.parametrize(("batch_size", "world"), [(3, 2), (1, 1), (5, 3)])
def test_a_pair_for_each_process(sources, engine, batch_size, world):
    """A rank without a sample of its own would train on one that counts nowhere."""
    with pytest.raises(ValueError, match="batch_size"):
        loaders(sources["memory"], engine, world, batch_size=batch_size, train=True, mix=MIX, dtype="float32")
