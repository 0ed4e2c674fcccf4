"""What a run does besides learning: saving, going back, stopping, averaging, mixing, logging."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from accelerate.tracking import GeneralTracker, register_tracker_class
from accelerate.utils import set_seed

from pipelines.console import files
from pipelines.errors import ProblemFoundError, UsageError
from tests.training.runs import at_step, config, log_of, same_model, stop_at, untimed
from training.engine.checkpoint import Checkpoints
from training.engine.config import (
    DataConfig,
    EmaConfig,
    MixConfig,
    ModelConfig,
    SaveConfig,
    StopConfig,
)
from training.engine.data import process_of
from training.engine.loop import Trainer
from training.engine.losses import LossConfig
from training.engine.optimization import OptimizerConfig, ScheduleConfig
from training.engine.preemption import PreemptedError
from training.evaluate import EvaluateConfig, evaluate
from training.model.create import create_model
from training.model.model_file import load_model, read_card, save_model
from training.model.start import start_from
from training.train import train

SHORT = ScheduleConfig(epochs=2, warmup_epochs=0.5)
MIXED = {"mix": MixConfig(mixup=0.4, cutmix=1.0, probability=0.8), "ema": EmaConfig(decay=0.9)}
VARIANTS = {
    "plain": {},
    "mixed, averaged": MIXED,
    "accumulated": {"accumulate": 4},
    "plateau": {"schedule": ScheduleConfig(name="plateau", epochs=2, warmup_epochs=0, patience=0)},
    "soft F1": {"loss": LossConfig(name="f1_focal", class_balance=0.5)},
    "bfloat16": {"precision": "bf16"},
    "balanced": {"order": "balanced", "loss": LossConfig(class_balance=1.0)},
    "frozen": {"model": ModelConfig(name="test_efficientnet", freeze="conv_stem,bn1,blocks.0", drop_path=0.2)},
}


@pytest.fixture(scope="module")
def straight(cache, tmp_path_factory):
    """Runs that nothing disturbed, by variant."""
    outs = {}
    for name, changes in VARIANTS.items():
        out = tmp_path_factory.mktemp("straight") / "run"
        train(options_of(cache, out, changes))
        outs[name] = out
    return outs


def test_a_run_from_before_an_option_goes_on_if_that_is_as_it_was(cache, tmp_path, monkeypatch):
    """What its config.yaml does not know stands for the default."""
    options = config(cache, tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(PreemptedError):
            train(options)
    path = tmp_path / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    del saved["data"]["views"], saved["mix"], saved["max_requeues"]
    path.write_text(yaml.safe_dump(saved))
    with pytest.raises(UsageError, match=r"data\.views was 0, now 2"):
        train(replace(options, data=replace(options.data, views=2)))
    assert train(options)["resumed_at"] == 4


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("step", [3, 9])
def test_every_kind_of_run_goes_on_exactly(straight, cache, tmp_path, monkeypatch, variant, step):
    options = options_of(cache, tmp_path, VARIANTS[variant])
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(PreemptedError):
            train(options)
    train(options)
    assert untimed(tmp_path) == untimed(straight[variant])
    assert same_model(tmp_path, straight[variant])
    assert same_model(tmp_path, straight[variant], "best.safetensors")


def options_of(cache, out, changes):
    """Data options are changed within the data options."""
    changes = {"schedule": SHORT, **changes}
    order = changes.pop("order", "shuffled")
    base = config(cache, out, **changes)
    return replace(base, data=replace(base.data, order=order))


def test_variants_are_not_the_same_run(straight):
    """Or the test above would compare a run with itself."""
    losses = [untimed(out)[-1]["train_loss"] for out in straight.values()]
    assert len(set(losses)) == len(losses)


def test_when_checkpoints_are_written_changes_no_weight(straight, cache, tmp_path):
    train(config(cache, tmp_path, schedule=SHORT, save=SaveConfig(steps=2, keep=5)))
    assert same_model(tmp_path, straight["plain"])
    steps = [int(path.name[5:13]) for path in Checkpoints(tmp_path).paths()]
    assert steps == [6, 8, 10, 12, 14]


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(straight, cache, tmp_path, monkeypatch, capsys):
    options = config(cache, tmp_path, schedule=SHORT, save=SaveConfig(steps=2, keep=2))
    with monkeypatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(PreemptedError):
            train(options)
    newest = Checkpoints(tmp_path).paths()[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    report = train(options)
    assert report["resumed_at"] == 8
    assert f"{newest.name} is damaged" in capsys.readouterr().err
    assert same_model(tmp_path, straight["plain"])
    assert untimed(tmp_path) == untimed(straight["plain"])


class FullDisk:
    """fsync fails as long as the disk is full, for some files."""

    def __init__(self, monkeypatch):
        self.full, self.refused = False, 0
        real = os.fsync

        def fsync(descriptor):
            if self.full:
                self.refused += 1
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(files.os, "fsync", fsync)


def test_a_disk_that_is_full_for_a_while_stops_nothing(straight, cache, tmp_path, monkeypatch, capsys):
    disk = FullDisk(monkeypatch)

    def stepped(self, parts, number, total, take=Trainer.step):
        disk.full = 4 <= number <= 8
        return take(self, parts, number, total)

    monkeypatch.setattr(Trainer, "step", stepped)
    train(config(cache, tmp_path, schedule=SHORT, save=SaveConfig(steps=2)))
    assert disk.refused
    printed = capsys.readouterr().err
    assert "could not be written (No space left on device); free space" in printed
    assert "The last complete one is" in printed
    assert same_model(tmp_path, straight["plain"])
    assert same_model(tmp_path, straight["plain"], "best.safetensors")


def test_a_disk_that_is_full_at_the_end_is_an_error_and_nothing_is_lost(straight, cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        disk = FullDisk(patch)
        at_step(patch, 12, lambda: setattr(disk, "full", True))
        with pytest.raises(OSError, match="No space left"):
            train(config(cache, tmp_path, schedule=SHORT, save=SaveConfig(steps=5)))
    assert train(config(cache, tmp_path, schedule=SHORT))["resumed_at"] == 10
    assert same_model(tmp_path, straight["plain"])


def test_a_save_that_fails_does_not_hide_the_signal(straight, cache, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        disk = FullDisk(patch)

        def both():
            disk.full = True
            os.kill(os.getpid(), signal.SIGTERM)

        at_step(patch, 10, both)
        with pytest.raises(PreemptedError, match="SIGTERM") as stopped:
            train(config(cache, tmp_path, schedule=SHORT, save=SaveConfig(steps=4)))
    assert stopped.value.exit_status == 75
    assert "could not be written" in capsys.readouterr().err
    assert train(config(cache, tmp_path, schedule=SHORT))["resumed_at"] == 8
    assert same_model(tmp_path, straight["plain"])


@pytest.mark.parametrize("when", ["evaluation", "checkpoint"])
def test_a_signal_outside_of_the_steps(straight, cache, tmp_path, monkeypatch, when):
    """Evaluation never looked at the flag in other people's loops."""
    options = config(cache, tmp_path, schedule=SHORT, save=SaveConfig(steps=5))
    with monkeypatch.context() as patch:
        holder, name = (Trainer, "evaluate") if when == "evaluation" else (Checkpoints, "save")
        whole = getattr(holder, name)

        def signalled(*arguments, **more):
            os.kill(os.getpid(), signal.SIGTERM)
            return whole(*arguments, **more)

        if when == "checkpoint":  # not the one before the first step
            at_step(patch, 1, lambda: patch.setattr(holder, name, signalled))
        else:
            patch.setattr(holder, name, signalled)
        with pytest.raises(PreemptedError):
            train(options)
    report = train(options)
    assert report["resumed_at"] == (7 if when == "evaluation" else 6)
    assert same_model(tmp_path, straight["plain"])
    assert untimed(tmp_path) == untimed(straight["plain"])


def test_a_signal_before_the_first_step(straight, cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "training.train.create_model",
            lambda *a, **k: os.kill(os.getpid(), signal.SIGUSR1) or create_model(*a, **k),
        )
        with pytest.raises(PreemptedError):
            train(config(cache, tmp_path, schedule=SHORT))
    train(config(cache, tmp_path, schedule=SHORT))
    assert same_model(tmp_path, straight["plain"])


def test_free_options_may_change_when_a_run_goes_on(straight, cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(PreemptedError):
            train(config(cache, tmp_path, schedule=SHORT))
    changed = config(cache, tmp_path, schedule=SHORT, save=SaveConfig(minutes=5), loss_limit=0.0, max_requeues=1)
    train(replace(changed, data=replace(changed.data, resident="off", check="off", threads=1)))
    assert same_model(tmp_path, straight["plain"])


def test_accumulated_steps_are_the_same_steps(cache, tmp_path):
    """Of a network without batch normalisation and noise: each step sees the same samples and means the same loss."""
    model = ModelConfig(name="convnext_atto", channels_last=False)
    for parts in (1, 2, 8):
        out = tmp_path / str(parts)
        train(config(cache, out, model=model, accumulate=parts, schedule=ScheduleConfig(epochs=1, warmup_epochs=0.5)))
    one, two, eight = (log_of(tmp_path / str(parts))[0] for parts in (1, 2, 8))
    for other in (two, eight):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert (other["lr"], other["step"]) == (one["lr"], one["step"])


def test_the_average_is_what_is_evaluated_and_kept(cache, tmp_path, straight):
    out = tmp_path / "ema"
    train(config(cache, out, schedule=SHORT, ema=EmaConfig(decay=0.97, warmup=False)))
    checkpoint = Checkpoints(out).load(pytest.fail)
    kept = load_model(out / "last.safetensors")[0].state_dict()
    assert all(torch.equal(kept[name], value) for name, value in checkpoint["ema"].items())
    assert not torch.equal(checkpoint["ema"]["classifier.weight"], checkpoint["model"]["classifier.weight"])
    # The average changes nothing of how the network itself learns.
    plain = Checkpoints(straight["plain"]).load(pytest.fail)
    assert torch.equal(checkpoint["model"]["classifier.weight"], plain["model"]["classifier.weight"])


def test_early_stopping_and_going_on_with_it(cache, tmp_path, monkeypatch):
    """With a rate of nothing no epoch is better than the first."""
    options = config(
        cache,
        tmp_path,
        optimizer=OptimizerConfig(lr=1e-12),
        schedule=ScheduleConfig(epochs=9, warmup_epochs=0),
        stop=StopConfig(patience=2, min_delta=0.2),
    )
    with monkeypatch.context() as patch:
        stop_at(patch, 17)
        with pytest.raises(PreemptedError):
            train(options)
    report = train(options)
    assert (report["epochs"], report["best_epoch"], report["stopped_early"]) == (3, 1, True)
    again = train(options)
    assert (again["epochs"], again["resumed_at"]) == (3, 21)
    assert len(log_of(tmp_path)) == 3


@pytest.mark.parametrize("train_on", ["train+val", "all"])
def test_training_on_all_data_keeps_the_last_epoch(cache, tmp_path, train_on):
    data = DataConfig(path=cache, batch_size=16, engine="cpu", train_on=train_on)
    report = train(config(cache, tmp_path, data=data, schedule=SHORT))
    assert report["val_macro_f1"] is None
    assert report["best_epoch"] == report["epochs"] == 2
    assert same_model(tmp_path, tmp_path, "best.safetensors")
    card = read_card(tmp_path / "best.safetensors")
    assert "val_macro_f1" not in card.provenance
    rows = {"train+val": 126 + 13, "all": 126 + 13 + 14}
    assert report["steps"] == 2 * (rows[train_on] // 16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accumulate": 3}, "--data.batch_size 16 cannot be cut into --accumulate 3"),
        ({"save": SaveConfig(keep=0)}, "--save.keep must be above 0"),
        ({"stop": StopConfig(patience=-1)}, "--stop.patience"),
        ({"ema": EmaConfig(decay=1.0)}, "--ema.decay"),
        ({"trackers": "nosuch"}, "--trackers nosuch is none of"),
        ({"trackers": "comet_ml"}, "--trackers comet_ml needs a package"),
        ({"model": ModelConfig(name="test_efficientnet", freeze="nosuch")}, "cannot freeze 'nosuch'"),
        ({"model": ModelConfig(name="test_efficientnet", weights="pretrained")}, "--model.weights pretrained"),
        ({"model": ModelConfig(name="test_efficientnet", drop_path=1.0)}, r"--model\.drop_path"),
        ({"accumulate": 16}, "one image at a time, of which batch normalisation .* has no statistics"),
    ],
)
def test_options_that_make_no_sense(cache, tmp_path, changes, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(UsageError, match=words):
        train(config(cache, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_mixing_that_makes_no_sense():
    with pytest.raises(UsageError, match=r"--mix\.mixup must be 0"):
        MixConfig(mixup=-1)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"folds": 3}},
        {"stop": {"patience": 1}},
        {"schedule": {"name": "plateau"}},
    ],
    ids=str,
)
def test_what_needs_a_validation_split(cache, tmp_path, changes):
    base = config(cache, tmp_path)
    parts = {name: replace(getattr(base, name), **values) for name, values in changes.items()}
    data = replace(parts.get("data", base.data), train_on="train+val")
    with pytest.raises(UsageError, match="validation split"):
        replace(base, **{**parts, "data": data})


@pytest.mark.parametrize(("folds", "fold"), [(1, None), (3, 3), (0, 0), (3, -1)])
def test_folds_that_do_not_exist(cache, tmp_path, folds, fold):
    with pytest.raises(UsageError, match="does not exist"):
        config(cache, tmp_path, data=DataConfig(path=cache, folds=folds, fold=fold))


def test_fine_tuning_from_a_run(straight, cache, tmp_path):
    model = ModelConfig(name="test_efficientnet", weights=str(straight["plain"]))
    options = OptimizerConfig(lr=1e-9, layer_decay=0.5)
    train(config(cache, tmp_path, model=model, optimizer=options, schedule=ScheduleConfig(epochs=1, warmup_epochs=0)))
    assert log_of(tmp_path)[0]["train_loss"] < log_of(straight["plain"])[0]["train_loss"] - 0.1
    other = ModelConfig(name="test_resnet", weights=str(straight["plain"]))
    with pytest.raises(UsageError, match="does not fit"):
        train(config(cache, tmp_path / "other", model=other))


def test_frozen_parts_do_not_move(straight, cache):
    kept, moved = (load_model(straight[name] / "last.safetensors")[0].state_dict() for name in ("frozen", "plain"))
    torch.manual_seed(0)
    set_seed(0)
    fresh = create_model("test_efficientnet", 3, drop_path=0.2).state_dict()
    for name in ("conv_stem.weight", "bn1.weight", "blocks.0.0.conv.weight"):
        assert torch.equal(kept[name], fresh[name])
        assert not torch.equal(moved[name], fresh[name])
    assert kept["bn1.running_mean"].abs().max() == 0
    assert moved["bn1.running_mean"].abs().max() > 0
    assert kept["blocks.1.0.bn1.running_mean"].abs().max() > 0


def test_a_diverging_loss_names_the_samples_and_the_last_good_checkpoint(cache, tmp_path, monkeypatch):
    def poisoned(self, parts, number, total, take=Trainer.step):
        share = take(self, parts, number, total)
        return share * np.nan if number == 9 else share

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(ProblemFoundError, match=r"step 10 is nan, for the samples .*colours") as error:
        train(config(cache, tmp_path, save=SaveConfig(steps=1)))
    last = Checkpoints(tmp_path).paths()[-1]
    assert last.name.startswith("step-00000009")
    assert str(last) in str(error.value)


def test_a_loss_that_runs_away_is_stopped_and_the_limit_can_be_lifted(cache, tmp_path):
    wild = OptimizerConfig(name="sgd", lr=3.0, clip_norm=0)
    short = ScheduleConfig(epochs=1, warmup_epochs=0)
    with pytest.raises(ProblemFoundError, match="--loss_limit"):
        train(config(cache, tmp_path / "a", optimizer=wild, schedule=short, loss_limit=0.9))
    train(config(cache, tmp_path / "b", optimizer=wild, schedule=short, loss_limit=0.0))


def test_one_run_id_however_often_it_is_resumed(cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(PreemptedError):
            train(config(cache, tmp_path, schedule=SHORT, trackers="tensorboard"))
    first = json.loads((tmp_path / "run.json").read_text())
    train(config(cache, tmp_path, schedule=SHORT, trackers="tensorboard"))
    second = json.loads((tmp_path / "run.json").read_text())
    assert first["id"] == second["id"]
    assert [len(run["starts"]) for run in (first, second)] == [1, 2]
    assert second["starts"][0] == first["starts"][0]
    assert {"torch", "timm", "accelerate"} <= second["starts"][1]["packages"].keys()


def test_tensorboard_holds_each_epoch_once_after_going_back(cache, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = config(cache, tmp_path, schedule=SHORT, trackers="tensorboard", save=SaveConfig(steps=5))
    with monkeypatch.context() as patch:
        at_step(patch, 13, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(options)
    assert train(options)["resumed_at"] == 10
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scores = events.Scalars("epoch/val_macro_f1")
    assert [event.step for event in scores] == [7, 14]
    assert train(options)["resumed_at"] == 14  # once more, though all is done
    again = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("epoch/val_macro_f1")
    assert [event.step for event in again] == [7, 14]
    assert [event.value for event in scores] == pytest.approx([line["val_macro_f1"] for line in log_of(tmp_path)])


def test_metrics_catch_up_after_a_full_disk(straight, cache, tmp_path, monkeypatch, capsys):
    """An appended line that fails is written with the next one."""
    opened, failed = Path.open, []

    def full(self, mode="r", *arguments, **more):
        if self.name == "metrics.jsonl" and mode == "a" and not failed:
            failed.append(self)
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, mode, *arguments, **more)

    monkeypatch.setattr(Path, "open", full)
    train(config(cache, tmp_path, schedule=SHORT))
    assert failed
    assert "metrics.jsonl could not be written" in capsys.readouterr().err
    assert untimed(tmp_path) == untimed(straight["plain"])


def test_no_room_is_found_out_before_training(cache, tmp_path, monkeypatch):
    steps = []
    at_step(monkeypatch, 0, lambda: steps.append(0))
    disk = FullDisk(monkeypatch)
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        train(config(cache, tmp_path, schedule=SHORT))
    assert not steps


class Diary(GeneralTracker):
    """A tracker of somebody else's."""

    name, requires_logging_directory = "diary", False
    pages: ClassVar[list] = []

    def __init__(self, project, **options):
        super().__init__()
        self.pages.append(("begin", project))

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.pages.append(("options", values))

    def log(self, values, step=None, **more):
        self.pages.append((step, values))


def test_other_trackers_by_name(cache, tmp_path):
    register_tracker_class(Diary)
    train(config(cache, tmp_path, schedule=SHORT, trackers="tensorboard,diary"))
    (begin, project), (_, options), *pages = Diary.pages
    assert (begin, project) == ("begin", "tacopress")
    assert options["model.name"] == "test_efficientnet"
    scores = {step: values["epoch/val_macro_f1"] for step, values in pages if "epoch/val_macro_f1" in values}
    assert scores == {line["step"]: line["val_macro_f1"] for line in log_of(tmp_path)}
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


@pytest.mark.parametrize("name", ["shufflenet_g3_wd4", "squeezenet", "yaml file"])
def test_models_that_are_not_of_timm(cache, tmp_path, monkeypatch, name):
    """Train, stop, go on, and rebuild from the model file, though the YAML file may be gone."""
    if name == "yaml file":
        name = str(tmp_path / "mine.yaml")
        Path(name).write_text(MINE)
    options = config(cache, tmp_path / "run", model=ModelConfig(name=name), schedule=SHORT)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(PreemptedError):
            train(options)
    train(options)
    (tmp_path / "mine.yaml").unlink(missing_ok=True)
    model, card = load_model(tmp_path / "run" / "best.safetensors")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert (card.definition is None) == (name == "shufflenet_g3_wd4")


MINE = """
input_channel: 3
depth_multiple: 1.0
width_multiple: 1.0
backbone:
  - [1, Conv, [16, 3, 2]]
  - [2, InvertedResidualv3, [3, 2, 16, 1, 1, 2]]
  - [1, GlobalAvgPool, []]
  - [1, Flatten, []]
  - [1, Linear, [6]]
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="NOT TESTED, torch.compile: no C++ compiler")
def test_a_compiled_network_learns_the_same(straight, cache, tmp_path):
    model = ModelConfig(name="test_efficientnet", drop_rate=0.2, compile=True)
    train(config(cache, tmp_path, model=model, schedule=SHORT))
    compiled, plain = log_of(tmp_path)[0], log_of(straight["plain"])[0]
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=0.05)
    load_model(tmp_path / "best.safetensors")


def stopped_at(cache, out, monkeypatch, step, **changes):
    """A run that was stopped."""
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(PreemptedError):
            train(config(cache, out, schedule=SHORT, **changes))


def test_a_requeued_run_is_not_overwritten(straight, cache, tmp_path, monkeypatch):
    """Slurm runs the same command again, whatever it said about old runs."""
    stopped_at(cache, tmp_path, monkeypatch, 5, overwrite=True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train(config(cache, tmp_path, schedule=SHORT, overwrite=True))["resumed_at"] == 6
    assert same_model(tmp_path, straight["plain"])
    assert train(config(cache, tmp_path, schedule=SHORT, resume="never"))["resumed_at"] == 14
    other = config(cache, tmp_path, schedule=SHORT, seed=1, overwrite=True)
    assert train(other)["resumed_at"] == 0  # that is no restart of the same run


def test_a_definition_that_changed_is_another_network(cache, tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    model = ModelConfig(name=str(path))
    stopped_at(cache, tmp_path / "run", monkeypatch, 3, model=model)
    for old, new in (("width_multiple: 1.0", "width_multiple: 2.0"), ("[16, 3, 2]", "[16, 3, 2, null, 1, Hardswish]")):
        path.write_text(MINE.replace(old, new))
        with pytest.raises(UsageError, match="its definition has changed"):
            train(config(cache, tmp_path / "run", model=model, schedule=SHORT))


def test_a_checkpoint_that_does_not_fit_is_one_clear_error(cache, tmp_path, monkeypatch):
    """As after an update of timm."""
    stopped_at(cache, tmp_path, monkeypatch, 3)
    checkpoints = Checkpoints(tmp_path)
    state = checkpoints.load(pytest.fail)
    state["model"].popitem()
    checkpoints.save(5, {name: value for name, value in state.items() if name != "version"})
    with pytest.raises(UsageError, match="does not fit the network"):
        train(config(cache, tmp_path, schedule=SHORT))


@pytest.mark.parametrize("step", [9, 13])
def test_weights_that_are_no_numbers_are_never_saved(cache, tmp_path, monkeypatch, step):
    """The loss of their step was still fine; in the last step nobody would have noticed."""

    def poisoned(self, parts, number, total, take=Trainer.step):
        share = take(self, parts, number, total)
        if number == step:
            next(self.plain.parameters()).data.fill_(np.nan)
        return share

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(ProblemFoundError, match=r"last good checkpoint is .*best model \(of epoch 1\)"):
        train(config(cache, tmp_path, schedule=SHORT, save=SaveConfig(steps=step + 1, keep=1)))
    (last,) = Checkpoints(tmp_path).paths()
    assert "step-00000000" in last.name
    assert read_card(tmp_path / "best.safetensors").provenance["epoch"] == 1
    assert not (tmp_path / "last.safetensors").exists()
    assert all(json.dumps(line, allow_nan=False) for line in log_of(tmp_path))


def test_a_damaged_checkpoint_takes_no_place_of_a_whole_one(cache, tmp_path, monkeypatch):
    stopped_at(cache, tmp_path, monkeypatch, 8, save=SaveConfig(steps=4))
    newest = Checkpoints(tmp_path).paths()[-1]
    newest.write_bytes(b"")
    stopped_at(cache, tmp_path, monkeypatch, 9, save=SaveConfig(steps=100))
    steps = [int(path.name[5:13]) for path in Checkpoints(tmp_path).paths()]
    assert steps == [8, 10]


def test_starting_weights_are_needed_once(straight, cache, tmp_path, monkeypatch):
    copy = Path(shutil.copy(straight["plain"] / "best.safetensors", tmp_path / "start.safetensors"))
    model = ModelConfig(name="test_efficientnet", weights=str(copy))
    stopped_at(cache, tmp_path / "run", monkeypatch, 3, model=model)
    copy.unlink()
    assert train(config(cache, tmp_path / "run", schedule=SHORT, model=model))["resumed_at"] == 4


def test_a_run_cannot_start_from_what_it_replaces(straight, cache, tmp_path):
    out = Path(shutil.copytree(straight["plain"], tmp_path / "run"))
    model = ModelConfig(name="test_efficientnet", weights=str(out))
    with pytest.raises(UsageError, match="which a new run replaces"):
        train(config(cache, out, model=model, overwrite=True))
    assert (out / "best.safetensors").exists()


def test_the_classifier_of_other_classes_is_not_taken_over(straight):
    weights = str(straight["plain"])
    known = load_model(straight["plain"] / "best.safetensors")[0].state_dict()["classifier.weight"]
    for classes, taken in ((("blue", "green", "red"), True), (("a", "b", "c"), False)):
        model = create_model("test_efficientnet", 3)
        start_from(model, "test_efficientnet", weights, classes)
        assert torch.equal(model.state_dict()["classifier.weight"], known) == taken


def test_options_that_changed_are_written_down(cache, tmp_path, monkeypatch):
    stopped_at(cache, tmp_path, monkeypatch, 3)
    train(config(cache, tmp_path, schedule=SHORT, loss_limit=7.0))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["loss_limit"] == 7.0


def test_two_runs_in_one_folder(cache, tmp_path, monkeypatch):
    def second():
        with pytest.raises(UsageError, match="is being trained by another process"):
            train(config(cache, tmp_path, schedule=SHORT))

    at_step(monkeypatch, 3, second)
    train(config(cache, tmp_path, schedule=SHORT))
    assert not (tmp_path / ".lock").exists()


def test_a_job_of_slurm_comes_back_later_where_a_process_of_its_first_start_lives_on(cache, tmp_path, monkeypatch):
    def second():
        with monkeypatch.context() as restarted:
            restarted.setenv("SLURM_RESTART_COUNT", "1")
            with pytest.raises(PreemptedError, match="still being trained") as stopped:
                train(config(cache, tmp_path, schedule=SHORT))
        assert stopped.value.exit_status == 75

    at_step(monkeypatch, 3, second)
    train(config(cache, tmp_path, schedule=SHORT))


def test_threads_and_neighbours(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("training.engine.data.usable_cores", lambda: 8)

    def process(world):
        device = torch.device("cpu")
        return process_of(SimpleNamespace(process_index=0, num_processes=world, device=device))

    assert (process(4).local_world, process(4).threads(0), process(4).threads(3)) == (1, 8, 3)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4(x2)")
    assert (process(8).local_world, process(8).threads(0)) == (4, 2)
    assert process(1).local_world == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert process(8).local_world == 2
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert process(8).threads(0) == 3


@pytest.mark.parametrize(
    ("train_on", "split", "warns"),
    [("train", "test", False), ("train+val", "test", False), ("train+val", "val", True), ("all", "test", True)],
)
def test_evaluating_on_what_was_learned_says_so(straight, cache, tmp_path, capsys, train_on, split, warns):
    model, card = load_model(straight["plain"] / "best.safetensors")
    assert card.provenance["learned_from"] == "train"
    save_model(tmp_path / "m.safetensors", model, replace(card, provenance={"learned_from": train_on}))
    evaluate(EvaluateConfig(model=tmp_path / "m.safetensors", data=cache, split=split, out=tmp_path, engine="cpu"))
    assert ("has learned from the" in capsys.readouterr().err) == warns
