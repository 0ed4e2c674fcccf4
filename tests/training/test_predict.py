"""The predict job: a model file or an ONNX file alone, folders and caches, damaged images, the record of time."""

import csv
import json
import os
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
import torch

from augment_cache.format.source import CacheSource
from pipelines.console.since import seconds_since_start
from pipelines.engines.base import Job, RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.errors import UsageError
from pipelines.plan import nothing
from training.measure.predictions import probabilities
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.model_file import save_model
from training.model.onnx_file import FromLevels, export_onnx
from training.predict import PredictConfig, find_inputs, predict, table

CLASSES = ("blue", "green", "red")
SIZE = 32


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = create_model("test_efficientnet", 3).eval()
    torch.nn.init.normal_(network.classifier.weight, std=50.0)  # answers that differ from image to image
    return network


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """A run folder with best.safetensors, and an ONNX file beside it."""
    folder = tmp_path_factory.mktemp("run")
    card = ModelCard(
        architecture="test_efficientnet", classes=CLASSES, size=SIZE, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    save_model(folder / "best.safetensors", model, card)
    export_onnx(folder / "model.onnx", model, card)
    return folder, card


@pytest.fixture
def folder(photos, tmp_path):
    """Images at several depths, one of them with letters of another alphabet."""
    names = ["b.jpg", "a/x.JPG", "a/deep/쓰레기, 1.jpg", "c/000.jpg", "c/001.jpg"]
    for number, name in enumerate(names):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((photos / CLASSES[number % 3] / f"{number:03d}.jpg").read_bytes())
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "class", *CLASSES]
    return {row[0]: (row[1], [float(text) for text in row[2:]]) for row in rows}


def expected(model, card, images):
    """Probabilities by torch from the engine's pixels."""
    engine = CpuEngine(RenderSpec(SIZE), threads=1)
    (rendered,) = engine.stream([Job(images, nothing(len(images)))])
    engine.close()
    with torch.inference_mode():
        return probabilities(FromLevels(model, card)(rendered.pixels[0]).numpy())


@pytest.mark.parametrize("name", ["model.onnx", "best.safetensors", ""])
def test_a_folder_by_every_kind_of_model(files, folder, model, tmp_path, name):
    root, card = files
    report = predict(PredictConfig(model=root / name, data=folder, out=tmp_path / "out.csv", threads=2))
    found = read_csv(tmp_path / "out.csv")
    inputs = find_inputs(folder, "test")
    assert list(found) == inputs.names == ["a/deep/쓰레기, 1.jpg", "a/x.JPG", "b.jpg", "c/000.jpg", "c/001.jpg"]
    shares = expected(model, card, list(inputs.images))
    assert np.ptp(shares, axis=0).max() > 0.05
    np.testing.assert_allclose([row for _, row in found.values()], shares, atol=2e-5)
    assert [winner for winner, _ in found.values()] == [CLASSES[index] for index in shares.argmax(axis=1)]
    assert report["predicted"] == report["images"] == 5
    assert report["counts"] == {c: sum(winner == c for winner, _ in found.values()) for c in CLASSES}
    assert not (tmp_path / "out.rejected.csv").exists()


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 1), (1, 3), (2, 2), (64, 2)])
def test_same_bytes_whatever_the_threads(files, photos, tmp_path, batch_size, threads):
    for name in ("one", "two"):
        predict(
            PredictConfig(
                model=files[0] / "model.onnx",
                data=photos,
                out=tmp_path / f"{name}.csv",
                batch_size=batch_size,
                threads=threads if name == "one" else 1,
            )
        )
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_all_formats_say_the_same(files, folder, tmp_path):
    for suffix in ("csv", "json", "arrow"):
        predict(PredictConfig(model=files[0] / "model.onnx", data=folder, out=tmp_path / f"out.{suffix}"))
    rows = read_csv(tmp_path / "out.csv")
    records = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [(r["path"], r["class"]) for r in records] == [(path, winner) for path, (winner, _) in rows.items()]
    with pa.memory_map(str(tmp_path / "out.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column_names == ["path", "class", *CLASSES]
    assert table["path"].to_pylist() == list(rows)
    assert table["class"].to_pylist() == [winner for winner, _ in rows.values()]
    for index, name in enumerate(CLASSES):
        column = [shares[index] for _, shares in rows.values()]
        np.testing.assert_allclose(table[name].to_numpy(), column, atol=1e-6)
        np.testing.assert_allclose([r["probabilities"][name] for r in records], column, atol=1e-6)


def test_damaged_images_are_listed_and_the_rest_predicted(files, folder, tmp_path):
    (folder / "c" / "000.jpg").write_bytes(b"\xff\xd8 broken")
    whole = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: len(whole) // 2])
    config = PredictConfig(model=files[0] / "model.onnx", data=folder, out=tmp_path / "out.csv")
    report = predict(config)
    assert (report["predicted"], report["rejected"]) == (3, 2)
    assert sum(report["counts"].values()) == 3
    assert list(read_csv(tmp_path / "out.csv")) == ["a/deep/쓰레기, 1.jpg", "a/x.JPG", "c/001.jpg"]
    with (tmp_path / "out.rejected.csv").open(newline="") as file:
        rejected = list(csv.reader(file))
    assert [row[0] for row in rejected] == ["path", "b.jpg", "c/000.jpg"]
    assert all("damaged" in row[1] for row in rejected[1:])
    assert "2 damaged" in table(report)
    (folder / "b.jpg").write_bytes(whole)
    (folder / "c" / "000.jpg").unlink()
    predict(config)
    assert not (tmp_path / "out.rejected.csv").exists()


def test_nothing_but_damage_is_an_error_and_writes_nothing(files, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.jpg").write_bytes(b"no image")
    with pytest.raises(UsageError, match="none of the 1 images"):
        predict(PredictConfig(model=files[0] / "model.onnx", data=tmp_path / "images", out=tmp_path / "out.csv"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_one_image(files, photos, tmp_path):
    report = predict(
        PredictConfig(model=files[0] / "model.onnx", data=photos / "red" / "000.jpg", out=tmp_path / "out.csv")
    )
    assert report["images"] == 1
    assert list(read_csv(tmp_path / "out.csv")) == ["000.jpg"]


def test_a_name_that_is_no_utf8(files, folder, tmp_path):
    (folder / "b.jpg").rename(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg"))
    report = predict(PredictConfig(model=files[0] / "model.onnx", data=folder, out=tmp_path / "out.csv"))
    assert report["predicted"] == 5
    assert "\\xff.jpg" in read_csv(tmp_path / "out.csv")


def test_a_folder_and_a_damaged_image_whose_names_are_no_utf8(files, folder, tmp_path):
    (folder / "b.jpg").rename(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg"))
    (folder / "a" / "x.JPG").unlink()
    (folder / "a" / "x.JPG").symlink_to("gone.jpg")
    other = folder.rename(os.fsdecode(os.fsencode(folder.parent) + b"/caf\xe9"))
    report = predict(PredictConfig(model=files[0] / "model.onnx", data=other, out=tmp_path / "out.csv"))
    assert report["rejected"] == 1
    record = json.loads((tmp_path / "out.timing.json").read_text(encoding="utf-8"))
    assert record["data"].endswith("caf\\xe9")
    assert "a/x.JPG" in (tmp_path / "out.rejected.csv").read_text(encoding="utf-8")


def test_a_gpu_that_is_not_there(files, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="PyTorch sees no GPU"):
        predict(PredictConfig(model=files[0], data=folder, out=tmp_path / "out.csv", device="cuda"))


def test_a_class_that_is_called_as_a_column_is(model, folder, tmp_path):
    card = ModelCard(
        architecture="test_efficientnet",
        classes=("a", "path", "z"),
        size=32,
        fit="pad",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    save_model(tmp_path / "m.safetensors", model, card)
    with pytest.raises(UsageError, match="called 'path', as a column is"):
        predict(PredictConfig(model=tmp_path / "m.safetensors", data=folder, out=tmp_path / "out.arrow"))


def test_a_model_file_starts_no_more_threads_than_asked(files, photos, tmp_path):
    code = (
        "import os, sys, threading\n"
        "from pathlib import Path\n"
        "from training.predict import PredictConfig, predict\n"
        "most = 0\n"
        "def watch():\n"
        "    global most\n"
        "    while True:\n"
        "        most = max(most, len(os.listdir('/proc/self/task')))\n"
        "import torch\n"
        "import training.runtimes.torch_runtime, training.model.model_file, training.runtimes.pump\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        "predict(PredictConfig(model=Path(sys.argv[1]), data=Path(sys.argv[2]), out=Path(sys.argv[3]), threads=6))\n"
        "print(most - before)\n"
    )
    words = [sys.executable, "-c", code, str(files[0]), str(photos), str(tmp_path / "out.csv")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 6 + 3  # the watch, and what torch starts once


def test_a_cache(files, cache, model, tmp_path):
    folder, card = files
    predict(PredictConfig(model=folder / "model.onnx", data=cache, out=tmp_path / "out.csv", split="train"))
    found = read_csv(tmp_path / "out.csv")
    source = CacheSource(cache, "train", copies=0)
    rows = np.arange(len(source.labels))
    assert list(found) == [source.record(row).source for row in rows]
    assert len(found) == len(source.labels)
    np.testing.assert_allclose(
        [shares for _, shares in found.values()], expected(model, card, list(source.fetch(rows))), atol=2e-5
    )


def test_a_link_that_leaves_the_folder_is_refused(files, folder, photos, tmp_path):
    (folder / "link.jpg").symlink_to(photos / "red" / "000.jpg")
    with pytest.raises(UsageError, match=r"link\.jpg is a link that leaves"):
        predict(PredictConfig(model=files[0] / "model.onnx", data=folder, out=tmp_path / "out.csv"))


@pytest.mark.parametrize(
    ("data", "words"), [("nosuch", "is no folder"), ("empty", "holds no images")], ids=["missing", "empty"]
)
def test_no_data(files, tmp_path, data, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=words):
        predict(PredictConfig(model=files[0] / "model.onnx", data=tmp_path / data, out=tmp_path / "out.csv"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "out.txt"}, r"--out out\.txt must end in \.csv"),
        ({"batch_size": 0}, "--batch_size"),
        ({"threads": -1}, "--threads"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, words):
    from pathlib import Path

    options = {key: Path(value) if key == "out" else value for key, value in options.items()}
    with pytest.raises(UsageError, match=words):
        PredictConfig(model=tmp_path, data=tmp_path, **options)


def run(*words):
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    code = (
        "import sys\n"
        "from training.predict import main\n"
        "try:\n    main()\n"
        "finally:\n    heavy = {'torch', 'nvidia', 'jsonargparse', 'rich'}\n"
        "    print(*sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, env=environment
    )


def test_an_onnx_file_needs_neither_torch_nor_dali(files, folder, tmp_path):
    start = time.monotonic()
    done = run("--model", files[0] / "model.onnx", "--data", folder, "--out", tmp_path / "out.csv", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    report = json.loads(done.stdout)
    timing = report["timing"]
    record = json.loads((tmp_path / "out.timing.json").read_text(encoding="utf-8"))
    assert record["time"]["runtime"] == {key: timing[key] for key in ("all", "inference_only")}
    assert list(record["time"]["inference"]) == list(read_csv(tmp_path / "out.csv"))
    assert sum(record["time"]["inference"].values()) == pytest.approx(timing["inference_only"], abs=1e-3)
    assert min(timing[key] for key in ("start_up", "inferring", "exposed_loading", "writing")) >= 0
    assert timing["all"] <= time.monotonic() - start + 0.02
    assert timing["inferring"] <= timing["inference_only"] + 1e-3
    assert "predicted" in table(report)


def test_the_job_explains_itself(tmp_path):
    done = run("--help")
    assert done.returncode == 0
    assert "an ONNX file" in " ".join(done.stdout.split()) or "An ONNX file" in " ".join(done.stdout.split())
    missing = run("--model", tmp_path / "no.onnx", "--data", tmp_path)
    assert missing.returncode == 2


def test_the_process_knows_when_it_began():
    code = (
        "import time; time.sleep(0.3)\n"
        "from pipelines.console.since import seconds_since_start\n"
        "print(seconds_since_start())"
    )
    start = time.monotonic()
    seconds = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.29 <= seconds <= time.monotonic() - start + 0.02
    assert seconds_since_start() > 0.29
