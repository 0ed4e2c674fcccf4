"""The folder of a run: who may write into it, whether to go on or to begin, and what it begins with."""

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from pipelines.console.files import write_text
from pipelines.console.output import say
from pipelines.errors import UsageError
from training.engine.agree import agreeing
from training.engine.checkpoint import Checkpoints
from training.engine.config import RunConfig
from training.engine.preemption import PreemptedError, requeues
from training.engine.tracking import METRICS_NAME, RUN_NAME, TENSORBOARD
from training.model.model_file import BEST_NAME as BEST_NAME

CONFIG_NAME, LAST_NAME = "config.yaml", "last.safetensors"
LOCK_NAME = ".lock"
FREE_OPTIONS = (
    "out",
    "resume",
    "overwrite",
    "trackers",
    "save",
    "loss_limit",
    "max_requeues",
    "data.check",
    "data.resident",
    "data.resident_share",
    "data.threads",
    "teacher.paths",
    "teacher.cache",
    "teacher.batch_size",
)
"""Options that a resumed run may change: none of them changes a weight. Who the teacher is, the checkpoint knows."""


def claim(config: RunConfig, accelerator: Any) -> dict[str, Any] | None:  # noqa: ANN401 - accelerate.Accelerator
    """Decide between a fresh run and going on with one.

    Returns:
        The checkpoint to go on from, None for a fresh run. Equal on all processes.

    Raises:
        UsageError: The folder holds a run that is not to be resumed or cannot be.
    """
    with agreeing(accelerator):
        checkpoint = find_checkpoint(config, say if accelerator.is_main_process else lambda _: None)
    step = -1 if checkpoint is None else checkpoint["state"]["step"]
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise UsageError(f"the processes see different states of {config.out}; --out must lie on a disk that all share")
    return checkpoint


def find_checkpoint(config: RunConfig, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The checkpoint to go on from, None for a fresh run.

    Raises:
        UsageError: The folder holds a run that is not to be resumed or cannot be.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; choose another")
    checkpoints = Checkpoints(out, config.save.keep)
    # Slurm repeats the command as it was, whatever it says about old runs.
    requeued = bool(checkpoints.paths()) and requeues() > 0 and not changes(config)
    if config.overwrite and not requeued:
        return None
    if not checkpoints.paths():
        # A run that was killed before its first checkpoint has a config and no epoch: it begins again.
        if _finished_epochs(out):
            raise UsageError(
                f"{out} holds a run, but no checkpoint to go on from; choose another --out, or give --overwrite true "
                "to replace it"
            )
        return None
    if requeued:
        return checkpoints.load(warn)
    if config.resume == "never":
        raise UsageError(f"{out} holds a run already; choose another --out or give --overwrite true")
    if difference := changes(config):
        raise UsageError(
            f"{out} holds a run with other options ({difference}); choose another --out, or give --overwrite true to "
            "start anew"
        )
    return checkpoints.load(warn)


def _finished_epochs(out: Path) -> bool:
    metrics = out / METRICS_NAME
    if metrics.is_file() and metrics.stat().st_size > 0:
        return True
    return any((out / name).exists() for name in (BEST_NAME, "resume.pt"))


def changes(config: RunConfig) -> str:
    """The first option in which the run in the folder differs, in words; empty if none does."""
    return _difference(_with_defaults(_saved_options(config.out), config), plain(config))


def _saved_options(out: Path) -> Any:  # noqa: ANN401 - any YAML value
    try:
        return yaml.safe_load((out / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"{out / CONFIG_NAME} cannot be read ({error}); choose another --out, or give --overwrite true"
        ) from error


def _with_defaults(saved: Any, config: Any) -> Any:  # noqa: ANN401 - any YAML value, and a dataclass
    """Saved options, and for those that are newer than they are what stands for the old way: the default."""
    if not isinstance(saved, dict):
        return saved
    found = dict(saved)
    for option in fields(config):
        factory = option.default_factory
        default = option.default if factory is MISSING else factory()
        if option.name not in found and default is not MISSING:
            found[option.name] = _plain_value(asdict(default) if is_dataclass(default) else default)  # type: ignore[arg-type]
        elif is_dataclass(getattr(config, option.name)):
            found[option.name] = _with_defaults(found.get(option.name), getattr(config, option.name))
    return found


def hold(out: Path) -> int:
    """Make the folder, and keep others from training in it at the same time.

    Returns:
        A descriptor; whoever closes it, or dies, lets go.

    Raises:
        UsageError: Somebody else is there.
        PreemptedError: Likewise, and Slurm has started this job again: processes on a node that it has lost sight of
            live on for a while, so the job is better queued again than ended.
    """
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        if requeues():
            raise PreemptedError(
                f"{out} is still being trained, perhaps on a node that Slurm has lost sight of; to be queued again"
            ) from error
        raise UsageError(f"{out} is being trained by another process; wait until it has ended, or stop it") from error
    except OSError:
        pass  # a file system without locks
    return descriptor


def let_go(out: Path, descriptor: int) -> None:
    """End what `hold` began."""
    (out / LOCK_NAME).unlink(missing_ok=True)
    os.close(descriptor)


def begin(config: RunConfig, step: int, *, fresh: bool) -> None:
    """Prepare the folder: not before all that can be wrong with the options has been looked at. First process only.

    Args:
        config: Options of the run.
        step: Where it goes on: checkpoints of later steps were passed over, because they are damaged.
        fresh: It begins anew.
    """
    # Of a process that was killed while it wrote.
    old = [".*.partial-*", "checkpoints/.*.partial-*"]
    if fresh:
        old += [BEST_NAME, LAST_NAME, METRICS_NAME, RUN_NAME, f"{TENSORBOARD}/events.out.*"]
        old += ["evaluation_*.json", "confusion_*.png", "calibration_*.png", "predictions_*.csv", "best.onnx"]
        old += ["resume.pt"]  # of an older Tacopress
    Checkpoints(config.out).drop(-1 if fresh else step)
    for pattern in old:
        for path in config.out.glob(pattern):
            path.unlink()
    write_text(config.out / CONFIG_NAME, yaml.safe_dump(plain(config), sort_keys=False))


def plain(config: RunConfig) -> dict[str, Any]:
    """The options as YAML holds them: what `--config` reads back to go on with the run."""
    config = replace(config, overwrite=False, resume="auto")
    options: dict[str, Any] = _plain_value(asdict(config))
    return options


def _plain_value(value: Any) -> Any:  # noqa: ANN401 - anything that options hold
    return json.loads(json.dumps(value, default=str))


def _difference(old: Any, new: Any, name: str = "") -> str:  # noqa: ANN401 - any YAML value
    """The first option in which two runs differ, in words; empty if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            dotted = f"{name}.{key}".lstrip(".")
            if dotted not in FREE_OPTIONS and (found := _difference(old.get(key), new.get(key), dotted)):
                return found
        return ""
    return "" if old == new else f"{name} was {old}, now {new}"
