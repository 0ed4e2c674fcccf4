"""Stacks: raw images of one size, copied by threads; the pixels are those of the same images one by one."""

import sys

import numpy as np
import pytest
import torch

from pipelines.augmentations import FILL, OPS, Policy, full_range
from pipelines.engines.base import Job, RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.engines.dali_compat import dali_version
from pipelines.engines.device import DeviceRows
from pipelines.plan import Stage, View, draw
from tests.memory import MIB, resident_bytes
from tests.pipelines.pictures import textured
from tests.pipelines.small_sources import Pile

pytestmark = pytest.mark.timeout(300)
SIZE, COUNT = 32, 45
SIDES = [SIZE, 40, 112]
"""Right already; to be resized; so large that several threads share a batch."""
NAMES = [
    "cpu",
    pytest.param(
        "dali", marks=[pytest.mark.dali, pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")]
    ),
]
OPS14 = Policy.repeated("14 ops", tuple(full_range(op.name) for op in OPS[1:15]))


def images(side, count=COUNT):
    return np.stack([textured(side, side, seed) for seed in range(count)])


def plan_of(policy, min_area, rounds, count=COUNT):
    ids = np.arange(100, 100 + count, dtype=np.uint64)
    view = View(flip=True, min_area=min_area)
    return draw(policy, ids, seed=4, stage=Stage.LOAD, rounds=tuple(range(rounds)), view=view)


@pytest.fixture(scope="module", params=NAMES)
def engine(request):
    made = make_engine(request.param, RenderSpec(SIZE), device="cpu", threads=3)
    yield made
    made.close()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("policy", [None, OPS14], ids=["plain", "ops"])
@pytest.mark.parametrize("min_area", [1.0, 0.3])
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_stack_is_its_images(engine, side, policy, min_area, rounds):
    pile, plan = images(side), plan_of(policy, min_area, rounds)
    stacked, listed = engine.stream([Job(Pile(pile), plan), Job(list(pile), plan)])
    assert plan.flip.any()
    assert stacked.pixels.shape == (rounds, COUNT, SIZE, SIZE, 3)
    assert torch.equal(stacked.pixels, listed.pixels)


@pytest.mark.parametrize("policy", [None, OPS14], ids=["plain", "ops"])
@pytest.mark.parametrize("side", SIDES)
def test_damaged_images_are_grey_and_reported(engine, policy, side):
    pile, plan, damaged = images(side), plan_of(policy, 1.0, 1), {0, 7, 8, COUNT - 1}
    (found,) = engine.stream([Job(Pile(pile, damaged), plan, checked=True)])
    (whole,) = engine.stream([Job(Pile(pile), plan, checked=True)])
    assert found.errors == {index: f"image {index} is damaged" for index in sorted(damaged)}
    for index in range(COUNT):
        if index in damaged:
            assert (found.pixels[0, index] == FILL).all()
        else:
            assert torch.equal(found.pixels[0, index], whole.pixels[0, index])


def test_stacks_lists_and_rows_on_the_device_stay_in_order(engine):
    """Jobs of all kinds in turns, batches of all sizes: each comes back with its own pixels."""
    pile = images(SIZE)
    jobs, expected = [], []
    for number, count in enumerate([3, 45, 1, 17, 2, 40, 5, 9, 30]):
        plan = plan_of(OPS14 if number % 3 else None, 1.0, 1, count)
        rows = np.random.default_rng(number).integers(0, COUNT, count)
        kinds = [Pile(pile[rows]), list(pile[rows])]
        if engine.name == "dali":
            kinds.append(DeviceRows(torch.from_numpy(pile), rows))
        for kind in kinds:
            jobs.append(Job(kind, plan, tag=len(jobs)))
            (alone,) = engine.stream([Job(list(pile[rows]), plan)])
            expected.append(alone.pixels)
    found = list(engine.stream(jobs))
    assert [each.tag for each in found] == list(range(len(jobs)))
    assert all(torch.equal(each.pixels, pixels) for each, pixels in zip(found, expected, strict=True))


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("policy", [None, OPS14], ids=["plain", "ops"])
def test_what_is_made_of_a_stack(engine, policy, rounds):
    pile, plan = images(SIZE), plan_of(policy, 1.0, rounds)
    (shown,) = engine.stream([Job(Pile(pile), plan)])
    (made,) = engine.stream([Job(Pile(pile, {3}), plan, finish=np.copy)])
    assert list(made.errors) == [3]
    assert made.products[3] is None
    for index in set(range(COUNT)) - {3}:
        for number in range(rounds):
            assert np.array_equal(made.products[index][number], shown.pixels[number, index].numpy())


def test_one_image_alone_with_the_strides_of_older_pytorch(engine, monkeypatch):
    """Up to 2.9 it says 1 for the stride of a dimension of one, which DALI 1.34 refuses."""
    real = torch.utils.dlpack.to_dlpack

    def older(tensor):
        pairs = zip(tensor.shape, tensor.stride(), strict=True)
        return real(tensor.as_strided(tensor.shape, [1 if length == 1 else stride for length, stride in pairs]))

    monkeypatch.setattr(torch.utils.dlpack, "to_dlpack", older)
    pile, plan = images(SIZE, 1), plan_of(OPS14, 1.0, 1, 1)
    stacked, listed = engine.stream([Job(Pile(pile), plan), Job(list(pile), plan)])
    assert torch.equal(stacked.pixels, listed.pixels)


def test_an_empty_stack(engine):
    plan = plan_of(None, 1.0, 1, 1).take(slice(0, 0))
    (found,) = engine.stream([Job(Pile(images(SIZE)[:0]), plan)])
    assert found.pixels.shape == (1, 0, SIZE, SIZE, 3)


def test_a_stream_that_is_left_early_leaves_the_engine_usable(engine):
    pile, plan = images(SIZE), plan_of(OPS14, 1.0, 1)
    (expected,) = engine.stream([Job(Pile(pile), plan)])
    for stop in range(4):
        stream = engine.stream([Job(Pile(pile[::-1].copy()), plan) for _ in range(6)])
        for _ in range(stop):
            next(stream)
        stream.close()
        (found,) = engine.stream([Job(Pile(pile), plan)])
        assert torch.equal(found.pixels, expected.pixels)


def test_what_a_stack_raises_comes_out(engine):
    class Broken(Pile):
        def copy_to(self, start, flip, out):
            raise OSError("the disk is gone")

        def __getitem__(self, index):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(engine.stream([Job(Broken(images(SIZE)), plan_of(None, 1.0, 1))]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counted in /proc")
@pytest.mark.parametrize("policy", [None, OPS14], ids=["plain", "ops"])
def test_memory_stays_where_it_is_though_the_caller_keeps_something_small_of_each_batch(engine, policy):
    count = 1024
    pile, plan = images(SIZE, 8)[np.arange(count) % 8], plan_of(policy, 1.0, 1, count)
    stack, kept, seen = Pile(pile), [], []
    for number, found in enumerate(engine.stream(Job(stack, plan) for _ in range(150))):
        kept.append(found.pixels[0, :16, 0, 0, 0].clone())
        if number in (20, 149):
            seen.append(resident_bytes())
    assert seen[1] - seen[0] < 100 * MIB, "each batch has 3 MiB"
