"""Rows of a resident array: gathered by torch, or handed to DALI in one piece. On the CPU all of it but the copies."""

import numpy as np
import pytest
import torch

from pipelines.augmentations import OPS, Policy, full_range
from pipelines.engines.base import Job, RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.engines.device import DeviceRows, mirrored
from pipelines.plan import Stage, View, draw

SIZE, COUNT = 20, 37
ALL = Policy.repeated("all", tuple(full_range(op.name) for op in OPS[1:]), turns=2)


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8))


@pytest.fixture(scope="module")
def dali():
    pytest.importorskip("nvidia.dali")
    engine = make_engine("dali", RenderSpec(SIZE), device="cpu", threads=2)
    yield engine
    engine.close()


def plan_of(rows, view, policy=None):
    return draw(policy, rows.astype(np.uint64), seed=5, stage=Stage.LOAD, rounds=(3,), view=view)


def test_gathering_takes_the_rows(images):
    rows = np.array([3, 0, 3, 36])
    taken = DeviceRows(images, rows)
    assert len(taken) == 4
    assert torch.equal(taken.gather(), images[[3, 0, 3, 36]])
    assert np.array_equal(taken[3], images[36].numpy())
    taken.gather().fill_(0)
    assert images[3].any()


@pytest.mark.parametrize("flip", [[0, 0, 0], [1, 0, 1], [1, 1, 1]])
def test_mirrored(images, flip):
    flip = np.array(flip, np.bool_)
    found = mirrored(images[:3], flip)
    for image, before, turned in zip(found, images[:3], flip, strict=True):
        assert torch.equal(image, before.flip(1) if turned else before)


@pytest.mark.parametrize("policy", [None, ALL], ids=["plain", "ops"])
@pytest.mark.parametrize("min_area", [1.0, 0.3])
def test_dali_shows_the_same_as_from_single_images(images, dali, policy, min_area):
    """Plain jobs go through torch, the others through a graph; in turn, so that their order is at stake."""
    rng = np.random.default_rng(1)
    parts = [rng.integers(0, COUNT, count) for count in (8, 5, 8, 64, 1)]
    views = [View(flip=True), View(flip=True, min_area=min_area)]

    def jobs(*, there):
        for number, rows in enumerate(parts):
            plan = plan_of(rows, views[number % 2], policy if number % 2 else None)
            taken = DeviceRows(images, rows)
            yield Job(taken if there else [taken[index] for index in range(len(rows))], plan, checked=True, tag=number)

    ours, theirs = list(dali.stream(jobs(there=True))), list(dali.stream(jobs(there=False)))
    assert [rendered.tag for rendered in ours] == list(range(len(parts)))
    for a, b in zip(ours, theirs, strict=True):
        assert a.pixels.shape == b.pixels.shape
        assert torch.equal(a.pixels, b.pixels)
        assert not a.errors
