"""On a GPU: resident and streamed data show the same pixels, near those of the cpu engine."""

import numpy as np
import pytest
import torch

from pipelines.augmentations import OPS, Policy, full_range
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.loader import Loader, LoaderOptions
from pipelines.plan import View
from pipelines.resident import ResidentOptions, ResidentSource, make_resident
from pipelines.tensors import TensorFormat
from tests.pipelines.small_sources import Pile

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

SIZE, COUNT = 32, 50
ALL = Policy.repeated("14 ops", tuple(full_range(op.name) for op in OPS[1:15]))
TOLERANCE = 2.5
"""Mean distance in levels over all ops; the CPU graph stays below 1 (tests/pipelines/test_engines.py)."""


class Memory:
    """A source of raw images of the loader's own size."""

    classes = ("a", "b")
    labels = np.arange(COUNT, dtype=np.int64) % 2
    ids = np.arange(COUNT, dtype=np.uint64)
    checked = True
    fingerprint = "memory"
    image_size = SIZE

    def __init__(self):
        y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
        waves = [np.stack([np.sin(n + 5 * x), np.cos(n + 7 * y), np.sin(n * x * y)], 2) for n in range(COUNT)]
        self.images = ((np.stack(waves) + 1) * 127).astype(np.uint8)

    def fetch(self, rows):
        return [self.images[row] for row in rows.tolist()]

    def describe(self, row):
        return str(row)


class Stacked(Memory):
    """The same as one array: copied into pinned memory, and from there to the GPU."""

    def fetch(self, rows):
        return Pile(self.images[rows])


@pytest.fixture(scope="module")
def engine():
    pytest.importorskip("nvidia.dali")
    made = make_engine("dali", RenderSpec(SIZE), device="gpu", threads=2)
    yield made
    made.close()


@pytest.mark.parametrize("policy", [None, ALL], ids=["plain", "ops"])
@pytest.mark.parametrize("min_area", [1.0, 0.3])
def test_resident_is_streamed_is_the_cpu_engine(engine, policy, min_area):
    view = View(flip=True, min_area=min_area)
    options = LoaderOptions(batch_size=16, train=True, seed=1, view=view, policy=policy)
    source, stacked = Memory(), Stacked()
    (resident,) = make_resident((source,), engine, view=view, options=ResidentOptions(mode="on"))
    assert isinstance(resident, ResidentSource)
    cpu = make_engine("cpu", RenderSpec(SIZE), threads=2)
    ways = [(resident, engine), (source, engine), (stacked, engine), (source, cpu)]
    for kept, read, copied, host in zip(*(Loader(*way, options) for way in ways), strict=True):
        assert kept.images.is_cuda
        assert torch.equal(kept.images, read.images)
        assert torch.equal(kept.images, copied.images)
        assert torch.equal(kept.labels.cpu(), host.labels)
        distance = (kept.images.cpu().float() - host.images.float()).abs().mean()
        assert distance == 0 if policy is None and min_area == 1.0 else distance < TOLERANCE
    cpu.close()


@pytest.mark.parametrize("policy", [None, ALL], ids=["plain", "ops"])
@pytest.mark.parametrize("kind", ["resident", "stack"])
def test_a_device_that_is_behind_changes_no_pixel(engine, kind, policy):
    """Images are there before DALI or the network reads them, however much is queued in front of them."""
    view = View(flip=True, min_area=0.3 if policy else 1.0)
    options = LoaderOptions(batch_size=16, train=True, seed=2, view=view, policy=policy)
    source = ResidentSource(Memory(), engine) if kind == "resident" else Stacked()
    quiet = [batch.images.cpu() for batch in Loader(source, engine, options)]
    batches = iter(Loader(source, engine, options))
    for expected in quiet:
        torch.cuda._sleep(200_000_000)  # cycles: about a tenth of a second
        assert torch.equal(next(batches).images.cpu(), expected)


def test_formats_stay_on_the_device(engine):
    options = LoaderOptions(batch_size=16, train=False)
    for dtype in ("float32", "float16", "bfloat16"):
        batch = next(iter(Loader(Memory(), engine, options, TensorFormat(dtype))))
        assert batch.images.is_cuda
        assert batch.images.dtype == getattr(torch, dtype)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
