"""On a GPU: a run learns, stops in mid-epoch and goes on to the same weights. A rehearsal tries it on the CPU."""

import os
from dataclasses import replace

import pytest
import torch

from tests.training.conftest import cache, photos  # noqa: F401 - fixtures
from tests.training.runs import config, log_of, stop_at, weights
from training.engine.config import DataConfig, EmaConfig, MixConfig
from training.engine.preemption import PreemptedError
from training.evaluate import EvaluateConfig, evaluate
from training.train import train

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and "REHEARSE" not in os.environ, reason="torch sees no CUDA device"
)


def options(folder, out, **changes):
    """Deterministic, with the engine that the machine has."""
    base = config(folder, out, deterministic=True, **changes)
    return replace(base, data=DataConfig(path=folder, batch_size=16, min_area=0.6))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_that_was_stopped_ends_with_the_same_weights(cache, tmp_path, monkeypatch, precision):  # noqa: F811
    whole, parts = (options(cache, tmp_path / name, precision=precision) for name in ("whole", "parts"))
    train(whole)
    with monkeypatch.context() as patched:
        stop_at(patched, 10)
        with pytest.raises(PreemptedError):
            train(parts)
    train(parts)
    one, two = (weights(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), rtol=1e-3, atol=1e-4), name
    losses = [[line["train_loss"] for line in log_of(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_mixed_and_averaged_runs_learn(cache, tmp_path):  # noqa: F811
    mixed = options(cache, tmp_path / "run", precision="bf16", mix=MixConfig(cutmix=1.0), ema=EmaConfig(decay=0.9))
    train(mixed)
    losses = [line["train_loss"] for line in log_of(tmp_path / "run")]
    assert losses[-1] < losses[0]
    report = evaluate(EvaluateConfig(model=tmp_path / "run", data=cache, latency_rounds=0, resamples=100))
    assert report["samples"] == 14
