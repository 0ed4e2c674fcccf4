"""The benchmarks' own arithmetic, tables and fairness; nothing is measured here."""

import io
import json
import os
import random
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.benchmarks import cache_build, cache_memory, distillation_report, distillation_running
from tests.benchmarks.rivals import contestant, facts, pool
from training.engine.metrics import Scores

POLICY = yaml.safe_load((facts.ROOT / "augment_cache" / "policies" / "taco14.yaml").read_text(encoding="utf-8"))
OPS_OF_POLICY = sorted(op["op"] for op in POLICY["ops"])


def run(name, round_number, wall, cpu=1.0, size=64):
    facts_of_run = {"wall": wall, "cpu": cpu, "whole": wall + 1, "jpeg_bytes": 3e6, "load": 0.5}
    return {"size": size, "round": round_number, "turn": 0, "name": name, **facts_of_run}


def entry(runs, images=100):
    return {
        "date": "2026-01-02",
        "git": "abc",
        "machine": {"cpu": "Some CPU", "cores": 2, "python": "3.11"},
        "set": {"name": "trashnet", "images": images, "of": 100},
        "copies": 2,
        "quality": 90,
        "runs": runs,
    }


RUNS = [
    *(run("albumentations", index, wall, cpu=8.0) for index, wall in enumerate((4.0, 6.0, 10.0))),
    *(run("ours-1", index, wall, cpu=4.0) for index, wall in enumerate((2.0, 2.0, 4.0))),
    *(run("ours-2", index, wall) for index, wall in enumerate((1.0, 5.0, 9.0))),
    run("floor", 0, 1.0),
]


def test_ratios_are_taken_within_rounds_both_took_part_in():
    assert cache_build.ratios(RUNS, 64, "albumentations", "ours-1", "wall") == [2.0, 3.0, 2.5]
    assert cache_build.ratios(RUNS, 64, "floor", "ours-1", "wall") == [0.5]
    assert cache_build.ratios(RUNS, 224, "floor", "ours-1", "wall") == []


def test_the_quoted_one_is_the_faster_by_median():
    assert cache_build.quoted(RUNS, 64) == "ours-1"
    assert cache_build.quoted(RUNS, 224) is None


def test_table_of_speed():
    text = cache_build.render(entry(RUNS))
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert rows["| albumentations, 2 processes"] == (
        "| albumentations, 2 processes | 3 | 17 (10-25) | 80.00 (80.00-80.00) | 7.0 (5.0-11.0) | 3.0 "
        "| 2.50 (2.00-3.00) | 1.8: met | 0.50 (0.50-0.50) |"
    )
    assert rows["| floor: full decode + encode, threads"].endswith("| 0.50 | 1.0: missed | 4.00 |")
    assert rows["| **Tacopress, 1 process**"].endswith("|  |  |  |")
    assert "a try" not in text
    assert "Only 50 of 100" in cache_build.render(entry(RUNS, images=50))
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_table_of_speed_without_ours():
    assert "| 0.5" not in cache_build.render(entry(RUNS[:3]))


def test_every_goal_is_about_a_contestant():
    assert {name for goals in cache_build.GOALS.values() for name in goals} <= set(contestant.CONTESTANTS)
    assert set(cache_build.QUOTED) <= set(contestant.CONTESTANTS)


def test_everybody_is_first_once_and_last_once():
    names = ["a", "b", "c"]
    orders = [cache_build.turns(names, number) for number in range(3)]
    assert [order[0] for order in orders] == ["a", "b", "c"]
    assert [order[-1] for order in orders] == ["c", "a", "b"]
    assert cache_build.turns(names, 3) == names


@given(st.integers(1, 300), st.integers(1, 300))
def test_spaced_takes_different_files_from_all_over(total, count):
    files = [f"{number:03d}" for number in range(total)]
    chosen = cache_build.spaced(files, count)
    assert len(chosen) == min(total, count)
    assert chosen == sorted(set(chosen))
    assert max(np.diff([0, *map(int, chosen), total])) <= -(-total // count) + (count < total)


def test_linked_folder_holds_the_same_files(tmp_path):
    data = tmp_path / "data"
    for name in ("a/1.jpg", "a/2.jpg", "b/deep/3.JPG", "b/notes.txt"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(name.encode())
    files = pool.list_images(data)
    assert [os.path.relpath(file, data) for file in files] == ["a/1.jpg", "a/2.jpg", "b/deep/3.JPG"]
    linked = cache_build.link_folder(data, files[1:], tmp_path / "linked")
    assert [os.path.relpath(file, linked) for file in pool.list_images(linked)] == ["a/2.jpg", "b/deep/3.JPG"]
    assert (linked / "a" / "2.jpg").read_bytes() == b"a/2.jpg"


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_parts_come_back_as_they_were(tmp_path_factory, images):
    out = tmp_path_factory.mktemp("parts")
    assert pool.append(out, images[:3]) == len(images[:3])
    pool.append(out, images[3:])
    assert list(pool.read_parts(out)) == images


def test_chunks_hold_every_file_once():
    files = [str(number) for number in range(pool.CHUNK * 2 + 1)]
    chunks = pool.in_chunks(files)
    assert [file for chunk in chunks for file in chunk] == files
    assert len(chunks) == 3


def jpeg(side=64, quality=90, subsampling="420"):
    pixels = np.full((side, side, 3), 90, np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling=subsampling)


def test_inspection_of_what_was_written():
    found = cache_build.inspect([jpeg(), jpeg()], "x", 64, 2)
    assert found == {"images": 2, "jpeg_bytes": 2 * len(jpeg())}
    for wrong, words in ((jpeg(32), "32 x 32"), (jpeg(subsampling="444"), "444"), (jpeg(quality=80), "quality")):
        with pytest.raises(ValueError, match=words):
            cache_build.inspect([wrong], "x", 64, 1)
    with pytest.raises(ValueError, match="1 images instead of 2"):
        cache_build.inspect([jpeg()], "x", 64, 2)


def fine_pattern():
    """Lines of one pixel, black and white: grey after antialiasing, stripes after anything else."""
    picture = np.zeros((384, 512, 3), np.uint8)
    picture[:, ::2] = 255
    return picture


@pytest.mark.parametrize("size", [64, 224])
def test_torchvision_rival_makes_the_square_that_is_meant(size):
    from tests.benchmarks.rivals import torchvision_pool

    assert_square(np.asarray(torchvision_pool.make_square(Image.fromarray(fine_pattern()), size)), size)


@pytest.mark.parametrize("size", [64, 224])
def test_albumentations_rival_makes_the_square_that_is_meant(size):
    rival = pytest.importorskip("tests.benchmarks.rivals.albumentations_pool", exc_type=ImportError)
    assert_square(rival.make_square(size)(image=fine_pattern())["image"], size)


def assert_square(square, size):
    assert square.shape == (size, size, 3)
    edge = size // 8
    assert (square[: edge - 1] == 128).all()
    assert (square[1 - edge :] == 128).all()
    inside = square[edge + 2 : -edge - 2, 2:-2].astype(int)
    assert abs(inside - 127.5).max() < 45  # without antialiasing 0 and 255 would show through


def test_torchvision_rival_has_the_ops_of_the_policy():
    from tests.benchmarks.rivals import torchvision_pool

    assert sorted(torchvision_pool.NAMES) == OPS_OF_POLICY
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    numbers = random.Random(1)
    results = [torchvision_pool.augment(picture, numbers) for _ in range(100)]
    assert {(result.size, result.mode) for result in results} == {((64, 64), "RGB")}
    assert len({result.tobytes() for result in results}) > 50


MOVES = {"Rotate": 20.0, "TranslateX": 0.25, "TranslateY": -0.25, "ShearX": 0.3, "ShearY": 0.2}


@pytest.mark.parametrize("name", MOVES)
def test_torchvision_rival_moves_the_same_way_as_ours(name):
    from pipelines.engines.cpu_ops import apply_op
    from tests.benchmarks.rivals import torchvision_pool

    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[8:28, 16:44] = (250, 30, 60)
    theirs = np.asarray(torchvision_pool.FUNCTIONS[name](Image.fromarray(pixels), MOVES[name])).astype(int)
    ours = apply_op(pixels, name, MOVES[name], (0.5, 0.5)).astype(int)
    assert 3 * abs(theirs - ours).mean() < abs(theirs - pixels).mean()


def test_albumentations_rival_has_fourteen_ops_that_all_work():
    rival = pytest.importorskip("tests.benchmarks.rivals.albumentations_pool", exc_type=ImportError)
    augment = rival.make_augment(seed=0)
    assert len(augment.transforms[0].transforms) == len(OPS_OF_POLICY)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for op in augment.transforms[0].transforms:
        results = [op(image=picture)["image"] for _ in range(20)]  # the weakest of them may change nothing
        assert {(result.shape, result.dtype) for result in results} == {(picture.shape, picture.dtype)}
        assert any((result != picture).any() for result in results), op


def rendered_here(name, data, out):
    """What a rival's worker process would write, made in this process."""
    rival = pytest.importorskip(f"tests.benchmarks.rivals.{name}", exc_type=ImportError)
    rival.start(64)
    out.mkdir()
    pool.append(out, [image for file in pool.list_images(data) for image in rival.render(file)])


def test_everybody_writes_the_same_number_of_like_images(tmp_path):
    from tests.benchmarks.rivals import floor, ours

    data = cache_memory.draw_folder(tmp_path / "data", 24)
    rendered_here("torchvision_pool", data, tmp_path / "torchvision")
    for name, builder in (("floor", floor.make(64)), ("ours-1", ours.make(64, processes=1, engine="cpu"))):
        builder.build(data, tmp_path / name)
        builder.close()
    names = ("torchvision", "floor", "ours-1")
    found = [cache_build.inspect(cache_build.written(tmp_path / name, name), name, 64, 72) for name in names]
    bytes_written = [one["jpeg_bytes"] for one in found]
    assert max(bytes_written) < 1.4 * min(bytes_written)


def test_albumentations_rival_writes_the_same_number_of_like_images(tmp_path):
    data = cache_memory.draw_folder(tmp_path / "data", 24)
    rendered_here("albumentations_pool", data, tmp_path / "albumentations")
    assert cache_build.inspect(pool.read_parts(tmp_path / "albumentations"), "albumentations", 64, 72)["images"] == 72


def test_cpu_seconds_count_children_that_run_and_those_that_ended():
    burn = "import time\nwhile time.process_time() < 1.0: pass\nprint(time.process_time(), flush=True)\ninput()"
    before = contestant.cpu_seconds()
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    said = float(child.stdout.readline())
    running = contestant.cpu_seconds() - before
    child.communicate(b"\n")
    ended = contestant.cpu_seconds() - before
    assert said - 0.1 < running < 1.8 * said
    assert said - 0.1 < ended < 1.8 * said


def test_spread():
    assert facts.spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0-3.0)"
    assert facts.spread([1234.5], 0) == "1,234"


def test_circumstances_hide_paths(monkeypatch):
    monkeypatch.setattr("sys.argv", [cache_build.__file__, "--data", "/home/somebody/trashnet", "--rounds", "5"])
    found = facts.circumstances(["numpy", "no-such-package"])
    assert found["command"] == "python -m tests.benchmarks.cache_build --data trashnet --rounds 5"
    assert list(found["versions"]) == ["numpy"]


def build_run(rows, processes, self_mb, together_mb=0.0, opening=0.1):
    values = {"seconds": 2.0, "shards": 3, "bytes": 4e6, "load": 0.1, "openings": [opening] * 5, "worker_mb": 50.0}
    return {"rows": rows, "processes": processes, "self_mb": self_mb, "together_mb": together_mb, **values}


def test_growth_of_memory():
    runs = [build_run(2000, 1, 520.0, 480.0), build_run(200, 1, 500.0, 490.0), build_run(200, 2, 100.0, 300.0)]
    assert cache_memory.growth(runs, 1) == pytest.approx(0.04)
    assert cache_memory.growth(runs, 2) is None
    assert cache_memory.peak_mb(runs[2]) == 300.0


def test_table_of_memory():
    runs = [build_run(200, 1, 500.0), build_run(2000, 1, 530.0), build_run(2000, 2, 800.0, 1700.0, opening=0.3)]
    text = cache_memory.render({**entry(runs), "side": 96, "size": 64})
    assert "| 2,000 | 2 | 3 | 4 | 2.0 | 1,000 | 1,700 | 800 | 0.300 (0.300-0.300) |" in text
    assert "below 1,500 MB: 1,700 MB, missed" in text
    assert "processes 1: +6.0%, missed" in text
    assert "opening below 0.2 s: 0.300 s, missed" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_memory_of_a_process_that_runs_and_of_none():
    assert 10 < cache_memory.together_mb(os.getpid()) < 100_000
    assert cache_memory.together_mb(2**22 + 1) == 0.0  # above every process number that Linux gives


def test_drawings_are_all_different_and_repeatable():
    pictures = [picture.tobytes() for picture in cache_memory.drawings(500)]
    assert len(set(pictures)) == 500
    assert pictures == [picture.tobytes() for picture in cache_memory.drawings(500)]


def test_drawn_folder(tmp_path):
    folder = cache_memory.draw_folder(tmp_path / "drawn", 14)
    files = pool.list_images(folder)
    assert len(files) == 14
    assert {Path(file).parent.name for file in files} == set(cache_memory.CLASSES)
    assert Image.open(files[0]).size == (cache_memory.SIDE, cache_memory.SIDE)


def test_the_paired_comparison_of_methods():
    """Equal predictions differ by nothing; always better is better in nearly every resample; and it has two sides."""
    labels = np.tile(np.arange(3), 40)
    wrong = np.where(np.arange(120) % 4 == 0, (labels + 1) % 3, labels)
    plain, better = np.stack([wrong, wrong]), np.stack([labels, labels])
    assert distillation_report.paired(labels, plain, plain) == (0, 0, 0, 1)
    gain, low, high, p = distillation_report.paired(labels, plain, better)
    assert gain == pytest.approx(1 - Scores(confusion_of(labels, wrong)).macro_f1)
    assert 0 < low < gain < high
    assert p == 1 / distillation_report.RESAMPLES
    back = distillation_report.paired(labels, better, plain)
    assert back[0] == pytest.approx(-gain)
    assert back[3] == p


def test_methods_of_distillation_are_told_and_drawn():
    """Paired with the seeds that plain training has, too; nothing is said of a method without plain training."""
    labels = "ab" * 40
    facts = {"data": "taco", "student": "mobilenetv3_small_050", "macs": 5, "parameters": 6, "input_size": 64}
    facts |= {"steps": 7, "samples": 80}

    def run(row, seed, predicted):
        return facts | {"row": row, "seed": seed, "predicted": predicted, "macro_f1": float(predicted == labels)}

    plain = [run("none", seed, "ba" * 40) for seed in (0, 1)]
    better = [run("kd", seed, labels) for seed in (0, 1, 2)]
    both = {"tests": {"taco": {"labels": labels}}, "runs": plain + better}
    rows = [line for line in distillation_report.render(both).splitlines() if line.startswith(("| none", "| kd |"))]
    assert rows == [
        "| none |  |  | 0.000 ± 0.000 (2) |  |",
        "| kd |  |  | 1.000 ± 0.000 (3) | **+1.000** (+1.000 to +1.000), p < 0.001 |",
    ]
    assert distillation_report.sentences(both) == {
        "kd": "macro F1 of mobilenetv3_small_050 on taco 1.000, +1.000 to plain training (3 seeds, p < 0.001)"
    }
    assert Image.open(io.BytesIO(distillation_report.draw(both))).format == "PNG"
    alone = both | {"runs": better}
    assert distillation_report.sentences(alone) == {}
    assert distillation_report.draw(alone) is None


def test_results_of_distillation_are_gathered_over_clones(tmp_path, monkeypatch):
    """What the results file has need not be below --out; newer runs replace older; another test set is refused."""
    monkeypatch.setattr(distillation_running, "RESULTS", tmp_path / "results.json")

    def gather(clone, seed, score, labels="aab"):
        run = {"data": "taco", "student": "small", "row": "kd", "seed": seed, "macro_f1": score}
        found = {"classes": ["a", "b"], "labels": labels, "ids": [5, 7, 2**62], "predicted": "aaa"}
        folder = tmp_path / clone / "distillation" / str(seed)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(run | found))
        options = Namespace(out=tmp_path / clone)
        distillation_running.collect(options)
        written = json.loads(distillation_running.RESULTS.read_text())["runs"]
        assert list(distillation_running.gathered(options)[1].values()) == written
        return [(run["seed"], run["macro_f1"]) for run in written]

    assert gather("first", 1, 0.5) == [(1, 0.5)]
    assert gather("second", 0, 0.25) == [(0, 0.25), (1, 0.5)]
    assert gather("third", 1, 0.75) == [(0, 0.25), (1, 0.75)]
    with pytest.raises(SystemExit, match="another test set"):
        gather("fourth", 2, 0.75, labels="abb")


def confusion_of(labels, predicted):
    return np.bincount(labels * 3 + predicted, minlength=9).reshape(3, 3)
