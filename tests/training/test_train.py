"""Training end to end on a tiny cache: learning, determinism, resuming, evaluating, several processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import f1_score

from augment_cache.build import BuildConfig, build
from augment_cache.format.source import CacheSource
from pipelines.console.job import run_job
from pipelines.datasets import SplitOptions, open_splits
from pipelines.errors import ProblemFoundError, UsageError
from tests.training.runs import config, same, stop_at, untimed, weights
from training.engine.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from training.engine.preemption import PreemptedError
from training.evaluate import EvaluateConfig, evaluate
from training.measure.predictions import read_predictions
from training.model.model_file import load_model
from training.train import train


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    return out, train(config(cache, out, trackers="tensorboard"))


def test_it_learns_and_writes_everything(run, cache):
    out, report = run
    assert report["val_macro_f1"] > 0.6
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert max(line["val_macro_f1"] for line in lines) == report["val_macro_f1"]
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["name"] == "test_efficientnet"
    model, card = load_model(out / "best.safetensors")
    assert card.classes == ("blue", "green", "red")
    assert (card.size, card.fit, card.edits) == (32, "pad", ())
    assert not model.training


def test_same_seed_same_weights_other_seed_others(run, cache, tmp_path):
    out, _ = run
    train(config(cache, tmp_path / "again"))
    assert same(weights(out / "last.safetensors"), weights(tmp_path / "again" / "last.safetensors"))
    train(config(cache, tmp_path / "other", seed=1, schedule=ScheduleConfig(epochs=1, warmup_epochs=0)))
    assert not same(weights(out / "last.safetensors"), weights(tmp_path / "other" / "last.safetensors"))


@pytest.mark.parametrize("step", [0, 5, 6, 11, 15, 23], ids=lambda step: f"step {step}")
def test_a_run_that_was_stopped_ends_with_the_same_weights(run, cache, tmp_path, monkeypatch, step):
    """In the middle of an epoch, at its end, in the first step and in the last."""
    out, _ = run
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(PreemptedError, match="run the same command again") as stopped:
            train(config(cache, tmp_path / "run"))
    assert stopped.value.exit_status == 75
    report = train(config(cache, tmp_path / "run"))
    assert report["resumed_at"] == step + 1
    assert same(weights(out / "last.safetensors"), weights(tmp_path / "run" / "last.safetensors"))
    assert same(weights(out / "best.safetensors"), weights(tmp_path / "run" / "best.safetensors"))
    assert untimed(tmp_path / "run") == untimed(out)
    again = train(config(cache, tmp_path / "run"))
    assert (again["resumed_at"], again["epochs"]) == (report["steps"], 4)


def test_resuming_with_other_options_or_data_is_refused(run, cache, tmp_path, photos):
    out, _ = run
    with pytest.raises(UsageError, match=r"optimizer\.lr was 0\.005, now 0\.1.*--overwrite"):
        train(config(cache, out, optimizer=OptimizerConfig(lr=0.1)))
    with pytest.raises(UsageError, match="holds a run already"):
        train(config(cache, out, resume="never"))
    moved = tmp_path / "cache"
    moved.symlink_to(cache)
    copy = tmp_path / "run"
    train(config(moved, copy, schedule=ScheduleConfig(epochs=1, warmup_epochs=0)))
    moved.unlink()
    build(BuildConfig(data=photos, out=moved, size=32, copies=0, engine="cpu"))
    with pytest.raises(UsageError, match="not the data that"):
        train(config(moved, copy, schedule=ScheduleConfig(epochs=1, warmup_epochs=0)))


def test_evaluate_equals_scikit_learn_on_the_same_predictions(run, cache, tmp_path):
    out, _ = run
    report = evaluate(EvaluateConfig(model=out, data=cache, out=tmp_path, engine="cpu"))
    true = np.repeat(np.arange(3), [report["per_class"][name]["support"] for name in report["classes"]])
    predicted = np.concatenate([np.repeat(np.arange(3), row) for row in report["confusion"]])
    assert report["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert report["samples"] == (CacheSource(cache, "test").copies == 0).sum()
    assert report["macs"] > 0
    assert report["parameters"] == sum(p.numel() for p in load_model(out / "best.safetensors")[0].parameters())
    assert json.loads((tmp_path / "evaluation_test.json").read_text()) == report
    assert (tmp_path / "confusion_test.png").read_bytes()[:4] == b"\x89PNG"
    for batch_size in (1, 7):
        other = evaluate(EvaluateConfig(model=out, data=cache, out=tmp_path, engine="cpu", batch_size=batch_size))
        assert other["confusion"] == report["confusion"]


def test_evaluate_on_the_folder_equals_evaluate_on_its_cache_split(run, cache, photos, tmp_path):
    """The same split is cut again from the folder: same samples, pixels within JPEG error, so about the same score."""
    out, _ = run
    report = evaluate(EvaluateConfig(model=out, data=photos, out=tmp_path, engine="cpu"))
    assert report["samples"] == len(CacheSource(cache, "test").labels)
    assert report["macro_f1"] > 0.5


def test_floor(run, cache, tmp_path):
    out, _ = run
    with pytest.raises(ProblemFoundError, match=r"below the floor of 1\.1") as error:
        evaluate(EvaluateConfig(model=out, data=cache, out=tmp_path, floor=1.1, engine="cpu"))
    assert error.value.exit_status == 1


def test_data_with_other_classes_is_refused(run, photos, tmp_path):
    out, _ = run
    for name, folder in (("blue", "blue"), ("green", "green"), ("red", "yellow")):
        shutil.copytree(photos / name, tmp_path / folder)
    with pytest.raises(UsageError, match=r"yellow.*trained on.*red"):
        evaluate(EvaluateConfig(model=out, data=tmp_path, out=tmp_path, engine="cpu"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ModelConfig(name="mobilenetv3_smal_050")}, "did you mean mobilenetv3_small_050"),
        ({"data": DataConfig(path=Path("nowhere"))}, "nowhere does not exist"),
        ({"model": ModelConfig(name="test_efficientnet", weights="no.pth")}, "no.pth do not exist"),
    ],
)
def test_wrong_use_is_one_clear_error(cache, tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        train(config(cache, tmp_path / "run", **changes))


def test_batch_larger_than_the_data_names_the_option(cache, tmp_path):
    data = DataConfig(path=cache, batch_size=4096, engine="cpu")
    with pytest.raises(UsageError, match=r"--data\.batch_size"):
        train(config(cache, tmp_path / "run", data=data))


def test_options_that_make_no_sense():
    with pytest.raises(UsageError, match="warmup_epochs"):
        TrainConfig(data=DataConfig(path=Path("x")), schedule=ScheduleConfig(epochs=2, warmup_epochs=2))
    with pytest.raises(UsageError, match="min_area"):
        TrainConfig(data=DataConfig(path=Path("x"), min_area=1.5))


def test_a_diverging_loss_stops_with_the_cure(cache, tmp_path):
    optimizer = OptimizerConfig(name="sgd", lr=1e12, clip_norm=0)
    with pytest.raises(
        ProblemFoundError, match=r"for the samples .*shard.*lower --optimizer\.lr.*good checkpoint is .*step-0{8}"
    ):
        train(config(cache, tmp_path / "run", optimizer=optimizer))


def launch(processes, *arguments):
    """Run a job under `accelerate launch` on the CPU; its standard output."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    if processes > 1:
        command.append("--multi_gpu")  # with ACCELERATE_USE_CPU this means several CPU processes
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    port = ["--main_process_port", "0"] if processes > 1 else []
    result = subprocess.run(
        [*command, *port, "-m", *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_accelerate_launch_ends_with_the_same_weights_as_python(cache, run, tmp_path):
    """Once a difference: the launcher sets OMP_NUM_THREADS to 1, and other threads sum in another order."""
    options = ["--data.path", cache, "--data.engine", "cpu", "--data.batch_size", "16", "--data.min_area", "0.6"]
    options += ["--model.name", "test_efficientnet", "--model.drop_rate", "0.2", "--optimizer.lr", "5e-3"]
    options += ["--schedule.epochs", "4", "--schedule.warmup_epochs", "0.5"]
    launch(1, "training.train", *options, "--out", tmp_path / "launched")
    assert same(weights(run[0] / "last.safetensors"), weights(tmp_path / "launched" / "last.safetensors"))


@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one(cache, run, tmp_path):
    out, _ = run
    options = [
        "--data.path",
        cache,
        "--data.engine",
        "cpu",
        "--data.batch_size",
        "16",
        "--model.name",
        "test_efficientnet",
    ]
    options += ["--schedule.epochs", "4", "--schedule.warmup_epochs", "0.5", "--optimizer.lr", "5e-3"]
    launch(2, "training.train", *options, "--out", tmp_path / "two")
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    alone = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx([line["lr"] for line in alone])
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    for model in (out, tmp_path / "two"):
        reports = []
        for processes in (1, 2):
            folder = tmp_path / f"{model.name}{processes}"
            # Batches of 5 on two processes: 3 and 2 samples each, so that their shares of 14 are 8 and 6.
            evaluation = ["--model", model, "--data", cache, "--out", folder, "--engine", "cpu", "--batch_size", "5"]
            evaluation += ["--latency_rounds", "0"]
            reports.append(json.loads(launch(processes, "training.evaluate", *evaluation, "--json")))
            found = read_predictions(folder / "predictions_test.csv")
            expected = f1_score(found.labels, found.predicted, average="macro", zero_division=0)
            assert reports[-1]["macro_f1"] == pytest.approx(expected, abs=1e-12)
            assert found.ids.tolist() == CacheSource(cache, "test").ids.tolist()
        one, two = reports
        assert one["samples"] == two["samples"] == len(CacheSource(cache, "test").labels)
        assert one["confusion"] == two["confusion"]
        assert one["macro_f1"] == two["macro_f1"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_a_run_without_a_checkpoint_is_not_wiped(run, cache, tmp_path):
    copy = Path(shutil.copytree(run[0], tmp_path / "run"))
    shutil.rmtree(copy / "checkpoints")
    before = (copy / "best.safetensors").read_bytes()
    for resume in ("auto", "never"):
        with pytest.raises(UsageError, match="no checkpoint to go on from"):
            train(config(cache, copy, resume=resume))
    assert (copy / "best.safetensors").read_bytes() == before


def test_the_log_is_exact_after_a_kill_between_two_writes(run, cache, tmp_path):
    copy = Path(shutil.copytree(run[0], tmp_path / "run"))
    lines = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(lines + '{"epoch": 5, "half a li')
    halves = [copy / ".best.safetensors.partial-123", copy / "checkpoints" / ".step-00000003.pt.partial-123"]
    for half in halves:
        half.write_bytes(b"half")
    train(config(cache, copy))
    assert (copy / "metrics.jsonl").read_text() == lines
    assert not any(half.exists() for half in halves)


def test_the_saved_config_goes_on_with_the_run(cache, tmp_path):
    short = ScheduleConfig(epochs=1, warmup_epochs=0)
    train(config(cache, tmp_path / "run", schedule=short, overwrite=True))
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["overwrite"], saved["resume"]) == (False, "auto")


def test_a_rebuilt_cache_is_not_the_same_data(run, photos, tmp_path):
    """Same files and labels, other augmentations: the manifest's fingerprint tells."""
    for seed, name in ((0, "one"), (1, "two")):
        build(BuildConfig(data=photos, out=tmp_path / name, size=32, copies=1, engine="cpu", seed=seed))
    moved = tmp_path / "cache"
    short = ScheduleConfig(epochs=1, warmup_epochs=0)
    moved.symlink_to(tmp_path / "one")
    train(config(moved, tmp_path / "run", schedule=short))
    moved.unlink()
    moved.symlink_to(tmp_path / "two")
    with pytest.raises(UsageError, match="not the data that"):
        train(config(moved, tmp_path / "run", schedule=short))


def test_evaluate_cuts_a_folder_as_training_did(photos, tmp_path):
    """With another split the test images would be training images."""
    data = DataConfig(path=photos, size=32, batch_size=16, engine="cpu", val=0.2, test=0.3, split_seed=5)
    train(config(photos, tmp_path / "run", data=data, schedule=ScheduleConfig(epochs=1, warmup_epochs=0)))
    report = evaluate(EvaluateConfig(model=tmp_path / "run", data=photos, engine="cpu"))
    expected = open_splits(photos, SplitOptions(0.2, 0.3, 5))["test"]
    assert report["samples"] == len(expected.files) == 27


def test_an_unfinished_cache_says_so(cache, tmp_path):
    copy = Path(shutil.copytree(cache, tmp_path / "cache"))
    (copy / "manifest.json").unlink()
    with pytest.raises(UsageError, match="unfinished cache"):
        train(config(copy, tmp_path / "run"))


def test_a_floor_that_is_missed_still_gives_the_report(run, cache, tmp_path, capsys):
    words = ["--model", str(run[0]), "--data", str(cache), "--out", str(tmp_path), "--floor", "1.1", "--json"]
    with pytest.raises(SystemExit) as stop:
        run_job(EvaluateConfig, evaluate, name="training.evaluate", summary="", example="", argv=words)
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["macro_f1"] < 1.1
    assert "below the floor" in printed.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": -1}, "--seed must be 0"),
        ({"seed": 2**32}, "--seed must be 0"),
        ({"optimizer": OptimizerConfig(name="foo")}, r"--optimizer\.name foo"),
        ({"model": ModelConfig(name="vit_tiny_patch16_224")}, "cannot take images of 32 px"),
        ({"model": ModelConfig(drop_rate=2.0)}, r"--model\.drop_rate"),
    ],
)
def test_options_that_libraries_refuse_are_one_clear_error(cache, tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        train(config(cache, tmp_path / "run", **changes))


@pytest.mark.parametrize("changes", [{"model": ModelConfig(name="foo")}, {"data": DataConfig(path=Path("typo"))}])
def test_overwrite_keeps_the_old_run_until_the_new_options_are_known_to_work(run, cache, tmp_path, changes):
    copy = Path(shutil.copytree(run[0], tmp_path / "run"))
    before = contents(copy)
    with pytest.raises(UsageError):
        train(config(cache, copy, overwrite=True, **changes))
    assert contents(copy) == before


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_overwrite_leaves_nothing_of_the_old_run(run, cache, tmp_path):
    copy = Path(shutil.copytree(run[0], tmp_path / "run"))
    evaluate(EvaluateConfig(model=copy, data=cache, engine="cpu", latency_rounds=0))
    (copy / "best.onnx").write_bytes(b"of the old one")
    train(config(cache, copy, overwrite=True, schedule=ScheduleConfig(epochs=1, warmup_epochs=0)))
    assert {path.name for path in copy.iterdir() if not path.is_dir() or any(path.iterdir())} == {
        "config.yaml",
        "metrics.jsonl",
        "run.json",
        "best.safetensors",
        "last.safetensors",
        "checkpoints",
    }


def test_a_run_whose_config_is_gone_or_broken(run, cache, tmp_path):
    copy = Path(shutil.copytree(run[0], tmp_path / "run"))
    (copy / "config.yaml").write_text("{")
    with pytest.raises(UsageError, match=r"config\.yaml cannot be read"):
        train(config(cache, copy))
    (copy / "config.yaml").unlink()
    with pytest.raises(UsageError, match=r"config\.yaml cannot be read"):
        train(config(cache, copy))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        train(config(cache, tmp_path / "file"))
