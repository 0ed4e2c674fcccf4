"""A cache in memory shows the same pixels as one that is read anew, crops included."""

from itertools import pairwise

import numpy as np
import pytest

from augment_cache.format.source import CacheSource
from pipelines import resident
from pipelines.augmentations import OPS, Policy, full_range
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.engines.dali_compat import dali_version
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.mix import MixOptions
from pipelines.plan import View
from pipelines.resident import ResidentOptions, ResidentSource, make_resident
from pipelines.sources import Subset
from pipelines.subsets import fold
from tests.augment_cache.test_bad_cache import flip, place
from tests.pipelines.small_sources import loaders, rows_of, same, steps

SIZE = 32
CROP = View(flip=True, min_area=0.3)
POLICY = Policy.repeated("all", tuple(full_range(op.name) for op in OPS[1:]), turns=2)
needs_dali = [pytest.mark.dali, pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")]
KINDS = {"jpeg": "cache", "raw": "raw_cache"}
RECIPES = {
    "evaluation": {"train": False},
    "flipped": {"train": True, "view": View(flip=True)},
    "augmented": {"train": True, "view": CROP, "policy": POLICY},
    "mixed": {"train": True, "view": CROP, "mix": MixOptions(mixup=1.0, cutmix=1.0), "dtype": "float32"},
    "half": {"train": True, "order": "balanced", "view": CROP, "policy": POLICY, "dtype": "float16"},
}


@pytest.fixture(scope="module", params=["cpu", pytest.param("dali", marks=needs_dali)])
def engine(request):
    made = make_engine(request.param, RenderSpec(SIZE), device="cpu", threads=2)
    yield made
    made.close()


@pytest.fixture(params=sorted(KINDS))
def folder(request):
    return request.getfixturevalue(KINDS[request.param])


@pytest.mark.parametrize("copies", [None, 0])
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_resident_is_streamed(engine, folder, recipe, copies):
    source, options = CacheSource(folder, "train", copies=copies), {"batch_size": 10, "seed": 1, "epoch": 4}
    streamed = steps(loaders(source, engine, 1, **options, **RECIPES[recipe]))
    assert len(streamed) >= 2
    kept = ResidentSource(source, engine)
    for world in (1, 2):
        assert same(steps(loaders(kept, engine, world, **options, **RECIPES[recipe])), streamed)


def test_jpeg_and_raw_see_the_same_samples_in_the_same_order(cache, raw_cache, engine):
    jpeg, raw = (CacheSource(folder, "train") for folder in (cache, raw_cache))
    for options in RECIPES.values():
        found = [steps(loaders(each, engine, 1, batch_size=10, **options)) for each in (jpeg, raw)]
        assert [step[0] for step in found[0]] == [step[0] for step in found[1]]


def test_a_cache_of_this_size_may_be_cropped(engine, folder, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda *_: 2**30)
    source = CacheSource(folder, "train")
    (kept,) = make_resident([source], engine, view=CROP, options=ResidentOptions(mode="on"))
    assert isinstance(kept, ResidentSource)
    other = make_engine("cpu", RenderSpec(SIZE - 8))
    assert make_resident([source], other, view=CROP) == [source]
    with pytest.raises(UsageError, match=f"images that are not {SIZE - 8} x {SIZE - 8} px"):
        make_resident([source], other, view=CROP, options=ResidentOptions(mode="on"))
    other.close()


def test_a_fold_of_a_cache_may_be_cropped_too(engine, cache, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda *_: 2**30)
    source = CacheSource(cache, "train")
    kept, _ = fold(source.sample_ids, source.labels, number=0, of=3, seed=0)
    (part,) = make_resident([Subset(source, kept)], engine, view=CROP)
    assert isinstance(part, ResidentSource)


@pytest.mark.parametrize("encoding", sorted(KINDS))
def test_damaged_rows_are_remembered(request, engine, encoding):
    folder = request.getfixturevalue("own_" + KINDS[encoding])
    shard = sorted(folder.glob("train/*.arrow"))[0]
    flip(shard, place(shard, "label", 2)[0], 0)
    flip(shard, place(shard, "checksum", 2)[0])
    source = CacheSource(folder, "train")
    kept = ResidentSource(source, engine)
    options = {"batch_size": 10, "train": True, "view": CROP, "damaged": "skip"}
    streamed, found = loaders(source, engine, **options), loaders(kept, engine, **options)
    assert same(steps(found), steps(streamed))
    assert found[0].skipped == streamed[0].skipped
    (skipped,) = found[0].skipped
    assert skipped.row == 2
    assert skipped.where.startswith(f"{shard}, row 2 (")
    with pytest.raises(CorruptSampleError, match=rf"{shard.name}, row 2:"):
        steps(loaders(kept, engine, **options | {"damaged": "raise"}))


def test_folds_of_a_cache_keep_copies_together(cache):
    source = CacheSource(cache, "train")
    held = []
    for number in range(4):
        kept, out = fold(source.sample_ids, source.labels, number=number, of=4, seed=3)
        assert not set(source.sample_ids[kept]) & set(source.sample_ids[out])
        held += out.tolist()
    assert sorted(held) == list(range(len(source.labels)))


def test_every_copy_and_every_repetition_is_augmented_on_its_own(raw_cache):
    """A sample that comes twice in a balanced epoch, and its copies, do not get the same flips and ops."""
    source, engine = CacheSource(raw_cache, "train"), make_engine("cpu", RenderSpec(SIZE), threads=1)
    labels = source.labels
    assert len(np.unique(source.ids)) == len(labels) == 3 * len(np.unique(source.sample_ids))
    rare = Subset(source, np.flatnonzero((labels != 0) | (np.cumsum(labels == 0) <= 2)))
    found = steps(loaders(rare, engine, batch_size=10, train=True, order="balanced", policy=POLICY))
    engine.close()
    rows = rows_of(found)
    images = [image.numpy().tobytes() for step in found for image in step[1]]
    assert max(rows.count(row) for row in set(rows)) >= 4
    pairs = [(a, b) for a, b in pairwise(sorted(zip(rows, images, strict=True))) if a[0] == b[0]]
    assert np.mean([a[1] == b[1] for a, b in pairs]) < 0.2
