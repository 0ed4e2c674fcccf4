"""Each trap of Accelerate's that others fell into, as a test that naive code would not pass.

Numbers in brackets are issues and pull requests of huggingface/accelerate, unless they say otherwise.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from augment_cache.format.source import CacheSource
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.loader import Loader, LoaderOptions
from tests.training.runs import config, log_of, srun, stop_at
from training.engine.config import ModelConfig
from training.engine.loop import Trainer
from training.engine.optimization import ScheduleConfig
from training.engine.preemption import PreemptedError
from training.engine.setup import processes_asked_for
from training.train import train

SHORT = ScheduleConfig(epochs=2, warmup_epochs=0.5)
BARE = ModelConfig(name="convnext_atto", channels_last=False)
"""No batch normalisation, no dropout: nothing depends on how a batch is cut."""


@pytest.fixture
def seen(monkeypatch):
    """Samples of each optimizer step."""
    steps, take = [], Trainer.step

    def noted(self, parts, number, total):
        steps.append((number, np.concatenate([part.rows[: part.real] for part in parts])))
        return take(self, parts, number, total)

    monkeypatch.setattr(Trainer, "step", noted)
    return steps


def test_mid_epoch_resume_neither_repeats_nor_loses_a_sample(cache, tmp_path, monkeypatch, seen):
    """save_state and skip_first_batches with a shuffled loader repeat 7 to 11 of 40 samples [2016, 3242]."""
    with monkeypatch.context() as patch:
        stop_at(patch, 10)
        with pytest.raises(PreemptedError):
            train(config(cache, tmp_path, schedule=SHORT))
    train(config(cache, tmp_path, schedule=SHORT))
    assert [number for number, _ in seen] == list(range(14))
    for epoch in range(2):
        rows = np.concatenate([rows for number, rows in seen if number // 7 == epoch])
        assert len(np.unique(rows)) == len(rows) == 7 * 16
    first, second = (np.concatenate([rows for number, rows in seen if number // 7 == epoch]) for epoch in range(2))
    assert not np.array_equal(first, second)


def test_accumulation_makes_every_step_and_leaks_nothing(cache, tmp_path, monkeypatch, seen):
    """A foreign loader makes 2 steps of 5 batches where it should make 3, and keeps a gradient for the next epoch."""
    after = []
    validate = Trainer.evaluate

    def looked(self, *arguments):
        after.append([parameter.grad for parameter in self.plain.parameters()])
        return validate(self, *arguments)

    monkeypatch.setattr(Trainer, "evaluate", looked)
    train(config(cache, tmp_path, schedule=SHORT, accumulate=4))
    assert [len(rows) for _, rows in seen] == [16] * 14
    assert len(after) == 2
    assert all(gradient is None for gradients in after for gradient in gradients)


def test_each_process_reads_its_own_share_and_no_more(cache):
    """Wrapped in an IterableDataset, a loader is dispatched: rank 0 reads everything."""
    source, asked = CacheSource(cache, "train"), {}

    def counting(rank):
        def fetch(rows):
            asked[rank].extend(rows.tolist())
            return source.fetch(rows)

        asked[rank] = []
        names = ("classes", "labels", "ids", "checked", "describe")
        return SimpleNamespace(fetch=fetch, fingerprint="", **{name: getattr(source, name) for name in names})

    lengths = set()
    for rank in range(3):
        engine = make_engine("cpu", RenderSpec(32), device="cpu", threads=1)
        loader = Loader(counting(rank), engine, LoaderOptions(batch_size=16, train=True, rank=rank, world=3))
        lengths.add(len(list(loader)))
        engine.close()
    together = [row for rows in asked.values() for row in rows]
    assert lengths == {7}
    assert len(together) == len(set(together)) == 7 * 16
    assert max(map(len, asked.values())) - min(map(len, asked.values())) <= 7


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("train_", [True, False])
def test_all_processes_make_equally_many_steps(cache, world, train_):
    """Unequal counts hang, or end the epoch early [DALI 2881, 1762, 3855]; whatever is left over at the end."""
    source = CacheSource(cache, "train")
    for batch_size in (5, 16, 17):
        counts, rows = [], []
        for rank in range(world):
            engine = make_engine("cpu", RenderSpec(32), device="cpu", threads=1)
            options = LoaderOptions(batch_size=batch_size, train=train_, rank=rank, world=world)
            batches = list(Loader(source, engine, options))
            engine.close()
            counts.append(len(batches))
            rows += [row for batch in batches for row in batch.rows[: batch.real].tolist()]
        whole = len(source.labels) // batch_size * batch_size if train_ else len(source.labels)
        assert len(set(counts)) == 1
        assert len(rows) == len(set(rows)) == whole


def arguments(cache, out, *more, model="convnext_atto"):
    return [
        *("--data.path", cache, "--data.engine", "cpu", "--data.batch_size", "16", "--model.name", model),
        *("--model.channels_last", "false", "--optimizer.lr", "5e-4", "--trackers", "", "--save.steps", "1000"),
        *("--schedule.epochs", "2", "--schedule.warmup_epochs", "0.5", "--out", out, *more),
    ]


VARIANTS = {
    "plain": [],
    "soft F1, mixed, averaged, accumulated": [
        *("--loss.name", "f1_focal", "--loss.class_balance", "0.5", "--mix.cutmix", "1", "--mix.mixup", "0.3"),
        *("--ema.decay", "0.9", "--accumulate", "2"),
    ],
    "batch normalisation": ["--model.sync_batchnorm", "true"],
}


@pytest.mark.parametrize(("status", "printed"), [(0, "{'sum': 2.0}\n"), (75, "")])
def test_a_rank_ends_well_though_a_thread_of_gloo_is_late(status, printed):
    """Once an abort: the thread drops a tensor, wants Python's lock for it, and Python is being taken down."""
    out, errors = srun(2, "tests.training.late_thread", "--status", status, expect=status)
    assert out == printed
    stopped = "tests.training.late_thread (rank {}): stopped\n" if status else ""
    assert errors == [stopped.format(rank) + "tidied\n" for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_processes_changes_neither_loss_nor_rate_nor_score(cache, tmp_path, variant):
    """A scheduler that is prepared steps once per process: a rate of 0 after half of the steps [2926, 2773, 1382].

    A mean over padded batches, or over uneven shares, is another loss. No launcher: the environment of srun suffices.
    """
    model = "test_efficientnet" if variant == "batch normalisation" else "convnext_atto"
    for processes in (1, 2):
        out = tmp_path / str(processes)
        _, errors = srun(processes, "training.train", *arguments(cache, out, *VARIANTS[variant], model=model))
        assert f"{processes} process" in errors[0]
    one, two = (log_of(tmp_path / str(processes)) for processes in (1, 2))
    assert len(one) == len(two) == 2
    for alone, together in zip(one, two, strict=True):
        assert (together["step"], together["lr"]) == (alone["step"], alone["lr"])
        assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)
        assert together["val_macro_f1"] == alone["val_macro_f1"]
        assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-4)
    reports = []
    for processes in (1, 2):
        more = ["--engine", "cpu", "--batch_size", "5", "--out", tmp_path / f"evaluated{processes}", "--json"]
        printed, _ = srun(processes, "training.evaluate", "--model", tmp_path / "1", "--data", cache, *more)
        reports.append(json.loads(printed))
    assert reports[0]["confusion"] == reports[1]["confusion"]
    assert reports[0]["macro_f1"] == reports[1]["macro_f1"]


@pytest.mark.slow
def test_a_launcher_that_starts_one_process_where_two_were_asked_for(cache, tmp_path):
    """`accelerate launch --cpu --num_processes 2` runs one process, and says nothing."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*command, "training.train", *map(str, arguments(cache, tmp_path))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "1 process" in result.stderr
    assert "asked for 2 processes" in result.stderr
    assert "--multi_gpu" in result.stderr


@pytest.mark.parametrize(
    ("command", "count"),
    [
        ("python -m accelerate.commands.launch --cpu --num_processes 2 -m training.train", 2),
        ("python /venv/bin/accelerate launch --num_processes=4 -m training.train", 4),
        ("python /venv/bin/accelerate launch --num-processes 3 script.py", 3),
        ("python /venv/bin/accelerate launch -m training.train --num_processes 4", 1),
        ("python /venv/bin/accelerate launch --num_processes", 1),
        ("bash job.sh", 1),
        ("", 1),
    ],
)
def test_what_a_launcher_was_asked_for(command, count):
    assert processes_asked_for(command.split()) == count


def test_resume_means_what_it_says(cache, tmp_path):
    """`args.resume_from_checkpoint is not None or … != ""` in the examples is always true."""
    short = config(cache, tmp_path, schedule=ScheduleConfig(epochs=1, warmup_epochs=0))
    assert train(short)["resumed_at"] == 0
    assert train(short)["resumed_at"] == 7
    assert train(replace(short, overwrite=True))["resumed_at"] == 0


def test_noise_is_a_function_of_the_step(cache, tmp_path):
    """Generators that are restored at the wrong moment change dropout [RNG states in save_state]."""
    from training.engine.loop import seed_noise

    draws = []
    for key in [(0, 3, 0, 0), (0, 4, 0, 0), (0, 3, 1, 0), (0, 3, 0, 1), (1, 3, 0, 0), (0, 3, 0, 0)]:
        seed_noise(torch.device("cpu"), *key)
        draws.append(torch.rand(4).tolist())
    assert draws[0] == draws[-1]
    assert len({tuple(draw) for draw in draws}) == 5
