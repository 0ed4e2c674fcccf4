"""Memory and seconds of building a cache, and of opening it, by its number of rows; writes JSON, renders a table.

    python -m tests.benchmarks.cache_memory
    python -m tests.benchmarks.cache_memory --table

For each number of rows a folder of small drawn JPEGs is made (a third as many, since each becomes an original and two
copies) and a cache of 64 px is built from it, in a fresh process each for one and for two processes. Memory is the
larger of two figures: the system's own record of the peak of any one process (ru_maxrss, resident memory), and what all
processes hold together, pages that they share counted once (PSS, looked at ten times a second; Linux only). Both count
what is only mapped from files. Opening is timed in fresh processes, after the imports, with the files in the page
cache.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import simplejpeg
from numpy.typing import NDArray

from pipelines.console.files import write_json
from pipelines.console.output import say
from tests.benchmarks.rivals.facts import ROOT, circumstances, spread

RESULTS = Path(__file__).parent / "results" / "cache_memory.json"
CLASSES = ("glass", "metal", "other", "paper", "plastic", "styrofoam")
SIDE = 96
"""Of the drawn images, px."""
SIZE, COPIES, OPENINGS = 64, 2, 5
SECONDS_BETWEEN_LOOKS = 0.1
PROCESSES = (1, 2)
PACKAGES = ("numpy", "opencv-python-headless", "pyarrow", "simplejpeg", "torch")

MOST_MB, MOST_GROWTH, MOST_OPENING = 1500.0, 0.05, 0.2
"""Goals: peak of memory in MB, its growth from the fewest rows to the most, seconds of opening."""

Run = dict[str, Any]


def drawings(count: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Small pictures, all different: soft ground with a bright rectangle; uint8 [SIDE, SIDE, 3]."""
    numbers = np.random.default_rng(seed)
    coarse = numbers.integers(40, 200, (64, SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    grounds = [np.kron(ground, np.ones((8, 8, 1), np.uint8)) for ground in coarse]
    for index in range(count):
        shift = (index // 64 % SIDE, index // (64 * SIDE) % SIDE)
        picture = np.roll(grounds[index % 64], shift, axis=(0, 1))
        left, top, width, height = (int(number) for number in numbers.integers(8, SIDE // 2, 4))
        picture[top : top + height, left : left + width] = numbers.integers(0, 256, 3, dtype=np.uint8)
        yield picture


def draw_folder(target: Path, sources: int) -> Path:
    """A folder of class folders with that many JPEGs."""
    for name in CLASSES:
        (target / name).mkdir(parents=True)
    for index, picture in enumerate(drawings(sources)):
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=85, colorsubsampling="420")
        (target / CLASSES[index % len(CLASSES)] / f"{index:07d}.jpg").write_bytes(data)
    return target


def build_here(data: Path, out: Path, processes: int) -> Run:
    """Build in this process.

    Returns:
        `seconds`; `rows`; `shards`; `bytes`; `self_mb` and `worker_mb`: peak of resident memory of this process and of
        its largest child, 10^6 bytes.
    """
    from augment_cache.build import BuildConfig, build

    config = BuildConfig(
        data=data, out=out, size=SIZE, copies=COPIES, val=0.0, test=0.0, engine="cpu", device="cpu", processes=processes
    )
    begin = time.perf_counter()
    report = build(config)
    seconds = time.perf_counter() - begin
    train = report["splits"]["train"]
    # Without worker processes the only children are helpers that Python itself starts.
    worker = _peak_mb(resource.RUSAGE_CHILDREN) if processes > 1 else 0.0
    return {
        "seconds": seconds,
        **{key: train[key] for key in ("rows", "shards", "bytes")},
        "self_mb": _peak_mb(resource.RUSAGE_SELF),
        "worker_mb": worker,
    }


def _peak_mb(who: int) -> float:
    return resource.getrusage(who).ru_maxrss * 1024 / 1e6


def open_here(cache: Path) -> Run:
    """Open a cache in this process; `opening` seconds after the imports, and the `rows` found."""
    from augment_cache.format.source import CacheSource

    begin = time.perf_counter()
    source = CacheSource(cache, "train")
    return {"opening": time.perf_counter() - begin, "rows": len(source.labels)}


def peak_mb(run: Run) -> float:
    """Peak of memory of a build: of its largest process, or of several together where that is more; 10^6 bytes."""
    together = run["together_mb"] if run["processes"] > 1 else 0.0  # of one process the system's own record is exact
    return float(max(run["self_mb"], run["worker_mb"], together))


def growth(runs: Sequence[Run], processes: int) -> float | None:
    """By what share memory grows from the fewest rows to the most; None with one number of rows."""
    chosen = sorted((run for run in runs if run["processes"] == processes), key=lambda run: int(run["rows"]))
    if len(chosen) < 2 or chosen[0]["rows"] == chosen[-1]["rows"]:
        return None
    return peak_mb(chosen[-1]) / peak_mb(chosen[0]) - 1


def together_mb(pid: int) -> float:
    """Memory of a process and all its children now, shared pages counted once; 10^6 bytes; 0 when it has ended."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in family:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:  # it ended meanwhile
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total * 1024 / 1e6


def _fresh(*words: object) -> Run:
    """Run this module in a fresh process; what it reports, and `together_mb`, the most it was seen to hold."""
    command = [sys.executable, "-m", "tests.benchmarks.cache_memory", *map(str, words)]
    most = 0.0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=errors, text=True)
        while process.poll() is None:
            most = max(most, together_mb(process.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{words[0]} failed:\n{errors.read()}")
        result: Run = json.loads(out.read().splitlines()[-1])
    return {**result, "together_mb": most}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the results file is written after every build."""
    entry = circumstances(PACKAGES)
    entry |= {"side": SIDE, "size": SIZE, "copies": COPIES, "runs": []}
    for rows in options.rows:
        with tempfile.TemporaryDirectory(prefix="cache_memory-", dir=options.scratch) as folder:
            begin = time.perf_counter()
            data = draw_folder(Path(folder) / "data", rows // (1 + COPIES))
            say(f"{rows:,} rows: images drawn in {time.perf_counter() - begin:.0f} s")
            for processes in PROCESSES:
                entry["runs"].append(_one_build(data, Path(folder) / f"cache{processes}", processes))
                write_json(options.out, entry)
    return entry


def _one_build(data: Path, cache: Path, processes: int) -> Run:
    load = round(os.getloadavg()[0], 2)
    os.sync()
    run = {"processes": processes, "load": load, **_fresh("--build", data, cache, processes)}
    openings = [_fresh("--open", cache) for _ in range(OPENINGS)]
    if any(opened["rows"] != run["rows"] for opened in openings):
        raise RuntimeError(f"the cache of {run['rows']} rows opened with {openings[0]['rows']}")
    run["openings"] = [opened["opening"] for opened in openings]
    say(f"  {processes} processes: {run['seconds']:.1f} s, {peak_mb(run):,.0f} MB, opening {run['openings'][0]:.3f} s")
    return run


def render(entry: dict[str, Any]) -> str:
    """The Markdown table."""
    runs, machine = entry["runs"], entry["machine"]
    loads = [run["load"] for run in runs]
    head = (
        f"JPEGs of {entry['side']} px, cache of {entry['size']} px, original + {entry['copies']} copies; "
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, load before builds {min(loads)} to "
        f"{max(loads)}; {entry['date']}, commit {entry['git']}. Memory is that of the largest process "
        "(ru_maxrss) or, with several, of all together (PSS), whichever is more."
    )
    columns = (
        "rows",
        "processes",
        "shards",
        "cache, MB",
        "build, s",
        "rows/s",
        "peak memory, MB",
        "of one process",
        "opening, s",
    )
    lines = [head, "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for run in runs:
        cells = [f"{run['rows']:,}", str(run["processes"]), str(run["shards"]), f"{run['bytes'] / 1e6:,.0f}"]
        cells += [f"{run['seconds']:.1f}", f"{run['rows'] / run['seconds']:,.0f}", f"{peak_mb(run):,.0f}"]
        cells.append(f"{max(run['self_mb'], run['worker_mb']):,.0f}")
        lines.append("| " + " | ".join([*cells, spread(run["openings"], 3)]) + " |")
    return "\n".join([*lines, "", *_verdicts(runs)])


def _verdicts(runs: Sequence[Run]) -> list[str]:
    """The goals, one line each."""
    peak, opening = max(map(peak_mb, runs)), max(median(run["openings"]) for run in runs)
    lines = [f"- peak memory below {MOST_MB:,.0f} MB: {peak:,.0f} MB, {_word(peak < MOST_MB)}"]
    for processes in dict.fromkeys(run["processes"] for run in runs):
        grown = growth(runs, processes)
        if grown is not None:
            goal = f"- growth from the fewest rows to the most below {MOST_GROWTH:.0%}, processes {processes}"
            lines.append(f"{goal}: {grown:+.1%}, {_word(grown < MOST_GROWTH)}")
    return [*lines, f"- opening below {MOST_OPENING} s: {opening:.3f} s, {_word(opening < MOST_OPENING)}"]


def _word(met: bool) -> str:
    return "met" if met else "missed"


def main() -> None:
    """Measure and render, only render, or be one of the fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results, JSON")
    parser.add_argument("--scratch", type=Path, help="folder for images and caches, else the system's own")
    parser.add_argument("--table", action="store_true", help="only render the table from --out")
    parser.add_argument("--build", nargs=3, metavar=("DATA", "CACHE", "PROCESSES"), help=argparse.SUPPRESS)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        data, cache, processes = options.build
        sys.stdout.write(json.dumps(build_here(Path(data), Path(cache), int(processes))) + "\n")
    elif options.open:
        sys.stdout.write(json.dumps(open_here(options.open)) + "\n")
    else:
        entry = json.loads(options.out.read_text(encoding="utf-8")) if options.table else measure(options)
        sys.stdout.write(render(entry) + "\n")


if __name__ == "__main__":
    main()
