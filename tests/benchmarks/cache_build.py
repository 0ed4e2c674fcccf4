"""How fast an augmentation cache is built, compared with what people use today; writes JSON, renders its table.

    python -m tests.benchmarks.cache_build --data path/to/trashnet
    python -m tests.benchmarks.cache_build --table

Every contestant makes the same thing: of each source the original and two copies with one of 14 ops each, padded to a
square with grey, resized with antialiasing, as JPEG of quality 90 and 4:2:0, from one decode per source. Each run is a
fresh process that imports, builds 64 images untimed and then builds the whole folder. Pools of the rivals start before
the clock does; Tacopress starts its own within it, and also flushes its shards to disk, reads them back for checksums
and writes a manifest. The contestants take turns: one run each per round, the first of one round is the last of the
next. Ratios are taken within a round. Files are in the page cache. `albumentations` must be installed.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from augment_cache.format.source import CacheSource
from pipelines.console.files import write_json
from pipelines.console.output import say
from tests.benchmarks.rivals.contestant import CONTESTANTS
from tests.benchmarks.rivals.facts import ROOT, circumstances, middle_and_ends, spread
from tests.benchmarks.rivals.pool import list_images, read_parts

RESULTS = Path(__file__).parent / "results" / "cache_build.json"
COPIES, QUALITY = 2, 90
WARM_UP = 64
QUOTED = ("ours-1", "ours-2")
"""The faster of these at a size is what Tacopress is quoted with."""

GOALS = {
    64: {"albumentations": 1.8, "torchvision": 3.0, "floor": 1.0},
    224: {"albumentations": 1.15, "torchvision": 1.6, "floor": 0.75},
}
"""Size → rival → how many times as fast Tacopress means to be at least."""

PACKAGES = (
    *("albumentations", "numpy", "nvidia-dali-cuda110", "nvidia-dali-cuda130", "opencv-python-headless", "pillow"),
    *("pyarrow", "simplejpeg", "torch", "torchvision"),
)

Run = dict[str, Any]


def spaced(files: Sequence[str], count: int) -> list[str]:
    """`count` of the files, evenly from all of them, so that every class is there; all where there are no more."""
    return [files[index * len(files) // count] for index in range(count)] if count < len(files) else list(files)


def link_folder(data: Path, files: Iterable[str], target: Path) -> Path:
    """A folder of some of the files of `data`, as hard links, or copies where the disk is another one."""
    for file in files:
        place = target / Path(file).relative_to(data)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copyfile(file, place)
    return target


def turns(names: Sequence[str], round_number: int) -> list[str]:
    """The order of a round: everybody moves up by one from round to round."""
    first = round_number % len(names)
    return [*names[first:], *names[:first]]


def written(out: Path, name: str) -> Iterator[bytes]:
    """The encoded images that a contestant left in its folder."""
    if not name.startswith("ours"):
        yield from read_parts(out)
        return
    source = CacheSource(out, "train")
    for start in range(0, len(source.labels), 1024):
        rows = np.arange(start, min(start + 1024, len(source.labels)))
        yield from (image.tobytes() for image in source.fetch(rows))


def inspect(images: Iterable[bytes], name: str, size: int, expected: int) -> dict[str, int]:
    """Hold what a contestant wrote against what all of them must write.

    Returns:
        `images` and `jpeg_bytes`.

    Raises:
        ValueError: Another number of images, or an image of another size, subsampling or quality.
    """
    count = total = 0
    for data in images:
        height, width, _, subsampling = simplejpeg.decode_jpeg_header(data)
        if (height, width, subsampling) != (size, size, "420"):
            raise ValueError(f"{name} wrote an image of {width} x {height} px, {subsampling}, at size {size}")
        if count == 0 and _tables(data) != _tables(_grey()):
            raise ValueError(f"{name} wrote JPEGs of another quality than {QUALITY}")
        count, total = count + 1, total + len(data)
    if count != expected:
        raise ValueError(f"{name} wrote {count} images instead of {expected}")
    return {"images": count, "jpeg_bytes": total}


def _tables(data: bytes) -> dict[int, list[int]]:
    with Image.open(io.BytesIO(data)) as image:
        return dict(image.quantization)  # type: ignore[attr-defined]


def _grey() -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.full((8, 8, 3), 128, np.uint8), quality=QUALITY, colorsubsampling="420"))


def one_run(name: str, size: int, warm: Path, data: Path, scratch: Path, sources: int) -> Run:
    """One contestant in a fresh process.

    Returns:
        `wall` and `cpu` seconds of the build; `whole`: seconds of the process less those of the warm-up; `warm_up`;
        `images`, `jpeg_bytes`, and `disk_bytes` of everything it wrote.
    """
    out = scratch / name
    words = [
        sys.executable,
        "-m",
        "tests.benchmarks.rivals.contestant",
        name,
        str(size),
        str(warm),
        str(data),
        str(out),
    ]
    os.sync()  # what the one before has written is not this one's business
    begin = time.perf_counter()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    whole = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{name} failed at {size} px:\n{done.stderr}")
    result: Run = json.loads(done.stdout.splitlines()[-1])
    result["whole"] = whole - result["warm_up"]
    result |= inspect(written(out / "done", name), name, size, sources * (1 + COPIES))
    result["disk_bytes"] = sum(file.stat().st_size for file in (out / "done").rglob("*") if file.is_file())
    shutil.rmtree(out)
    return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the results file is written after every round."""
    files = list_images(options.data)
    chosen = spaced(files, options.limit or len(files))
    read = sum(len(Path(file).read_bytes()) for file in chosen)  # also brings them into the page cache
    entry = circumstances(PACKAGES)
    entry["set"] = {"name": options.data.name, "images": len(chosen), "of": len(files), "bytes": read}
    entry["copies"], entry["quality"], entry["warm_up_images"] = COPIES, QUALITY, WARM_UP
    entry["runs"] = []
    with tempfile.TemporaryDirectory(prefix="cache_build-", dir=options.scratch) as folder:
        scratch = Path(folder)
        warm = link_folder(options.data, spaced(chosen, WARM_UP), scratch / "warm")
        data = link_folder(options.data, chosen, scratch / "data")
        for size in options.sizes:
            for round_number in range(options.rounds):
                entry["runs"] += _one_round(options.only, size, round_number, warm, data, scratch, len(chosen))
                write_json(options.out, entry)
    return entry


def _one_round(
    names: Sequence[str], size: int, round_number: int, warm: Path, data: Path, scratch: Path, sources: int
) -> list[Run]:
    load = round(os.getloadavg()[0], 2)
    runs = []
    for turn, name in enumerate(turns(names, round_number)):
        if round_number >= CONTESTANTS[name].rounds:
            continue
        result = one_run(name, size, warm, data, scratch, sources)
        runs.append({"size": size, "round": round_number, "turn": turn, "name": name, "load": load, **result})
        say(f"{size} px, round {round_number + 1}: {name} {sources / result['wall']:,.0f} sources/s, load {load}")
    return runs


def quoted(runs: Sequence[Run], size: int) -> str | None:
    """The faster of ours at a size, by the median of its seconds; None where none ran."""
    walls = {name: _values(runs, size, name, "wall") for name in QUOTED}
    return min((name for name in QUOTED if walls[name]), key=lambda name: median(walls[name].values()), default=None)


def _values(runs: Sequence[Run], size: int, name: str, key: str) -> dict[int, float]:
    """Round → value."""
    return {run["round"]: run[key] for run in runs if run["size"] == size and run["name"] == name}


def ratios(runs: Sequence[Run], size: int, over: str, under: str, key: str) -> list[float]:
    """The value of one contestant over another's, in each round that both took part in."""
    top, bottom = _values(runs, size, over, key), _values(runs, size, under, key)
    return [top[number] / bottom[number] for number in sorted(set(top) & set(bottom))]


def render(entry: dict[str, Any]) -> str:
    """The Markdown tables, one per size."""
    runs, images = entry["runs"], entry["set"]["images"]
    loads, machine = [run["load"] for run in runs], entry["machine"]
    limited = (
        "" if images == entry["set"]["of"] else f" **Only {images:,} of {entry['set']['of']:,}: a try, no result.**"
    )
    head = (
        f"{entry['set']['name']}, {images:,} images, each as original + {entry['copies']} copies, JPEG quality "
        f"{entry['quality']}; {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, load before "
        f"rounds {min(loads)} to {max(loads)}; {entry['date']}, commit {entry['git']}. Medians of rounds (least-most); "
        "ratios are taken within each round. The seconds of Tacopress hold the start of its processes, shards flushed "
        f"to disk, checksums and manifest; those of the others no start of processes and no flush.{limited}"
    )
    sizes = dict.fromkeys(run["size"] for run in runs)
    return "\n\n".join([head, *(_size_table(runs, size, images) for size in sizes)])


def _size_table(runs: Sequence[Run], size: int, images: int) -> str:
    best = quoted(runs, size)
    lines = [
        f"| {size} px | rounds | sources/s | CPU s per 1,000 sources | whole command, s | JPEG, MB "
        "| Tacopress is times as fast | goal | Tacopress' CPU over its |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in CONTESTANTS if _values(runs, size, name, "wall")):
        walls = list(_values(runs, size, name, "wall").values())
        cells = [f"**{CONTESTANTS[name].title}**" if name == best else CONTESTANTS[name].title, str(len(walls))]
        cells.append(spread([images / wall for wall in walls], 0))
        cells.append(spread([cpu / images * 1000 for cpu in _values(runs, size, name, "cpu").values()], 2))
        cells.append(spread(list(_values(runs, size, name, "whole").values()), 1))
        cells.append(f"{median(_values(runs, size, name, 'jpeg_bytes').values()) / 1e6:,.1f}")
        lines.append("| " + " | ".join(cells + _compared(runs, size, name, best)) + " |")
    return "\n".join(lines)


def _compared(runs: Sequence[Run], size: int, name: str, best: str | None) -> list[str]:
    """Cells: times as fast, goal, share of its CPU seconds."""
    faster = ratios(runs, size, name, best, "wall") if best and not name.startswith("ours") else []
    if not best or not faster:
        return ["", "", ""]
    goal = GOALS.get(size, {}).get(name)
    verdict = "met" if goal is not None and middle_and_ends(faster)[0] >= goal else "missed"
    text = "" if goal is None else f"{goal}: {verdict}"
    return [spread(faster, 2), text, spread(ratios(runs, size, best, name, "cpu"), 2)]


def main() -> None:
    """Measure and render, or only render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of class folders of images")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(GOALS), help="sides in px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--limit", type=int, default=0, help="only N images, evenly from all, for trying; give --out too"
    )
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results, JSON")
    parser.add_argument("--scratch", type=Path, help="folder for what the contestants write, else the system's own")
    parser.add_argument("--table", action="store_true", help="only render the table from --out")
    options = parser.parse_args()
    if not options.table and options.data is None:
        parser.error("--data is missing: the folder of images, for example path/to/trashnet")
    if options.limit and options.out == RESULTS and not options.table:
        parser.error("--limit is for trying: give another --out, so that it does not replace the results")
    entry = json.loads(options.out.read_text(encoding="utf-8")) if options.table else measure(options)
    sys.stdout.write(render(entry) + "\n")


if __name__ == "__main__":
    main()
