"""Iterators may be made and dropped thousands of times: no thread, descriptor, segment or memory stays behind."""

import gc
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.engines.dali_compat import dali_version
from pipelines.mix import MixOptions
from pipelines.plan import View
from pipelines.resident import ResidentSource
from tests.memory import MIB, resident_bytes
from tests.pipelines.small_sources import MemorySource, loaders, png_folder, steps

SIZE = 16
COUNT = 24
VIEW = View(flip=True, min_area=0.5)
MIX = MixOptions(mixup=1.0, cutmix=1.0)
needs_dali = [pytest.mark.dali, pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counted in /proc")


def entries(folder):
    return len(list(Path(folder).iterdir()))


def counts():
    """Threads of the interpreter and of the system, descriptors, shared-memory segments of this process."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return {
        "threads": threading.active_count(),
        "tasks": entries("/proc/self/task"),
        "descriptors": entries("/proc/self/fd"),
        "segments": maps.count("/dev/shm/") + entries("/dev/shm"),
    }


def settled(limit, seconds=30.0):
    """The counts, once threads that are ending have ended."""
    end, now = time.monotonic() + seconds, counts()
    while any(now[name] > limit[name] for name in now) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.02)
        now = counts()
    return now


def check_no_growth(cycle, times, *, warm_up, most_mib):
    """Run a cycle many times after a warm-up; what the process holds may not grow."""
    for number in range(warm_up):
        cycle(number)
    gc.collect()
    before, memory = counts(), resident_bytes()
    for number in range(times):
        cycle(number)
    after = settled(before)
    assert all(after[name] <= before[name] for name in before), (before, after)
    assert resident_bytes() - memory < most_mib * MIB


def some(iterator, number):
    """Some batches of an iterator, a few or none."""
    for _ in range(number):
        next(iterator, None)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return [
        png_folder(tmp_path_factory.mktemp("images"), COUNT),
        MemorySource(COUNT),
        MemorySource(COUNT, damaged=[3, 4]),
    ]


def cycle_of(sources, engine):
    """Make a loader, read from it for a while, drop it: another way each time."""

    def cycle(number):
        source = sources[number % len(sources)]
        mix = {"mix": MIX, "dtype": "float32"} if number % 4 == 0 else {}
        (loader,) = loaders(
            source, engine, epoch=number, batch_size=2 + number % 5, train=True, view=VIEW, damaged="skip", **mix
        )
        iterator = iter(loader)
        some(iterator, number % 6)
        if number % 3 == 0:
            iterator.close()
        elif number % 3 == 1:
            other = iter(loader)  # two at once, dropped in either order
            some(other, 2)
            del iterator
        if number % 7 == 0:
            list(loader)

    return cycle


@pytest.mark.slow
@pytest.mark.parametrize("inline", [False, True])
def test_two_thousand_iterators(sources, inline):
    threads = {"threads": 1, "inline": True} if inline else {"threads": 3}
    engine = make_engine("cpu", RenderSpec(SIZE), **threads)
    kept = ResidentSource(sources[0], engine)
    check_no_growth(cycle_of([*sources, kept], engine), 2000, warm_up=300, most_mib=4)
    engine.close()


def test_one_loader_iterated_two_thousand_times(sources):
    engine = make_engine("cpu", RenderSpec(SIZE), threads=2)
    (loader,) = loaders(sources[1], engine, batch_size=4, train=True, view=VIEW)

    def cycle(number):
        loader.set_epoch(number)
        some(iter(loader), number % 4)
        if number % 5 == 0:
            loader.load_state_dict({**loader.state_dict(), "position": 8})

    check_no_growth(cycle, 2000, warm_up=200, most_mib=4)
    engine.close()


def test_errors_leave_nothing_behind():
    engine = make_engine("cpu", RenderSpec(SIZE), threads=2)
    exploding, damaged = MemorySource(COUNT, exploding=[7]), MemorySource(COUNT, damaged=[7])

    def cycle(number):
        (loader,) = loaders((exploding, damaged)[number % 2], engine, batch_size=4, train=True, epoch=number)
        with pytest.raises(Exception, match="row 7"):
            list(loader)

    check_no_growth(cycle, 400, warm_up=100, most_mib=4)
    engine.close()


def test_two_hundred_engines(sources):
    def cycle(number):
        engine = make_engine("cpu", RenderSpec(SIZE), threads=1 + number % 4)
        (loader,) = loaders(sources[number % 3], engine, batch_size=4, train=True, view=VIEW, damaged="skip")
        iterator = iter(loader)
        some(iterator, number % 5)
        engine.close()

    check_no_growth(cycle, 200, warm_up=40, most_mib=6)


def test_engines_that_nobody_closed(sources):
    """Not asked for, but a script that ends with an error does it."""

    def cycle(number):
        engine = make_engine("cpu", RenderSpec(SIZE), threads=2)
        some(iter(loaders(sources[1], engine, batch_size=4, train=True)[0]), number % 5)

    check_no_growth(cycle, 100, warm_up=20, most_mib=6)


def test_a_resident_source_gives_its_memory_back():
    engine = make_engine("cpu", RenderSpec(64), threads=2)
    source = MemorySource(300, size=64)

    def cycle(number):
        kept = ResidentSource(source, engine)
        steps(loaders(kept, engine, batch_size=50, train=False), number % 4)

    check_no_growth(cycle, 40, warm_up=10, most_mib=8)
    engine.close()


@pytest.mark.dali
@pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")
class TestDali:
    def test_iterators(self, sources):
        engine = make_engine("dali", RenderSpec(SIZE), device="cpu", threads=2)
        check_no_growth(cycle_of(sources, engine), 300, warm_up=120, most_mib=16)
        engine.close()

    def test_errors(self):
        engine = make_engine("dali", RenderSpec(SIZE), device="cpu", threads=2)

        def cycle(number):
            (loader,) = loaders(MemorySource(COUNT, exploding=[7]), engine, batch_size=4, train=True, epoch=number)
            with pytest.raises(RuntimeError, match="row 7"):
                list(loader)

        check_no_growth(cycle, 30, warm_up=15, most_mib=16)
        engine.close()

    def test_engines(self, sources):
        def cycle(number):
            engine = make_engine("dali", RenderSpec(SIZE), device="cpu", threads=2)
            (loader,) = loaders(sources[1], engine, batch_size=4, train=True, view=VIEW)
            some(iter(loader), number % 5)
            engine.close()

        check_no_growth(cycle, 20, warm_up=10, most_mib=24)
