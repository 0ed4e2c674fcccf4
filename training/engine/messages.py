"""What a run says about itself: lines of progress, lines of epochs."""

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.console.output import human_bytes
from training.engine.metrics import Scores
from training.engine.state import RunState
from training.engine.watch import Trouble

SHOWN = 8
"""Samples that a message names."""


def where(state: RunState, steps: int, epochs: int) -> str:
    """How far a run has come, in words."""
    inside = state.step - state.epoch * steps
    within = f" and {inside} of {steps} steps" if inside else ""
    return f"after epoch {state.epoch}{within} of {epochs}"


def progress_text(state: RunState, loss: float, images: int, device: torch.device) -> str:
    """What a line of progress says besides the count.

    Args:
        state: Of the run.
        loss: Of the last steps.
        images: Of the epoch under way, so far.
        device: Whose memory to show.
    """
    seconds = max(state.seconds, 1e-9)
    return (
        f"epoch {state.epoch + 1} · loss {loss:.3f} · {images / seconds:,.0f} images/s · "
        f"data wait {100 * state.data_wait / seconds:.0f} % · {human_bytes(memory(device))}"
    )


def epoch_line(
    state: RunState, steps: int, images: int, rate: float, scores: Scores | None, val_loss: float | None
) -> dict[str, Any]:
    """What metrics.jsonl says of the epoch that has just been trained and validated.

    Args:
        state: Of the run, before the epoch counts as finished.
        steps: Of the epoch.
        images: Of the epoch.
        rate: The learning rate of its last step.
        scores: On the validation split; None without one.
        val_loss: Likewise.
    """
    line: dict[str, Any] = {
        "epoch": state.epoch + 1,
        "step": state.step,
        "lr": rate,
        "train_loss": state.loss / steps,
    }
    if scores is not None:
        line |= {"val_loss": val_loss, "val_macro_f1": scores.macro_f1, "val_accuracy": scores.accuracy}
    return line | {
        "seconds": round(state.seconds, 3),
        "data_wait": round(state.data_wait, 3),
        "images_per_second": round(images / max(state.seconds, 1e-9), 1),
    }


def epoch_text(line: Mapping[str, Any], epochs: int, *, better: bool) -> str:
    """The line for people."""
    scores = ""
    if "val_loss" in line:
        scores = f"val loss {line['val_loss']:.3f} · val macro F1 {line['val_macro_f1']:.4f}{' (best)' * better} · "
    wait = 100 * line["data_wait"] / max(line["seconds"], 1e-9)
    return (
        f"epoch {line['epoch']}/{epochs} · loss {line['train_loss']:.3f} · {scores}"
        f"{line['images_per_second']:,.0f} images/s · waited for data {wait:.0f} %"
    )


def trouble_text(
    trouble: Trouble | None, names: Sequence[str], state: RunState, checkpoints: Sequence[Path], best: Path | None
) -> str:
    """Why a run gives up, of which samples, and what is still good.

    Args:
        trouble: What this process saw; None if it was another one, or only the weights are wrong.
        names: Of the samples of that step.
        state: Of the run.
        checkpoints: Those that there are, oldest first.
        best: The best model so far.
    """
    good = f"The last good checkpoint is {checkpoints[-1]}" if checkpoints else "There was no checkpoint yet"
    if best is not None:
        good += f", the best model (of epoch {state.best_epoch}) {best}"
    cure = f"lower --optimizer.lr, or set --optimizer.clip_norm or --loss_limit. {good}"
    if trouble is None:
        return f"after step {state.step} weights or losses are no numbers, here or in another process; {cure}"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = ", ".join(names[:SHOWN])
    return f"the training loss of step {trouble.step} is {trouble.loss:.4g}, for the samples {shown}{more}; {cure}"


def memory(device: torch.device) -> int:
    """The most bytes this process has held: on the GPU if it works on one."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
