"""What a run tells while it goes: metrics.jsonl always, TensorBoard unless switched off, other trackers by name.

`run.json` says what it takes to repeat the run: its id, which stays the same however often it is resumed, the command,
the git revision, versions of the packages, the machine.
"""

import json
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

import training
from pipelines.console.files import write_json, write_text
from pipelines.console.output import say
from pipelines.errors import UsageError
from training.engine.preemption import requeues

METRICS_NAME, RUN_NAME, TENSORBOARD = "metrics.jsonl", "run.json", "tensorboard"
PROJECT = "tacopress"
PACKAGES = ("tacopress", "torch", "torchvision", "timm", "accelerate", "numpy", "opencv-python-headless")


def check_trackers(names: Sequence[str]) -> None:
    """See whether trackers are known and installed.

    Raises:
        UsageError: One is not.
    """
    for name in names:
        if name == TENSORBOARD:
            continue
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(str(key) for key in LOGGER_TYPE_TO_CLASS))
            raise UsageError(f"--trackers {name} is none of {known}")
        if not filter_trackers([name], logging_dir="."):
            raise UsageError(f"--trackers {name} needs a package that is not installed; pip install it or leave it out")


def facts_of_start() -> dict[str, Any]:
    """When, where and with what a run is started or resumed."""
    facts: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git": git_revision(Path(training.__file__).parent),
    }
    slurm = slurm_facts()
    return facts | ({"slurm": slurm} if slurm else {})


def slurm_facts() -> dict[str, Any]:
    """The Slurm job that this process belongs to, and its log; empty outside of Slurm."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job:
        return {}
    log = os.environ.get("TACOPRESS_LOG", "")
    return {"job": job, "restarts": requeues(), **({"log": log} if log else {})}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_revision(folder: Path) -> str | None:
    """The commit that a folder's files are of, with "+changes" where they are not; None if git does not know them."""
    known = _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # it may lie in somebody else's repository
    return _git(folder, "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*") if known else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


class RunLog:
    """The log of a run, on its first process.

    Args:
        folder: Of the run.
        trackers: Names, checked by `check_trackers`.
        config: The options, as YAML holds them.
        accelerator: accelerate.Accelerator, for trackers other than TensorBoard.
    """

    def __init__(self, folder: Path, trackers: Sequence[str], config: Mapping[str, Any], accelerator: Any) -> None:  # noqa: ANN401
        self._folder, self._accelerator = folder, accelerator
        self._tensorboard: Any = None
        self._use_tensorboard = TENSORBOARD in trackers
        self._others = [name for name in trackers if name != TENSORBOARD]
        self._config = config
        self._behind = False
        """metrics.jsonl lacks a line, or holds half of one."""

    def begin(self, lines: Sequence[Mapping[str, Any]], step: int, *, fresh: bool) -> None:
        """Make the log hold what the checkpoint knows, and nothing of a future that was lost.

        Args:
            lines: One per finished epoch.
            step: Optimizer steps done.
            fresh: A new run, with an id of its own.
        """
        write_text(self._folder / METRICS_NAME, _jsonl(lines))
        run = self._write_run(fresh=fresh)
        if self._use_tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            kept = bool(lines) and lines[-1]["step"] == step  # the last event stands, unless it is of a lost future
            first = (step + 1 if kept else step) if step else None
            self._tensorboard = SummaryWriter(str(self._folder / TENSORBOARD), purge_step=first)
        if self._others:
            self._begin_others(run["id"])

    def _write_run(self, *, fresh: bool) -> dict[str, Any]:
        path = self._folder / RUN_NAME
        run: dict[str, Any] = {"id": secrets.token_hex(8), "starts": []}
        if not fresh and path.is_file():
            with suppress(ValueError):  # the record of earlier starts is lost then, the run is not
                run = json.loads(path.read_text(encoding="utf-8"))
        run["starts"].append(facts_of_start())
        write_json(path, run)
        return run

    def _begin_others(self, run_id: str) -> None:
        wandb = {"id": run_id, "resume": "allow", "name": self._folder.name}
        self._accelerator.init_trackers(PROJECT, config=_flat(self._config), init_kwargs={"wandb": wandb})

    def epoch(self, lines: Sequence[Mapping[str, Any]], step: int) -> None:
        """Note a finished epoch, the last of some. A full disk stops no run: the line is written with the next one."""
        line = lines[-1]
        try:
            if self._behind:
                write_text(self._folder / METRICS_NAME, _jsonl(lines))
            else:
                with (self._folder / METRICS_NAME).open("a", encoding="utf-8") as file:
                    file.write(_jsonl([line]))
            self._behind = False
        except OSError as error:
            self._behind = True
            say(f"{METRICS_NAME} could not be written ({error.strerror or error}); free space")
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        self.numbers({f"epoch/{name}": value for name, value in numbers.items()}, step)
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Note numbers of a step."""
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._others:
            self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._others:
            for tracker in self._accelerator.trackers:  # end_training() would end the other processes' group, too
                tracker.finish()


def _jsonl(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _flat(config: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Nested options as one level of dotted names, with values that every tracker takes."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{name}{key}."))
        else:
            flat[f"{name}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
