"""Decoding and running the network on threads: everything exactly once, the same whatever the threads do."""

import io
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.engines.base import RenderSpec
from pipelines.engines.cpu import CpuEngine, Job
from pipelines.plan import nothing
from training.runtimes.pump import covered, pump

SIZE = 16
SPEC = RenderSpec(SIZE)
CLASSES = ("a", "b", "c")


class Sums:
    """A network whose logits are sums over an image's channels; notes what it was given."""

    name, threads, size, classes = "sums", 1, SIZE, CLASSES

    def __init__(self, seconds=0.0):
        self.batches = []
        self.most_at_once = self._now = 0
        self._seconds, self._lock = seconds, threading.Lock()

    def logits(self, images):
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            self.batches.append(len(images))
        time.sleep(self._seconds)
        with self._lock:
            self._now -= 1
        return images.sum(axis=(1, 2)).astype(np.float32)


def jpeg(seed, side=40):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + seed % 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), np.uint8)


IMAGES = [jpeg(seed) for seed in range(23)]


def rendered(images):
    engine = CpuEngine(SPEC, threads=1)
    (result,) = engine.stream([Job(images, nothing(len(images)))])
    engine.close()
    return result.pixels[0].numpy()


EXPECTED = rendered(IMAGES).sum(axis=(1, 2)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(batch_size=st.integers(1, 30), threads=st.integers(1, 5), networks=st.integers(1, 5), count=st.integers(0, 23))
def test_the_pixels_are_the_engines_and_each_goes_through_once(batch_size, threads, networks, count):
    runtime, told = Sums(), []
    pumped = pump(
        runtime, IMAGES[:count], SPEC, batch_size=batch_size, threads=threads, networks=networks, done=told.append
    )
    np.testing.assert_array_equal(pumped.logits, EXPECTED[:count])
    assert sum(runtime.batches) == sum(told) == count
    whole, rest = divmod(count, batch_size)
    assert sorted(runtime.batches) == sorted([batch_size] * whole + [rest] * bool(rest))
    assert pumped.errors == {}
    assert (pumped.seconds > 0).all()
    assert 0 <= pumped.inferring <= pumped.total


def test_damaged_images_are_left_out_of_their_batches():
    images = list(IMAGES)
    images[0] = images[5] = np.frombuffer(b"no image", np.uint8)
    images[6] = images[6][: len(images[6]) // 2]
    runtime, told = Sums(), []
    pumped = pump(runtime, images, SPEC, batch_size=3, threads=3, networks=2, done=told.append)
    assert list(pumped.errors) == [0, 5, 6]
    good = [row for row in range(23) if row not in pumped.errors]
    np.testing.assert_array_equal(pumped.logits[good], EXPECTED[good])
    assert np.isnan(pumped.logits[[0, 5, 6]]).all()
    assert (pumped.seconds[[0, 5, 6]] == 0).all()
    assert sum(told) == 23


def test_nothing_but_damage():
    told = []
    images = [np.frombuffer(b"no image", np.uint8)] * 4
    pumped = pump(Sums(), images, SPEC, batch_size=3, threads=2, done=told.append)
    assert len(pumped.errors) == sum(told) == 4
    assert pumped.inferring == 0


def test_no_more_networks_at_once_than_allowed():
    alone, together = Sums(0.002), Sums(0.05)
    pump(alone, IMAGES, SPEC, threads=4, networks=1)
    pump(together, IMAGES, SPEC, threads=4, networks=4)
    assert alone.most_at_once == 1
    assert together.most_at_once > 1


@pytest.mark.parametrize("threads", [1, 3])
def test_what_the_network_raises_ends_it_all(threads):
    class Broken(Sums):
        def logits(self, images):
            if len(self.batches) >= 7:
                raise RuntimeError("no such operator")
            return super().logits(images)

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="no such operator"):
        pump(Broken(), IMAGES, SPEC, threads=threads, networks=threads)
    assert set(threading.enumerate()) <= before


def test_covered_time():
    assert covered([]) == 0
    assert covered([(3, 5), (0, 1)]) == 3
    assert covered([(0, 4), (1, 2), (3, 6)]) == 6
