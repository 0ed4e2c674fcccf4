"""A path is what it holds: a cache, annotated photos, or neither."""

import pytest

from augment_cache.annotations.source import AnnotationSource
from augment_cache.format.source import CacheSource
from augment_cache.opening.sources import open_sources
from pipelines.errors import UsageError
from pipelines.opening import OpenOptions, open_anything


def test_a_cache(cache):
    found = open_sources(cache, OpenOptions(copies=1))
    assert list(found) == ["train", "val", "test"]
    assert all(isinstance(source, CacheSource) for source in found.values())
    assert set(found["train"].copies.tolist()) == {0, 1}
    assert set(found["val"].copies.tolist()) == {0}


def test_a_cache_is_found_through_the_entry_point(cache):
    assert isinstance(open_anything(cache, OpenOptions())["train"], CacheSource)


def test_class_folders_are_somebody_elses(photos):
    assert open_sources(photos, OpenOptions()) is None


def test_an_unfinished_cache(own_cache):
    (own_cache / "manifest.json").unlink()
    with pytest.raises(UsageError, match="is an unfinished cache"):
        open_sources(own_cache, OpenOptions())


@pytest.mark.real
def test_annotated_photos(taco_folder):
    found = open_sources(taco_folder, OpenOptions())
    assert list(found) == ["train", "val", "test"]
    assert all(isinstance(source, AnnotationSource) for source in found.values())


def test_a_split_that_nobody_wants_need_not_be_there(own_cache):
    for shard in own_cache.glob("test/*.arrow"):
        shard.unlink()
    assert list(open_sources(own_cache, OpenOptions(splits=("train", "val")))) == ["train", "val"]
    with pytest.raises(UsageError, match="test/shard-"):
        open_sources(own_cache, OpenOptions())
