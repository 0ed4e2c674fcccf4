"""Resident mode shows the same pixels as reading anew, remembers what is damaged, and keeps within its memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import resident
from pipelines.augmentations import OPS, Policy, full_range
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.engines.dali_compat import dali_version
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.mix import MixOptions
from pipelines.plan import View
from pipelines.resident import ResidentOptions, ResidentSource, make_resident, obstacle
from pipelines.sources import Subset
from tests.pipelines.small_sources import MemorySource, loaders, png_folder, same, steps

COUNT = 23
FLIP = View(flip=True)
CROP = View(flip=True, min_area=0.3)
POLICY = Policy.repeated("all", tuple(full_range(op.name) for op in OPS[1:]), turns=2)
MIX = MixOptions(mixup=1.0, cutmix=1.0)
needs_dali = [pytest.mark.dali, pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")]
ENGINES = ["cpu", pytest.param("dali", marks=needs_dali)]
MIB = 2**20


@pytest.fixture(scope="module")
def engines():
    """(Name, size, fit) → engine, made when it is asked for."""
    made = {}

    def get(name, size=16, fit="pad"):
        if (name, size, fit) not in made:
            made[name, size, fit] = make_engine(name, RenderSpec(size, fit), device="cpu", threads=2)
        return made[name, size, fit]

    yield get
    for engine in made.values():
        engine.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return png_folder(tmp_path_factory.mktemp("images"), COUNT)


def check(source, engine, world=1, **options):
    """Both ways show the same, to the last bit."""
    options = {"batch_size": 6, "seed": 2, "epoch": 1} | options
    streamed = steps(loaders(source, engine, world, **options))
    assert len(streamed) == (COUNT // 6 if options["train"] else 4)
    for mirror in (False, True):
        kept = ResidentSource(source, engine, mirror=mirror)
        assert same(steps(loaders(kept, engine, world, **options)), streamed)


@pytest.mark.parametrize("name", ENGINES)
class TestSamePixels:
    @pytest.mark.parametrize("train", [True, False])
    @pytest.mark.parametrize("size", [4, 13, 16, 31])
    def test_flips_at_any_size(self, engines, folder, name, size, train):
        check(folder, engines(name, size), train=train, view=FLIP)

    @pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
    @pytest.mark.parametrize("kind", [None, "PNG", "JPEG"])
    def test_ops_after_any_fit(self, engines, name, fit, kind):
        check(MemorySource(COUNT, kind=kind), engines(name, 16, fit), train=True, view=FLIP, policy=POLICY)

    @pytest.mark.parametrize("kind", [None, "PNG", "JPEG"])
    def test_crops_of_images_of_the_right_size(self, engines, name, kind):
        check(MemorySource(COUNT, size=16, kind=kind), engines(name), train=True, view=CROP, policy=POLICY)

    @pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "bfloat16"])
    def test_formats_and_mixing(self, engines, folder, name, dtype):
        mix = {} if dtype == "uint8" else {"mix": MIX}
        check(folder, engines(name), 2, train=True, view=FLIP, policy=POLICY, dtype=dtype, order="balanced", **mix)

    def test_damaged_samples_are_remembered(self, engines, name):
        engine, damaged = engines(name), {0, 5, 6, 22}
        source = MemorySource(COUNT, damaged=damaged)
        kept = ResidentSource(source, engine)
        options = {"batch_size": 4, "train": False, "view": FLIP, "damaged": "skip"}
        found, expected = loaders(kept, engine, **options), loaders(source, engine, **options)
        assert same(steps(found), steps(expected))
        assert found[0].skipped == expected[0].skipped
        assert {skipped.row for skipped in found[0].skipped} == damaged
        for epoch in (0, 1):
            (again,) = loaders(kept, engine, epoch=epoch, **options | {"damaged": "raise"})
            with pytest.raises(CorruptSampleError, match="memory, row 0: sample 0 is damaged"):
                list(again)

    def test_what_nobody_expects_comes_out(self, engines, name):
        with pytest.raises(RuntimeError, match="row 20 explodes"):
            ResidentSource(MemorySource(COUNT, exploding=[20]), engines(name))
        assert len(ResidentSource(MemorySource(3), engines(name)).labels) == 3

    def test_batches_are_the_callers_own(self, engines, folder, name):
        kept = ResidentSource(folder, engines(name))
        options = {"batch_size": 6, "train": False, "view": FLIP}
        before = steps(loaders(kept, engines(name), **options))
        for batch in loaders(kept, engines(name), **options)[0]:
            batch.images.zero_()
        assert same(steps(loaders(kept, engines(name), **options)), before)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_rows_of_any_source(engines, data):
    count, size = data.draw(st.integers(1, 30)), data.draw(st.sampled_from([4, 9, 16]))
    damaged = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    source, engine = MemorySource(count, damaged=damaged), engines("cpu", size)
    kept = ResidentSource(source, engine, mirror=data.draw(st.booleans()))
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=40)), np.int64)
    options = {"batch_size": data.draw(st.integers(1, 12)), "train": False, "view": FLIP, "damaged": "skip"}
    one, other = (steps(loaders(Subset(each, rows), engine, **options)) for each in (source, kept))
    assert same(one, other)


def test_many_batches_are_decoded(engines, monkeypatch):
    source, engine, told = MemorySource(COUNT, damaged=[9]), engines("cpu"), []
    monkeypatch.setattr(resident, "BATCH", 4)
    kept = ResidentSource(source, engine, mirror=True, advance=told.append)
    assert told == [4, 4, 4, 4, 4, 3]
    options = {"batch_size": 5, "train": False, "damaged": "skip", "view": FLIP}
    assert same(steps(loaders(kept, engine, **options)), steps(loaders(source, engine, **options)))
    assert (kept.classes, kept.fingerprint) == (source.classes, source.fingerprint)
    assert kept.describe(4) == source.describe(4)


def test_nothing_is_read_twice(engines, tmp_path):
    source = png_folder(tmp_path, COUNT)
    kept = ResidentSource(source, engines("cpu"))
    expected = steps(loaders(source, engines("cpu"), batch_size=5, train=True, view=FLIP))
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert same(steps(loaders(kept, engines("cpu"), batch_size=5, train=True, view=FLIP)), expected)


# --- whether


def decide(source, engine, mode, monkeypatch, free=2**40, **options):
    monkeypatch.setattr(resident, "free_memory", lambda *_: free)
    view = options.pop("view", FLIP)
    return make_resident([source, source], engine, view=view, options=ResidentOptions(mode=mode, **options))


def test_auto_on_and_off(engines, monkeypatch):
    source, engine = MemorySource(COUNT), engines("cpu")
    for mode in ("auto", "on"):
        assert all(isinstance(kept, ResidentSource) for kept in decide(source, engine, mode, monkeypatch))
    assert decide(source, engine, "off", monkeypatch) == [source, source]


def test_random_crops_need_all_pixels(engines, monkeypatch):
    engine = engines("cpu")
    for source in (MemorySource(COUNT), MemorySource(COUNT, size=17)):
        assert decide(source, engine, "auto", monkeypatch, view=CROP) == [source, source]
        with pytest.raises(UsageError, match=r"--resident on: random crops of images that are not 16 x 16 px.*auto"):
            decide(source, engine, "on", monkeypatch, view=CROP)
    fitting = MemorySource(COUNT, size=16)
    assert all(isinstance(kept, ResidentSource) for kept in decide(fitting, engine, "on", monkeypatch, view=CROP))


def test_random_crops_of_a_part_of_a_fitting_source(engines, monkeypatch):
    part = Subset(MemorySource(COUNT, size=16), np.arange(5))
    assert obstacle([part], engines("cpu"), CROP, ResidentOptions(), 2**40) == ""


def test_the_limit_is_exact(engines, monkeypatch):
    source, engine = MemorySource(COUNT), engines("cpu")
    needed = 2 * COUNT * 16 * 16 * 3
    for options, bytes_free in (({"share": 1.0}, needed), ({"share": 0.5, "processes": 4}, 8 * needed)):
        enough = decide(source, engine, "auto", monkeypatch, free=bytes_free, **options)
        assert all(isinstance(kept, ResidentSource) for kept in enough)
        assert decide(source, engine, "auto", monkeypatch, free=bytes_free - 1, **options) == [source, source]
    with pytest.raises(UsageError, match=r"--resident on: .* MiB are more than 30% of the 0 MiB that are free"):
        decide(source, engine, "on", monkeypatch, free=needed)


@pytest.mark.parametrize(("plain", "view"), [(True, FLIP), (False, FLIP), (True, View()), (True, CROP)])
def test_only_what_is_flipped_and_nothing_else_is_kept_twice_where_there_is_room(engines, monkeypatch, plain, view):
    source, engine, once = MemorySource(COUNT, size=16), engines("cpu"), COUNT * 16 * 16 * 3
    for room in (2 * once, 3 * once - 1, 3 * once):
        monkeypatch.setattr(resident, "free_memory", lambda *_, room=room: room)
        options = ResidentOptions(mode="on", share=1.0)
        kept = make_resident([source, source], engine, view=view, plain=plain, options=options)
        twice = plain and view == FLIP and room == 3 * once
        assert [each.bytes for each in kept] == [once * (1 + twice), once]


def test_obstacles_in_words(engines):
    class Large(MemorySource):
        def __init__(self):
            self.labels = np.zeros(62_553, np.int64)

    engine = engines("cpu", 16)
    assert obstacle([Large()], engine, FLIP, ResidentOptions(), 2**40) == ""
    words = obstacle([Large()], engine, FLIP, ResidentOptions(share=0.25), 100 * MIB)
    assert words == "46 MiB are more than 25% of the 100 MiB that are free"


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(ValueError, match="share of memory"):
        ResidentOptions(share=share)


# --- how much memory there is


def group(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="ascii")
    return resident._group_left(folder)


@pytest.mark.parametrize(
    ("limit", "used", "left"),
    [("1000\n", "400\n", 600), ("1000", "1000", 0), ("1000\n", "1200\n", 0), ("8589934592\n", "0\n", 2**33)],
)
def test_what_a_container_may_still_take(tmp_path, limit, used, left):
    assert group(tmp_path, memory_max=limit, memory_current=used) == left


@pytest.mark.parametrize(
    ("statistics", "left"),
    [("anon 5\ninactive_file 300\nfile 9\n", 900), ("anon 5\n", 600), ("inactive_file", 600), ("inactive_file x", 600)],
)
def test_files_that_are_only_cached_are_in_nobodys_way(tmp_path, statistics, left):
    assert group(tmp_path, memory_max="1000\n", memory_current="400\n", memory_stat=statistics) == left


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory_max": "max\n", "memory_current": "5\n"},
        {"memory_max": "5\n"},
        {"memory_max": "", "memory_current": ""},
    ],
    ids=str,
)
def test_no_limit_where_none_is_told(tmp_path, files):
    assert group(tmp_path, **files) >= 2**60


def test_what_the_system_says(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       24000000 kB\nMemFree:  10 kB\nMemAvailable:   20000000 kB\nBuffers: 1 kB\n")
    assert resident._available(path) == 20_000_000 * 1024
    path.write_text("MemTotal:       24000000 kB\nMemFree:  10 kB\n")
    half = resident._available(path)
    assert half == resident._available(tmp_path / "nowhere") > 2**26


def test_the_smaller_of_both_counts(monkeypatch):
    cpu = torch.device("cpu")
    for system, container in ((700, 500), (500, 700)):
        monkeypatch.setattr(resident, "_available", lambda _, system=system: system)
        monkeypatch.setattr(resident, "_group_left", lambda _, container=container: container)
        assert resident.free_memory(cpu) == 500
