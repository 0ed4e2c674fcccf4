"""All that needs a GPU, one section after the other, in a fixed time; called by tests/gpu/run.sh.

Each section runs in a process of its own and gets its share of the time that is left, by weight; what it does not use
goes to the others. It is told how long it has and leaves out its last measurements if that is too little; when it does
not stop by itself it is ended, and what it had found stays. OUTPUT_DIR gets results.json and results.md after every
section, and log.txt with everything that was said.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from pipelines.console.files import write_json, write_text
from pipelines.console.output import say
from tests.gpu.common import ROOT, has_dali, tail
from tests.gpu.machine import facts
from tests.gpu.report import render

SECTIONS: dict[str, tuple[str, float]] = {
    "prepare": ("Images and caches", 10),
    "pixels": ("Same pixels, same order", 4),
    "unit": ("Unit tests", 6),
    "throughput": ("Loader throughput", 14),
    "training": ("Training against constant tensors", 16),
    "build": ("Cache build", 5),
    "recipe": ("A recipe from start to end", 9),
    "processes": ("Accelerate: accumulation, two processes", 7),
    "memory": ("Memory", 6),
}
"""Name of the module → title, and weight of its share of the time. In order of importance."""

LEAST_SECONDS = 5.0
GRACE = 15.0
"""A section that is this much late is ended."""


def weigh(names: list[str], seconds: float) -> float:
    """Seconds of the first of some sections, when all of them share so many."""
    return seconds * SECTIONS[names[0]][1] / sum(SECTIONS[name][1] for name in names)


def command(name: str, setting: dict[str, Any]) -> list[str]:
    """What runs a section."""
    return [sys.executable, "-m", "tests.gpu.section", name, json.dumps(setting)]


def run_section(name: str, setting: dict[str, Any], seconds: float, log: IO[str]) -> dict[str, Any]:
    """Run one section and return what it found, and how it ended."""
    title, record = SECTIONS[name][0], Path(setting["record"])
    began, start = time.time(), Path(log.name).stat().st_size
    words = command(name, {**setting, "deadline": began + seconds})
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(
        words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
    )
    try:
        status: int | None = child.wait(timeout=seconds + GRACE)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        end_group(child)
    found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    state = "cut off" if status is None else "done" if status == 0 else "failed"
    entry = {"name": name, "title": title, "state": state, "seconds": round(time.time() - began, 1), **found}
    if state != "done" and not found.get("failures"):
        log.flush()
        said = Path(log.name).read_bytes()[start:].decode("utf-8", "replace")
        message = f"ended after {seconds + GRACE:.0f} s" if status is None else f"exit status {status}"
        entry["failures"] = [{"name": name, "message": message, "tail": tail(said)}]
    return entry


def end_group(child: "subprocess.Popen[bytes]") -> None:
    """End a section and whatever it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            child.wait(timeout=3)
        except subprocess.TimeoutExpired:
            continue
        time.sleep(0.2)  # for the grandchildren
    child.wait()


def write(out: Path, results: dict[str, Any]) -> None:
    """Both files."""
    write_json(out / "results.json", results)
    write_text(out / "results.md", render(results))


def run_all(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the sections that were asked for."""
    out: Path = options.out
    end = time.time() + 60 * options.minutes
    results: dict[str, Any] = {**facts(), "rehearsal": options.rehearse, "minutes": options.minutes, "sections": []}
    names = [name for name in SECTIONS if name in options.only or name == "prepare"]
    (out / "log.txt").unlink(missing_ok=True)
    with (out / "log.txt").open("a", encoding="utf-8") as log:  # sections append to it, too
        for index, name in enumerate(names):
            left = end - time.time()
            if left < LEAST_SECONDS:
                skipped = {"name": name, "title": SECTIONS[name][0], "state": "skipped", "seconds": 0}
                results["sections"].append({**skipped, "notes": [f"the {options.minutes:g} minutes were spent"]})
                write(out, results)
                continue
            log.write(f"\n===== {name}\n")
            log.flush()
            seconds = min(weigh(names[index:], left), max(left - GRACE, LEAST_SECONDS))
            setting = {"work": str(work), "record": str(work / f"{name}.json"), "gpu": not options.rehearse}
            entry = run_section(name, {**setting, "rehearsal": options.rehearse}, seconds, log)
            results["sections"].append(entry)
            write(out, results)
            say(f"{name}: {entry['state']} after {entry['seconds']:.0f} s (of {seconds:.0f} s)")
    return results


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(143)


def main() -> None:
    """Measure and report; exit status 1 if a section failed, 2 without a GPU or DALI."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="besides prepare")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny: does everything run?")
    parser.add_argument("--work", type=Path, help="folder for images and caches, kept; else a temporary one")
    parser.add_argument("--without_dali", action="store_true", help="measure what there is without DALI")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminated)
    if not options.rehearse:
        import torch

        if not torch.cuda.is_available():
            say("torch sees no CUDA device; REHEARSE=1 bash tests/gpu/run.sh OUTPUT_DIR runs everything, tiny, without")
            sys.exit(2)
        if not options.without_dali and not has_dali():
            say("DALI is missing: `pip install -e '.[cuda130]'`; or --without_dali for half of the figures")
            sys.exit(2)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tacopress-gpu-", ignore_cleanup_errors=True) as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        results = run_all(options, work.resolve())
    sys.stdout.write(render(results) + "\n")
    sys.exit(0 if all(entry["state"] == "done" for entry in results["sections"]) else 1)


if __name__ == "__main__":
    main()
