"""The two engines against each other, op by op; and each against itself under other threads and batches.

Stated tolerance from raw pixels: one grey level in every pixel, for every op over its whole range, in both directions.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.augmentations import CODES, FILL, LUMA, OPS, Policy, full_range, value_text
from pipelines.engines.base import Job, RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.engines.cpu import CpuEngine
from pipelines.engines.cpu_ops import apply_op
from pipelines.engines.dali_compat import dali_version
from pipelines.errors import CorruptSampleError
from pipelines.plan import Plan, Stage, View, draw, nothing
from tests.pipelines.pictures import encoded, textured

SIZE = 48
TOLERANCE = 1
needs_dali = [
    pytest.mark.dali,
    pytest.mark.skipif(dali_version() is None, reason="DALI is not installed: no engine to hold against"),
]
ALL_OPS = Policy.repeated("all", tuple(full_range(op.name) for op in OPS[1:]), turns=2)


@pytest.fixture(scope="module")
def cpu():
    engine = CpuEngine(RenderSpec(SIZE))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def dali():
    engine = make_engine("dali", RenderSpec(SIZE), device="cpu")
    yield engine
    engine.close()


def render(engine, images, plan, **job):
    (result,) = engine.stream([Job(images, plan, **job)])
    assert not result.errors
    return result.pixels.numpy()


def one_op(name, values, count):
    """A plan that gives sample i the op with values[i]; cut-outs all over the picture."""
    blank = nothing(count)
    centre = np.random.default_rng(5).random((1, count, 1, 2)).astype(np.float32)
    op = np.full((1, count, 1), CODES[name], np.int8)
    return Plan(op, np.array(values, np.float32).reshape(1, count, 1), centre, blank.flip, blank.box)


def strengths(op):
    if not op.has_value:
        return [0.0] * 4
    values = [op.low + share * (op.high - op.low) for share in np.linspace(0, 1, 11)]
    values = [float(round(value)) for value in values] if op.whole else values
    return values + ([-value for value in values] if op.signed else [])


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
class TestEachOp:
    pytestmark = needs_dali

    def test_both_engines_agree_to_one_level(self, op, cpu, dali):
        values = strengths(op)
        images = [textured(SIZE, SIZE, seed) for seed in range(len(values))]
        plan = one_op(op.name, values, len(values))
        ours, theirs = (render(engine, images, plan).astype(int) for engine in (cpu, dali))
        assert np.abs(ours - theirs).max() <= TOLERANCE

    def test_flat_pictures_too(self, op, cpu, dali):
        """Equalize and AutoContrast divide by the spread of the levels."""
        images = [np.full((SIZE, SIZE, 3), level, np.uint8) for level in (0, 1, 128, 255)]
        plan = one_op(op.name, [op.high] * 4, 4)
        ours, theirs = (render(engine, images, plan).astype(int) for engine in (cpu, dali))
        assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("size", [SIZE, 49, 81, 224])
@pytest.mark.parametrize("name", ["cpu", pytest.param("dali", marks=needs_dali)])
def test_quarter_turns_and_mirroring_move_pixels_and_change_none(name, size):
    picture = np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8)
    engine = make_engine(name, RenderSpec(size), device="cpu")
    turned = render(engine, [picture] * 4, one_op("Rotate90", [0, 1, 2, 3], 4))[0]
    mirrored = render(engine, [picture], one_op("FlipX", [0], 1))[0, 0]
    engine.close()
    for turns in range(4):
        assert np.array_equal(turned[turns], np.rot90(picture, turns))
    assert np.array_equal(mirrored, picture[:, ::-1])


class TestBothEngines:
    pytestmark = needs_dali

    def test_two_ops_and_flip_on_raw(self, cpu, dali):
        ids = np.arange(60, dtype=np.uint64)
        images = [textured(SIZE, SIZE, seed) for seed in range(60)]
        plan = draw(ALL_OPS, ids, seed=1, stage=Stage.LOAD, rounds=(0,), view=View(flip=True))
        a, b = (render(engine, images, plan).astype(int) for engine in (cpu, dali))
        # The second op may amplify the first one's single level (Equalize, AutoContrast, Solarize at the threshold).
        assert np.abs(a - b).mean() < 0.01
        assert (np.abs(a - b) > TOLERANCE).mean() < 0.001

    @pytest.mark.parametrize(("height", "width", "min_area"), [(SIZE, SIZE, 0.3), (97, 130, 1.0), (97, 130, 0.3)])
    def test_resize_and_crop_of_raw(self, cpu, dali, height, width, min_area):
        """torch resizes bytes in fixed point, DALI in floating point."""
        ids = np.arange(40, dtype=np.uint64)
        images = [textured(height, width, seed) for seed in range(40)]
        plan = draw(None, ids, seed=1, stage=Stage.LOAD, rounds=(0, 1), view=View(flip=True, min_area=min_area))
        a, b = (render(engine, images, plan).astype(int) for engine in (cpu, dali))
        assert np.abs(a - b).mean() < 0.2
        assert np.abs(a - b).max() <= 4

    @pytest.mark.parametrize("fit", ["stretch", "crop"])
    def test_a_resize_differs_along_the_edge_only(self, fit):
        """DALI repeats the last pixel, torch and Pillow weigh only those that are there."""
        spec = RenderSpec(SIZE, fit)
        engines = [CpuEngine(spec), make_engine("dali", spec, device="cpu")]
        noise = np.random.default_rng(0).integers(0, 256, (6, 150, 210, 3), dtype=np.uint8)
        a, b = (render(engine, list(noise), nothing(6)).astype(int)[0] for engine in engines)
        assert np.abs(a - b)[:, 2:-2, 2:-2].max() <= TOLERANCE
        assert TOLERANCE < np.abs(a - b).max() <= 60
        for engine in engines:
            engine.close()

    @pytest.mark.parametrize("fit", ["pad", "stretch", "crop"])
    def test_decode_and_fit_of_jpeg(self, fit):
        """Scaled decoding is another, equally valid, antialiasing filter: within two levels on average."""
        spec = RenderSpec(SIZE, fit)
        engines = [CpuEngine(spec), make_engine("dali", spec, device="cpu")]
        images = [encoded(textured(height, width, 3)) for height, width in ((96, 128), (300, 70), (20, 31), (48, 48))]
        a, b = (render(engine, images, nothing(4)).astype(int) for engine in engines)
        assert np.abs(a - b).mean(axis=(0, 2, 3, 4)).max() < 2.0
        for engine in engines:
            engine.close()

    def test_exif_png_grey_and_cmyk(self, cpu, dali):
        picture = textured(60, 90, 1)
        images = [encoded(picture, **how) for how in ({"exif": 6}, {"kind": "PNG"}, {"mode": "L"}, {"mode": "CMYK"})]
        a, b = (render(engine, images, nothing(4)).astype(int) for engine in (cpu, dali))
        assert np.abs(a - b).mean(axis=(0, 2, 3, 4)).max() < 2.0

    def test_damaged_files_are_reported_and_the_rest_rendered(self, cpu, dali):
        good = encoded(textured(60, 90, 1))
        images = [good, good[: len(good) // 2], np.empty(0, np.uint8), good, np.arange(50, dtype=np.uint8)]
        for engine in (cpu, dali):
            (result,) = engine.stream([Job(images, nothing(5))])
            assert set(result.errors) == {1, 2, 4}
            assert "empty" in result.errors[2]
            pixels = result.pixels.numpy()[0]
            assert (pixels[0] == pixels[3]).all()
            assert (pixels[1] == FILL).all()

    def test_streams_of_changing_batches_stay_in_order(self, dali, cpu):
        ids = np.arange(200, dtype=np.uint64)
        images = [textured(SIZE, SIZE, seed % 7) for seed in range(200)]
        plan = draw(ALL_OPS, ids, seed=1, stage=Stage.LOAD, rounds=(0,))
        cuts = [0, 3, 70, 71, 150, 200]
        jobs = [Job(images[a:b], plan.take(slice(a, b)), checked=True, tag=a) for a, b in pairwise(cuts)]
        for engine in (dali, cpu):
            results = list(engine.stream(jobs))
            assert [result.tag for result in results] == cuts[:-1]
            together = np.concatenate([result.pixels.numpy()[0] for result in results])
            assert np.array_equal(together, render(engine, images, plan)[0])

    def test_a_stream_that_is_left_early_leaves_nothing_behind(self, dali):
        images = [textured(SIZE, SIZE, seed) for seed in range(4)]
        jobs = [Job([image], nothing(1), tag=index) for index, image in enumerate(images)]
        stream = dali.stream(jobs)
        next(stream)
        stream.close()
        assert [result.tag for result in dali.stream(jobs)] == [0, 1, 2, 3]


def test_cpu_pixels_do_not_depend_on_threads_or_batches():
    ids = np.arange(50, dtype=np.uint64)
    images = [encoded(textured(40 + index, 70, index)) for index in range(50)]
    plan = draw(ALL_OPS, ids, seed=1, stage=Stage.BUILD, rounds=(0, 1, 2), view=View(flip=True))
    expected = None
    for threads, batch in ((1, 50), (1, 7), (3, 50), (3, 1), (8, 13)):
        engine = CpuEngine(RenderSpec(SIZE), threads=threads)
        jobs = [Job(images[a : a + batch], plan.take(slice(a, a + batch))) for a in range(0, 50, batch)]
        pixels = np.concatenate([result.pixels.numpy() for result in engine.stream(jobs)], axis=1)
        engine.close()
        expected = pixels if expected is None else expected
        assert np.array_equal(pixels, expected)


def test_inputs_are_never_written_to():
    image = textured(SIZE, SIZE, 0)
    before = image.copy()
    image.flags.writeable = False
    for op in OPS:
        apply_op(image, op.name, op.high)
    assert np.array_equal(image, before)


def zoomed(picture, scale):
    """Zoom, pixel by pixel in float64: bilinear between pixel centres, grey outside."""
    size = picture.shape[0]
    padded = np.full((size + 2, size + 2, 3), float(FILL))
    padded[1:-1, 1:-1] = picture
    result = np.full(picture.shape, float(FILL))
    for row, column in np.ndindex(size, size):
        y, x = ((place + 0.5 - size / 2) / scale + size / 2 - 0.5 for place in (row, column))
        if not (-1 < y < size and -1 < x < size):
            continue
        top, left = int(np.floor(y)), int(np.floor(x))
        down, right = y - top, x - left
        corners = padded[top + 1 : top + 3, left + 1 : left + 3]
        weights = np.outer([1 - down, down], [1 - right, right])
        result[row, column] = (corners * weights[:, :, None]).sum(axis=(0, 1))
    return np.rint(result)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("Color", -0.9, "times 0.10"),
        ("Zoom", 0.1, "times 1.10"),
        ("Rotate90", 1.0, "+90°"),
        ("Rotate90", 3.0, "+270°"),
        ("FlipX", 0.0, ""),
        ("Rotate", -3.0, "-3.0°"),
        ("Cutout", 0.5, "50%"),
        ("TranslateX", 0.5, "+50%"),
        ("Solarize", 12.0, "from level 12"),
        ("Posterize", 4.0, "4 bits"),
        ("ShearX", 0.1, "+0.10"),
    ],
)
def test_values_in_words(name, value, words):
    assert value_text(OPS[CODES[name]], value) == words


class TestDirections:
    """Every op does what its name says, in both directions."""

    def moved(self, name, value):
        """Where a white dot, right of and above the centre, goes: (right, down) in px."""
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        picture[12:15, 30:33] = 255
        after = apply_op(picture, name, value)
        rows, columns = np.nonzero(after[:, :, 0] == after[:, :, 0].max())
        return columns.mean() - 31, rows.mean() - 13

    def test_translate(self):
        assert self.moved("TranslateX", 0.25) == (12, 0)
        assert self.moved("TranslateX", -0.25) == (-12, 0)
        assert self.moved("TranslateY", 0.25) == (0, 12)
        assert self.moved("TranslateY", -0.25) == (0, -12)

    def test_shear_about_the_centre(self):
        right, down = self.moved("ShearX", 0.3)  # the dot is above the centre: it goes left
        assert (right < -2, down) == (True, 0)
        assert self.moved("ShearX", -0.3)[0] > 2
        assert self.moved("ShearY", 0.3)[1] > 1  # and right of it: down
        assert self.moved("ShearY", -0.3)[1] < -1

    def test_rotate_counter_clockwise(self):
        right, down = self.moved("Rotate", 30)  # from half past twelve towards eleven
        assert right < -5
        assert abs(down) < 3
        assert self.moved("Rotate", -30)[0] > 2

    def test_levels(self):
        ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
        flat = ramp.astype(int)
        assert np.array_equal(apply_op(ramp, "Invert", 0), 255 - ramp)
        assert np.array_equal(apply_op(ramp, "Solarize", 128), np.where(ramp >= 128, 255 - ramp, ramp))
        assert np.array_equal(apply_op(ramp, "Solarize", 256), ramp)
        assert np.array_equal(apply_op(ramp, "Posterize", 4), ramp & 0xF0)
        assert np.array_equal(apply_op(ramp, "Posterize", 8), ramp)
        assert np.abs(apply_op(ramp, "Brightness", -0.5) - flat / 2).max() <= 0.5
        assert apply_op(ramp, "Brightness", 0.9).mean() > ramp.mean() + 40
        assert apply_op(ramp, "Contrast", 0.9).std() > ramp.std() + 20
        assert apply_op(ramp, "Contrast", -0.9).std() < ramp.std() / 5
        assert abs(apply_op(ramp, "Contrast", -0.9).mean() - ramp.mean()) < 1

    def test_stretching_ops_use_the_whole_range(self):
        dull = (textured(SIZE, SIZE, 3) // 4 + 90).astype(np.uint8)
        for name in ("AutoContrast", "Equalize"):
            after = apply_op(dull, name, 0)
            assert (after.min(axis=(0, 1)) == 0).all()
            assert (after.max(axis=(0, 1)) == 255).all()

    @given(levels=st.tuples(*[st.integers(0, 255)] * 2).filter(lambda pair: pair[0] < pair[1]))
    def test_autocontrast_is_exact(self, levels):
        low, high = levels
        picture = np.repeat(np.arange(low, high + 1, dtype=np.uint8)[None, :, None], 3, axis=2)
        after = apply_op(picture, "AutoContrast", 0).astype(np.float64)
        exact = (picture.astype(np.float64) - low) * 255 / (high - low)
        assert np.abs(after - exact).max() <= 0.51
        assert (after[0, 0] == 0).all()
        assert (after[0, -1] == 255).all()

    @given(value=st.floats(-0.9, 0.9), seed=st.integers(0, 9))
    def test_contrast_is_exact(self, value, seed):
        picture = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        mean = picture.mean(axis=(0, 1)) @ np.array(LUMA)
        exact = np.clip(mean + (1 + value) * (picture - mean), 0, 255)
        assert np.abs(apply_op(picture, "Contrast", value) - exact).max() <= 0.51

    def test_sharpness(self):
        picture = textured(SIZE, SIZE, 2)

        def edges(pixels):
            return np.abs(np.diff(pixels.astype(int), axis=1)).mean()

        assert edges(apply_op(picture, "Sharpness", 0.9)) > edges(picture) * 1.1
        assert edges(apply_op(picture, "Sharpness", -0.9)) < edges(picture) * 0.95

    @pytest.mark.parametrize("value", np.linspace(-0.9, 0.9, 13).round(2).tolist())
    def test_color_is_the_distance_to_the_luma(self, value):
        picture = np.random.default_rng(7).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        exact = picture.astype(np.float64)
        luma = (exact @ np.array(LUMA))[:, :, None]
        expected = np.clip(np.rint(luma + (1 + value) * (exact - luma)), 0, 255)
        assert np.abs(apply_op(picture, "Color", value) - expected).max() <= 1

    def test_color_leaves_greys_alone_and_takes_and_gives_colour(self):
        grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
        for value in (-0.9, -0.3, 0.4, 0.9):
            assert np.array_equal(apply_op(grey, "Color", value), grey)
        picture = textured(SIZE, SIZE, 4)
        assert np.array_equal(apply_op(picture, "Color", 0.0), picture)

        def colourfulness(pixels):
            return np.ptp(pixels.astype(int), axis=2).mean()

        assert colourfulness(apply_op(picture, "Color", 0.9)) > colourfulness(picture) * 1.2
        assert colourfulness(apply_op(picture, "Color", -0.9)) < colourfulness(picture) * 0.2

    @pytest.mark.parametrize("value", [-0.5, -0.1, 0.0, 0.1, 0.37, 0.5])
    def test_zoom_about_the_centre(self, value):
        picture = textured(17, 17, 9)
        expected = zoomed(picture, 1 + value)
        assert np.abs(apply_op(picture, "Zoom", value) - expected).max() <= 1

    def test_zoom_in_and_out(self):
        square = np.zeros((SIZE, SIZE, 3), np.uint8)
        square[16:32, 16:32] = 255
        widths = [(apply_op(square, "Zoom", value)[SIZE // 2, :, 0] > 150).sum() for value in (-0.5, 0.0, 0.5)]
        assert widths == [8, 16, 24]
        assert (apply_op(square, "Zoom", -0.5)[:11] == FILL).all(), "grey outside"

    def test_cutout_paints_a_grey_square(self):
        after = apply_op(np.zeros((SIZE, SIZE, 3), np.uint8), "Cutout", 0.5, (0.5, 0.5))
        assert (after == FILL).all(axis=2).sum() == (SIZE // 2) ** 2
        corner = apply_op(np.zeros((SIZE, SIZE, 3), np.uint8), "Cutout", 0.5, (0.0, 0.0))
        assert (corner == FILL).all(axis=2).sum() == (SIZE // 4) ** 2


def test_asking_for_dali_where_there_is_none_says_what_to_install(monkeypatch):
    import importlib

    real = importlib.import_module

    def without(name, *rest):
        if name.startswith("nvidia"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    from pipelines.errors import UsageError

    with pytest.raises(UsageError, match=r"cuda110.*450\.80.*cuda130.*580"):
        make_engine("dali", RenderSpec(SIZE), device="cpu")


def test_auto_is_the_cpu_engine_without_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine = make_engine("auto", RenderSpec(SIZE))
    assert engine.name == "cpu"
    engine.close()


@pytest.mark.parametrize("name", ["cpu", pytest.param("dali", marks=needs_dali)])
def test_two_streams_of_one_engine_do_not_mix(name):
    """Training and validation loaders share an engine."""
    engine = make_engine(name, RenderSpec(SIZE), device="cpu")
    images = [np.full((SIZE, SIZE, 3), level, np.uint8) for level in range(12)]
    first = engine.stream([Job([image], nothing(1), tag=index) for index, image in enumerate(images[:6])])
    second = engine.stream([Job([image], nothing(1), tag=index + 6) for index, image in enumerate(images[6:])])
    for a, b in zip(first, second, strict=True):
        assert a.pixels.unique().tolist() == [a.tag]
        assert b.pixels.unique().tolist() == [b.tag]
    engine.close()


@pytest.mark.parametrize("name", ["cpu", pytest.param("dali", marks=needs_dali)])
def test_closing_an_engine_under_a_live_stream_is_quiet(name):
    engine = make_engine(name, RenderSpec(SIZE), device="cpu")
    stream = engine.stream([Job([textured(SIZE, SIZE, seed)], nothing(1)) for seed in range(6)])
    next(stream)
    engine.close()
    stream.close()


class Lazy(Sequence):
    """Files that are read when they are asked for; some cannot be."""

    def __init__(self, images, broken=()):
        self.images, self.broken, self.asked = images, set(broken), []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.asked.append(index)
        if index in self.broken:
            raise CorruptSampleError(f"{index}: gone")
        return self.images[index]


def summary(pixels):
    """What `finish` makes of an image in these tests; a copy, as it must not keep the pixels."""
    assert (pixels.shape, pixels.dtype) == ((SIZE, SIZE, 3), np.uint8)
    return pixels.tobytes()


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", ["cpu", pytest.param("dali", marks=needs_dali)])
class TestFinish:
    """Encoding in the engine's threads, and files that are read there."""

    def engine(self, name, threads):
        return make_engine(name, RenderSpec(SIZE), device="cpu", threads=threads)

    def jobs(self, files, finish, sizes=(5, 1, 40, 17), broken=(0, 7, 22), rounds=(0, 1, 2)):
        """Batches of several sizes; samples of `broken` cannot be read."""
        start, made = 0, []
        for number, size in enumerate(sizes):
            part = slice(start, start + size)
            ids = np.arange(start, start + size, dtype=np.uint64)
            plan = draw(ALL_OPS, ids, seed=1, stage=Stage.BUILD, rounds=rounds)
            images = Lazy(files[part], [index - start for index in broken if part.start <= index < part.stop])
            made.append(Job(images, plan, tag=number, finish=finish))
            start += size
        return made

    def files(self):
        return [encoded(textured(30 + index, 70, index)) for index in range(63)]

    def test_products_are_the_pixels_in_order(self, name, threads):
        engine = self.engine(name, threads)
        files = self.files()
        plain = list(engine.stream(self.jobs(files, None)))
        finished = list(engine.stream(self.jobs(files, summary)))
        engine.close()
        assert [result.tag for result in finished] == [0, 1, 2, 3]
        for pixels, products in zip(plain, finished, strict=True):
            count = pixels.pixels.shape[1]
            assert tuple(products.pixels.shape) == (3, 0, SIZE, SIZE, 3)
            assert pixels.errors == products.errors
            assert not pixels.products or not any(pixels.products)
            assert len(products.products) == count
            for index in range(count):
                wanted = [pixels.pixels[number, index].numpy().tobytes() for number in range(3)]
                assert products.products[index] == (None if index in products.errors else wanted)
                assert (index in pixels.errors) == bool((pixels.pixels[:, index] == FILL).all())

    def test_files_that_cannot_be_read_or_decoded_are_errors(self, name, threads):
        engine = self.engine(name, threads)
        files = self.files()[:6]
        files[2] = files[2][: len(files[2]) // 2]
        job = Job(Lazy(files, [0, 5]), nothing(6), finish=summary)
        (result,) = engine.stream([job])
        engine.close()
        assert set(result.errors) == {0, 2, 5}
        assert result.errors[5] == "5: gone"
        assert [product is None for product in result.products] == [True, False, True, False, False, True]
        assert sorted(set(job.images.asked)) == list(range(6))

    def test_nothing_can_be_read(self, name, threads):
        engine = self.engine(name, threads)
        (result,) = engine.stream([Job(Lazy(self.files()[:3], [0, 1, 2]), nothing(3), finish=summary)])
        engine.close()
        assert (set(result.errors), list(result.products)) == ({0, 1, 2}, [None, None, None])

    def test_jobs_with_and_without_finish_in_turns(self, name, threads):
        engine = self.engine(name, threads)
        files = self.files()
        plain, finished = self.jobs(files, None), self.jobs(files, summary)
        mixed = [pair[number % 2] for number, pair in enumerate(zip(plain, finished, strict=True))] + plain + finished
        results = list(engine.stream(mixed))
        alone = [result for job in mixed for result in engine.stream([job])]
        engine.close()
        assert [result.tag for result in results] == [job.tag for job in mixed]
        for job, one, other in zip(mixed, results, alone, strict=True):
            assert list(one.products) == list(other.products)
            assert np.array_equal(one.pixels.numpy(), other.pixels.numpy())
            assert (one.pixels.shape[1] == 0) == (job.finish is not None)
            assert one.errors == other.errors

    def test_an_error_of_finish_comes_out(self, name, threads):
        engine = self.engine(name, threads)

        def fail(pixels):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            list(engine.stream(self.jobs(self.files(), fail)))
        good = list(engine.stream(self.jobs(self.files(), summary)))
        engine.close()
        assert [len(result.products) for result in good] == [5, 1, 40, 17], "the engine is as good as before"

    def test_a_stream_that_is_left_early_stops(self, name, threads):
        engine = self.engine(name, threads)
        stream = engine.stream(self.jobs(self.files(), summary))
        assert next(stream).tag == 0
        stream.close()
        assert [result.tag for result in engine.stream(self.jobs(self.files(), summary))] == [0, 1, 2, 3]
        engine.close()


@pytest.mark.parametrize("name", ["cpu", pytest.param("dali", marks=needs_dali)])
def test_one_thread_makes_the_same_as_four(name):
    def products(threads):
        engine = make_engine(name, RenderSpec(SIZE), device="cpu", threads=threads)
        files = [encoded(textured(30 + index, 70, index)) for index in range(63)]
        results = list(engine.stream(TestFinish().jobs(files, summary)))
        engine.close()
        return [(list(result.products), result.errors, result.tag) for result in results]

    assert products(1) == products(4)


@pytest.mark.dali
@pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")
@pytest.mark.parametrize("after", [False, True], ids=["half fed", "just fed"])
def test_an_interrupt_while_dali_is_fed_does_not_shift_later_batches(monkeypatch, after):
    from pipelines.engines import dali as module

    engine = make_engine("dali", RenderSpec(SIZE), device="cpu")
    jobs = [Job([np.full((SIZE, SIZE, 3), level, np.uint8)], nothing(1), tag=level) for level in range(6)]
    real = module._Graph.feed

    def interrupted(self, inputs):
        if inputs["image"][0][0, 0, 0] == 3:
            if after:
                real(self, inputs)
            else:
                self._pipeline.feed_input("image", inputs["image"])
            raise KeyboardInterrupt
        real(self, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(module._Graph, "feed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(engine.stream(jobs))
    assert [result.pixels.unique().tolist() for result in engine.stream(jobs)] == [[level] for level in range(6)]
    engine.close()


@pytest.mark.dali
@pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")
def test_an_interrupt_while_a_stream_is_closed_does_not_shift_later_batches(monkeypatch):
    from pipelines.engines import dali as module

    def interrupted(self):
        raise KeyboardInterrupt

    engine = make_engine("dali", RenderSpec(SIZE), device="cpu")
    jobs = [Job([np.full((SIZE, SIZE, 3), level, np.uint8)], nothing(1), tag=level) for level in range(6)]
    list(engine.stream(jobs))
    stream = engine.stream(jobs)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(module._Graph, "discard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.close()
    assert [result.pixels.unique().tolist() for result in engine.stream(jobs)] == [[level] for level in range(6)]
    engine.close()
