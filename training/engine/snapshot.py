"""Everything that a run needs to go on: into a checkpoint, and out of it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipelines.loader import Loader
from training.engine.loop import Trainer
from training.engine.state import RunState


def snapshot(state: RunState, trainer: Trainer, loader: Loader) -> dict[str, Any]:
    """Tensors, numbers, strings, and lists and dictionaries of them."""
    scaler = trainer.accelerator.scaler
    return {
        "state": asdict(state),
        "loader": loader.state_dict(),
        "model": trainer.plain.state_dict(),
        "ema": trainer.ema.module.state_dict() if trainer.ema is not None else None,
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }


def restore(checkpoint: Mapping[str, Any], trainer: Trainer, loader: Loader) -> RunState:
    """Put everything where `snapshot` took it from.

    Raises:
        RuntimeError, ValueError, KeyError, TypeError: It does not fit.
        UsageError: The loader reads something else.
    """
    state = RunState(**checkpoint["state"])
    loader.load_state_dict(checkpoint["loader"])
    trainer.plain.load_state_dict(checkpoint["model"])
    if trainer.ema is not None:
        trainer.ema.module.load_state_dict(checkpoint["ema"])
    trainer.optimizer.load_state_dict(checkpoint["optimizer"])
    trainer.schedule.load_state_dict(checkpoint["schedule"])
    trainer.schedule.set(max(state.step - 1, 0))
    if checkpoint["scaler"] is not None and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(checkpoint["scaler"])
    return state
