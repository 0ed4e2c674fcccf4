"""The bench job and the opening of whatever a path holds."""

import json

import numpy as np
import pytest
from PIL import Image

from pipelines.bench import BenchConfig, bench, table
from pipelines.datasets import SplitOptions
from pipelines.errors import ProblemFoundError, UsageError
from pipelines.opening import OpenOptions, open_anything, open_with, wanted_splits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(40):
        place = root / ("can", "glass")[number % 2] / f"{number:02}.jpg"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(place)
    return root


def measured(folder, **options):
    return bench(BenchConfig(data=folder, **{"size": 16, "batch_size": 8, "rounds": 2, "seconds": 0.05, **options}))


@pytest.mark.parametrize("resident", ["on", "off"])
@pytest.mark.parametrize("options", [{}, {"ops": 2, "dtype": "float32"}, {"order": "balanced"}])
def test_a_report_adds_up(folder, resident, options):
    report = measured(folder, resident=resident, threads=1, **options)
    assert (report["samples"], report["size"], report["engine"], report["threads"]) == (28, 16, "cpu", 1)
    once = 28 * 16 * 16 * 3
    assert report["resident"] == (0 if resident == "off" else once if "ops" in options else 2 * once)
    assert report["first_epoch"]["images"] == 24
    assert len(report["rounds"]) == 2
    for entry in report["rounds"]:
        assert entry["seconds"] >= 0.05
        assert entry["images"] == 8 * entry["batches"] > 0
        assert entry["images_per_second"] == pytest.approx(entry["images"] / entry["seconds"])
        assert entry["bytes_per_second"] == pytest.approx(entry["images_per_second"] * 16 * 16 * 3)
        assert 0 < entry["wait"] <= entry["seconds"]
        assert 0 <= entry["queue_occupancy"] <= 1
        assert (entry["decode"] > 0) == (resident == "off" or "ops" in options)
        assert (entry["augment"] > 0) == (resident == "off" or "ops" in options)
    rates = report["images_per_second"]
    assert rates["least"] <= rates["median"] <= rates["most"]
    text = table(json.loads(json.dumps(report)))
    assert f"{rates['median']:,.0f} images/s" in text
    assert ("resident" if resident == "on" else "streamed") in text


def test_a_slow_consumer_does_not_wait(folder):
    report = measured(folder, resident="on", step_ms=20, seconds=0.3)
    assert report["wait_share"] < 0.5
    assert report["images_per_second"]["most"] < 8 / 0.02 * 1.05


def test_the_sequential_order_sees_every_image(folder):
    assert measured(folder, order="sequential")["first_epoch"]["images"] == 28


def test_random_crops_of_photos_stay_streamed(folder):
    assert measured(folder, min_area=0.3)["resident"] == 0
    with pytest.raises(UsageError, match=r"--resident on: random crops of images"):
        measured(folder, min_area=0.3, resident="on")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 0}, "--batch_size must be 1"),
        ({"ops": 17}, "--ops must be 0 to 16"),
        ({"rounds": 0}, "--rounds"),
        ({"size": 3}, "--size must be 4"),
        ({"seconds": -1.0}, "--seconds must be 0"),
        ({"step_ms": float("nan")}, "--step_ms must be"),
        ({"split": "dev"}, "has no split 'dev'; it has train, val, test"),
        ({"batch_size": 29}, "batch size 29 is larger than the 28 samples"),
    ],
)
def test_nonsense_is_refused(folder, options, reason):
    with pytest.raises(UsageError, match=reason):
        measured(folder, **options)


def test_a_folder_of_damaged_images(folder, tmp_path):
    for path in sorted(folder.rglob("*.jpg")):
        place = tmp_path / "damaged" / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"torn")
    with pytest.raises(ProblemFoundError, match=r"no image could be read; .*\.jpg"):
        measured(tmp_path / "damaged")


def test_openers_are_asked_in_turn(folder, tmp_path):
    options = OpenOptions(split=SplitOptions(0.2, 0.2, 1))
    asked = []

    def opener(name, answer):
        def ask(path, given):
            asked.append((name, path, given))
            return answer

        return ask

    mine = {"train": object()}
    assert open_with(folder, options, [opener("a", None), opener("b", mine), opener("c", None)]) is mine
    assert [entry[0] for entry in asked] == ["a", "b"]
    assert asked[0][1:] == (folder, options)
    assert list(open_with(folder, options, [opener("a", None)])) == ["train", "val", "test"]
    with pytest.raises(UsageError, match="does not exist; give a cache"):
        open_with(tmp_path / "none", options, [opener("a", mine)])
    assert len(asked) == 3


def test_wanted_splits(folder):
    sources = open_anything(folder, OpenOptions())
    assert wanted_splits(folder, sources, ("val", "train")) == [sources["val"], sources["train"]]
    with pytest.raises(UsageError, match="has no split 'dev'"):
        wanted_splits(folder, sources, ("train", "dev"))
