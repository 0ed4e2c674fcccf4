"""Small runs for tests: options, comparisons, other processes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace

import torch

from training.engine.config import DataConfig, ModelConfig, TrainConfig
from training.engine.loop import Trainer
from training.engine.optimization import OptimizerConfig, ScheduleConfig
from training.model.model_file import load_model

KEPT = ("epoch", "step", "lr", "train_loss", "val_loss", "val_macro_f1", "val_accuracy")


def config(cache, out, **changes):
    """Four epochs of seven steps; learns three colours in seconds."""
    base = TrainConfig(
        data=DataConfig(path=cache, batch_size=16, min_area=0.6, engine="cpu"),
        model=ModelConfig(name="test_efficientnet", drop_rate=0.2),
        optimizer=OptimizerConfig(lr=5e-3),
        schedule=ScheduleConfig(epochs=4, warmup_epochs=0.5),
        out=out,
        trackers="",
    )
    return replace(base, **changes)


def weights(path):
    return load_model(path)[0].state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_model(a, b, name="last.safetensors"):
    return same(weights(a / name), weights(b / name))


def log_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def untimed(out):
    """What metrics.jsonl says, but for times and memory."""
    return [{name: line[name] for name in KEPT if name in line} for line in log_of(out)]


def at_step(monkeypatch, step, action):
    """Do something in the middle of a step."""
    take = Trainer.step

    def stepped(self, parts, count, total):
        if count == step:
            action()
        return take(self, parts, count, total)

    monkeypatch.setattr(Trainer, "step", stepped)


def stop_at(monkeypatch, step, number=signal.SIGUSR1):
    """Send a signal to ourselves in the middle of a step."""
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), number))


def free_port():
    """The first of three in a row that nobody listens on; below those that systems give to clients."""
    for first in random.sample(range(15_000, 32_000, 3), 100):
        with suppress(OSError), ExitStack() as sockets:
            for port in range(first, first + 3):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


def srun(processes, module, *arguments, expect=0, **environment):
    """Run a job in several CPU processes that know each other by their environment only, as under srun.

    Returns:
        (standard output of the first, standard errors of all).
    """
    port = str(free_port())
    started = []
    for rank in range(processes):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place = {name: str(value) for name, value in world.items()} if processes > 1 else {}
        fixed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                env={**os.environ, **fixed, "CUDA_VISIBLE_DEVICES": "", **place, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        results = [process.communicate(timeout=400) for process in started]
    finally:
        for process in started:
            process.kill()
    errors = [error for _, error in results]
    assert [process.returncode for process in started] == [expect] * processes, "\n".join(errors)[-6000:]
    return results[0][0], errors
