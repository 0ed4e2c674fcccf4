"""List runs: state, epoch, macro F1, requeues and the last line of each log; --watch shows it again and again."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.console.job import run_job
from pipelines.console.output import WIDTH_WITHOUT_TERMINAL, render_table, say
from pipelines.errors import UsageError

EXAMPLE = """
  python -m training.runs
  python -m training.runs --runs out/road --watch
  python -m training.runs --json
"""
TAIL_BYTES = 4096
OTHER_COLUMNS, LEAST_ROOM = 66, 20
"""Characters of a row besides the name and the last line of the log; the least that is shown of the latter."""
CLEAR = "\x1b[H\x1b[2J"
FORMAT = "%A|%i|%T|%o|%j|%R"
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """Options of the runs job.

    Args:
        runs: Folder below which runs are looked for.
        watch: Show the list again and again, until nothing runs or waits any more.
        every: Seconds between two looks.
    """

    runs: Path = Path("runs")
    watch: bool = False
    every: float = 5.0

    def __post_init__(self) -> None:
        if not self.every > 0:
            raise UsageError(f"--every must be above 0, got {self.every}")


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job of this user that Slurm knows.

    Attributes:
        id: As Slurm writes it, `12` or `12_3`.
        name: Of the job.
        state: In Slurm's words: PENDING, RUNNING, …
        reason: Why it is where it is, or on which nodes it runs.
    """

    id: str
    name: str
    state: str
    reason: str


def runs(config: RunsConfig) -> dict[str, Any]:
    """List runs.

    Returns:
        The report. Keys: `folder`; `runs`, by name, of `run` (its folder), `state` (running, waiting, finished or
        stopped), `job` (null outside of Slurm), `epoch`, `epochs`, `macro_f1` (of the last epoch; null before it),
        `best_macro_f1`, `starts`, `requeues` (of the last job), `last` (line of its log); `jobs`, those of the queue
        that have no run yet, of `job`, `name`, `state`, `reason`.

    Raises:
        UsageError: The folder does not exist.
    """
    if not config.runs.is_dir():
        raise UsageError(f"--runs {config.runs} does not exist; give the folder that holds runs")
    queue = _squeue() or ""
    report = look(config.runs, queue)
    while config.watch and any_alive(report):
        sys.stderr.write((CLEAR if sys.stderr.isatty() else "") + table(report) + "\n")
        time.sleep(config.every)
        found = _squeue()
        queue = queue if found is None else found
        report = look(config.runs, queue)
    return report


def any_alive(report: Mapping[str, Any]) -> bool:
    """Whether something may still change."""
    return bool(report["jobs"]) or any(run["state"] in ("running", "waiting") for run in report["runs"])


def look(folder: Path, squeue: str) -> dict[str, Any]:
    """What is to be seen now.

    Args:
        folder: Below which runs are looked for.
        squeue: What it has printed; see `queued_jobs`.

    Returns:
        As `runs`.
    """
    queue, held = queued_jobs(squeue), held_files()
    found = [facts_of(path.parent, queue, held) for path in sorted(folder.rglob("run.json"))]
    taken = {run["job"] for run in found if run["state"] in ("running", "waiting")}
    jobs = [
        {"job": job.id, "name": job.name, "state": job.state.lower(), "reason": job.reason}
        for number, job in queue.items()
        if number not in taken
    ]
    return {"folder": str(folder), "runs": found, "jobs": jobs}


def facts_of(run: Path, queue: Mapping[str, QueuedJob], held: frozenset[tuple[int, int]]) -> dict[str, Any]:
    """A row of the list.

    Args:
        run: Folder of the run.
        queue: Jobs by id.
        held: From `held_files`.
    """
    told = _json(run / "run.json").get("starts")
    starts = [start for start in told if isinstance(start, dict)] if isinstance(told, list) else []
    found_slurm = starts[-1].get("slurm") if starts else None
    slurm = found_slurm if isinstance(found_slurm, dict) else {}
    log = [line for line in map(_parsed, _lines(run / "metrics.jsonl")) if line]
    last = log[-1] if log else {}
    scores = [line["val_macro_f1"] for line in log if "val_macro_f1" in line]
    job = slurm.get("job")
    return {
        "run": str(run),
        "state": state_of(run, queue.get(job) if job else None, held),
        "job": job,
        "epoch": last.get("epoch", 0),
        "epochs": _epochs(run),
        "macro_f1": last.get("val_macro_f1"),
        "best_macro_f1": max(scores, default=None),
        "starts": len(starts),
        "requeues": slurm.get("restarts", 0),
        "last": _last_line(Path(slurm["log"])) if slurm.get("log") else "",
    }


def state_of(run: Path, job: QueuedJob | None, held: frozenset[tuple[int, int]]) -> str:
    """In a word: finished, running, waiting (in the queue) or stopped.

    Args:
        run: Its folder.
        job: The job that started it last, if Slurm still has it.
        held: From `held_files`.
    """
    if (run / "last.safetensors").is_file():
        return "finished"
    if job is not None:
        return "waiting" if job.state in WAITING else "running"
    try:
        lock = (run / ".lock").stat()
    except OSError:
        return "stopped"
    return "running" if (lock.st_dev, lock.st_ino) in held else "stopped"


def held_files() -> frozenset[tuple[int, int]]:
    """(device, inode) of all files that a process of this machine has locked.

    Asking by a lock of our own could keep a run from starting.
    """
    found = set()
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK":
            major, minor, inode = words[5].split(":")
            found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return frozenset(found)


def queued_jobs(text: str) -> dict[str, QueuedJob]:
    """Read what squeue prints of jobs of `slurm/`; an array's task is also known by its own number.

    Args:
        text: Of `squeue --noheader --format=FORMAT`.
    """
    jobs = {}
    for line in text.splitlines():
        number, shown, state, script, name, reason = line.split("|", 5)
        if Path(script).parent.name == "slurm":
            known = number if "_" not in shown else shown
            jobs[number] = QueuedJob(id=known, name=name, state=state, reason=reason)
    return jobs


def _squeue() -> str | None:
    """Empty where there is no Slurm; None if it does not answer."""
    if shutil.which("squeue") is None:
        return ""
    command = ["squeue", "--me", "--noheader", f"--format={FORMAT}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        say("squeue does not answer")
        return None


def _lines(path: Path) -> list[str]:
    """All lines of a small file; none where there is no file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _last_line(path: Path) -> str:
    """The last line that says something, from the end of a file that may be long; srun repeats how a job has ended."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    lines = [line for line in lines if not re.match(r"srun: error: .*exited with exit code", line, re.IGNORECASE)]
    return lines[-1] if lines else ""


def _parsed(line: str) -> dict[str, Any]:
    """A line of JSON; empty where it is half written."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    return _parsed("\n".join(_lines(path)))


def _epochs(run: Path) -> int | None:
    try:
        options = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return int(options["schedule"]["epochs"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    names = [os.path.relpath(run["run"], report["folder"]) for run in report["runs"]]
    room = max(LEAST_ROOM, WIDTH_WITHOUT_TERMINAL - OTHER_COLUMNS - max(map(len, names), default=0))
    rows = [
        [
            name,
            run["state"],
            f"{run['epoch']}/{run['epochs'] or '?'}",
            run["macro_f1"],
            run["best_macro_f1"],
            run["requeues"],
            run["job"],
            run["last"] if len(run["last"]) <= room else run["last"][: room - 1] + "…",
        ]
        for name, run in zip(names, report["runs"], strict=True)
    ]
    headers = ["run", "state", ">epoch", ">F1", ">best", ">requeues", ">job", "last line"]
    texts = [render_table(headers, rows)] if rows else ["no runs yet"]
    if report["jobs"]:
        jobs = [[job["job"], job["name"], job["state"], job["reason"]] for job in report["jobs"]]
        texts.append(render_table([">job", "name", "state", "nodes or reason"], jobs, title="without a run so far"))
    return "\n\n".join(texts)


def main() -> None:
    """Run the job."""
    run_job(RunsConfig, runs, name="training.runs", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
