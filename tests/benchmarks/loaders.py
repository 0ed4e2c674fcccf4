"""How fast images are read, compared with what people use today; writes JSON, renders its tables and a bar chart.

    bash tests/benchmarks/peers/install.sh out/peers
    python -m tests.benchmarks.loaders --data path/to/trashnet --environments out/peers
    python -m tests.benchmarks.loaders --table --chart loaders.png

The photos are made into squares of one size once, as JPEG files (quality 90, 4:2:0) and as PNG files of the very same
pixels; each contestant stores them in its own format and then delivers the same thing: batches of 128 as uint8 tensors
[n, 3, size, size] with int64 labels, in random order, half of the images mirrored. What it delivers is looked at before
anything is measured. Each runs in a process and an environment of its own, as its documentation recommends, with two
workers (`tests/benchmarks/peers/`, one file each, which says what that is).

The first epoch is timed alone. Then the contestants of a group take turns: in every round each reads whole epochs for
at least a second, the first of one round is the last of the next, and nobody begins before the one before has come to
rest. Squares of 64 px are there four times (`--repeats`), so that an epoch is not over before it has begun: starting
one costs some loaders as much as reading 1,000 images. Ratios are taken within a round. CPU seconds are those of the
whole tree of processes. Files are in the page cache. Whoever is not installed is missing from the figures, and the
tables say so.
"""

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipelines.console.files import write_json
from pipelines.console.output import say
from pipelines.engines.base import Job, RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.plan import nothing
from pipelines.sources import open_folder
from tests.benchmarks.cache_build import link_folder, spaced, turns
from tests.benchmarks.loaders_report import READS, Group, draw, render
from tests.benchmarks.loaders_running import Answer, PeerFailedError, Running
from tests.benchmarks.rivals.facts import ROOT, circumstances
from tests.benchmarks.rivals.pool import list_images

PEERS = Path(__file__).parent / "peers"
RESULTS = Path(__file__).parent / "results" / "loaders.json"
BATCH, WORKERS, SEED, QUALITY = 128, 2, 0, 90
SMALL, REPEATS = 64, 4
"""Squares up to this side are there so many times."""
UNEVEN, SAME_LEAN = 0.1, 1e-3
"""How far from a half the share of images that lean left may be; below so many levels two epochs lean the same way."""
PACKAGES = ("numpy", "nvidia-dali-cuda110", "nvidia-dali-cuda130", "opencv-python-headless", "pyarrow", "simplejpeg")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Who takes part.

    Attributes:
        title: For the table.
        script: In `tests/benchmarks/peers/`, without its suffix.
        reads: What it can read.
        environment: Name of its environment; None for the one that the benchmark itself runs in.
        variant: For scripts that have several.
        tolerance: Levels by which means may differ from those of the squares.
    """

    title: str
    script: str
    reads: tuple[str, ...]
    environment: str | None = None
    variant: str = ""
    tolerance: float = 0.5


CONTESTANTS: dict[str, Contestant] = {
    "ours": Contestant(title="Tacopress, resident", script="ours", reads=("raw", "jpeg"), variant="resident"),
    "ours-stream": Contestant(title="Tacopress, streamed", script="ours", reads=("raw", "jpeg"), variant="stream"),
    "ours-dali": Contestant(
        title="Tacopress, streamed, DALI on the CPU", script="ours", reads=("raw", "jpeg"), variant="dali"
    ),
    "ours-ops": Contestant(title="Tacopress, resident", script="ours", reads=("op",), variant="ops-resident"),
    "ours-ops-stream": Contestant(title="Tacopress, streamed", script="ours", reads=("op",), variant="ops"),
    # FFCV's decoder asks libjpeg-turbo for its fast, less exact inverse DCT, which moves the means by a level or so.
    "ffcv": Contestant(title="FFCV", script="ffcv_beton", reads=("raw", "jpeg"), environment="ffcv", tolerance=1.5),
    "dali": Contestant(title="DALI file reader", script="dali_files", reads=("jpeg",), environment="dali"),
    "torchvision": Contestant(
        title="torchvision ImageFolder", script="image_folder", reads=("jpeg",), environment="torchvision"
    ),
    "timm": Contestant(title="timm loader", script="timm_loader", reads=("jpeg",), environment="timm"),
    "webdataset": Contestant(
        title="WebDataset", script="webdataset_tars", reads=("raw", "jpeg"), environment="webdataset"
    ),
    "datasets": Contestant(
        title="Hugging Face datasets", script="arrow_datasets", reads=("raw", "jpeg"), environment="datasets"
    ),
    "litdata": Contestant(title="LitData", script="litdata_chunks", reads=("raw", "jpeg"), environment="litdata"),
    "streaming": Contestant(
        title="MosaicML Streaming", script="mosaic_shards", reads=("raw", "jpeg"), environment="streaming"
    ),
    "randaugment": Contestant(
        title="torchvision v2 RandAugment", script="randaugment", reads=("op",), environment="torchvision"
    ),
    "randaugment-nearest": Contestant(
        title="torchvision v2 RandAugment, nearest neighbour",
        script="randaugment",
        reads=("op",),
        environment="torchvision",
        variant="nearest",
    ),
}
"""Name → contestant."""

Truth = dict[str, Any]
"""What everybody must deliver: `labels` {label: images}, `means` [3], `asymmetry`; see `describe` in the protocol."""


def make_squares(data: Path, target: Path, size: int, repeats: int = 1) -> Truth:
    """Photos as equally sized squares, padded with grey: `target`/jpeg and `target`/raw, the same pixels in both.

    Args:
        data: Folder of class folders of photos.
        target: Folder to fill.
        size: Side in px.
        repeats: Files for each of the squares.
    """
    source = open_folder(data)
    engine = make_engine("cpu", RenderSpec(size), device="cpu")
    sums, asymmetry = np.zeros(3), 0.0
    edges = range(0, len(source.labels), BATCH)
    batches = [np.arange(start, min(start + BATCH, len(source.labels))) for start in edges]
    jobs = (Job(source.fetch(rows), nothing(len(rows)), tag=rows) for rows in batches)
    for rendered in engine.stream(jobs):
        for row, pixels in zip(rendered.tag.tolist(), rendered.pixels[0].numpy(), strict=True):
            name = Path(source.files[row]).parts[0] + f"/{row:06d}"
            square = _write_square(pixels, target / "jpeg" / f"{name}.jpg", target / "raw" / f"{name}.png", repeats)
            columns = square.astype(np.float64).mean(axis=(0, 2))
            sums += square.mean(axis=(0, 1))
            asymmetry += abs(columns[: size // 2].mean() - columns[size - size // 2 :].mean())
    engine.close()
    count = len(source.labels)
    labels = {str(label): int(images) * repeats for label, images in enumerate(np.bincount(source.labels))}
    return {"labels": labels, "means": (sums / count).tolist(), "asymmetry": float(asymmetry / count)}


def _write_square(pixels: NDArray[np.uint8], jpeg: Path, png: Path, repeats: int) -> NDArray[np.uint8]:
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY, colorsubsampling="420")
    for path in (jpeg, png):
        path.parent.mkdir(parents=True, exist_ok=True)
    jpeg.write_bytes(data)
    decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    stream = io.BytesIO()
    Image.fromarray(decoded).save(stream, "PNG", compress_level=1)
    png.write_bytes(stream.getvalue())
    for path in (jpeg, png):
        for number in range(1, repeats):
            shutil.copyfile(path, path.with_stem(f"{path.stem}-{number}"))
    return decoded


def problem(found: Mapping[str, Any], truth: Truth, size: int, *, tolerance: float | None) -> str | None:
    """What is wrong with what a loader described, if anything.

    Args:
        found: See `describe` in the protocol.
        truth: What it should be.
        size: Side in px.
        tolerance: Levels by which means may differ; None where more is done to the images than mirroring.
    """
    if found["shape"][1:] != [3, size, size] or found["shape"][0] > BATCH:
        return f"shape {found['shape']}"
    if (found["dtype"], found["label_dtype"]) != ("torch.uint8", "torch.int64"):
        return f"{found['dtype']} images, {found['label_dtype']} labels"
    if not found["shuffled"]:
        return "the order is not random"
    if miscounted := miscount(found, truth["labels"], epochs=1):
        return miscounted
    lean = found["lean"]
    if any(abs(share - 0.5) > UNEVEN for share in found["left_heavy"]) or abs(lean[0] - lean[1]) < SAME_LEAN:
        return f"images are not mirrored at random: {found['left_heavy']}, {lean}"
    if tolerance is None:
        return None
    pairs = [*zip(found["means"], truth["means"], strict=True), (found["asymmetry"], truth["asymmetry"])]
    if any(abs(here - there) > tolerance for here, there in pairs):
        return f"other pixels: {found['means']} and {found['asymmetry']}, not {truth['means']} and {truth['asymmetry']}"
    return None


def miscount(found: Mapping[str, Any], labels: Mapping[str, int], epochs: int) -> str | None:
    """What is wrong with the number of images; an epoch may leave out an incomplete batch."""
    total = sum(labels.values())
    if not epochs * (total - BATCH + 1) <= found["images"] <= epochs * total:
        return f"{found['images']} images in {epochs} epochs of {total}"
    if any(count > epochs * labels.get(label, 0) for label, count in found["labels"].items()):
        return f"labels {found['labels']} in {epochs} epochs of {labels}"
    return None


def interpreter(contestant: Contestant, environments: Path | None) -> Path | None:
    """The Python of a contestant's environment; None where it is not installed."""
    if contestant.environment is None:
        return Path(sys.executable)
    python = (environments or Path("nowhere")) / contestant.environment / "bin" / "python"
    return python.absolute() if python.exists() else None


def start(contestant: Contestant, python: Path, squares: Path, group: Group, work: Path) -> Running:
    """Start a contestant on the squares of its group."""
    read, size = group
    encoding = "raw" if read == "raw" else "jpeg"
    words = [str(python), str(PEERS / f"{contestant.script}.py")]
    words += ["--images", str(squares / encoding), "--work", str(work / "data"), "--size", str(size)]
    words += ["--encoding", encoding, "--batch", str(BATCH), "--workers", str(WORKERS), "--seed", str(SEED)]
    words += ["--variant", contestant.variant] if contestant.variant else []
    work.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if contestant.environment is None:
        environment["PYTHONPATH"] = str(ROOT)
    environment["TMPDIR"] = str(work.parent / "tmp")  # some leave files there
    (work.parent / "tmp").mkdir(exist_ok=True)
    return Running(words, environment=environment, log=work / "log.txt")


@dataclass
class GroupRun:
    """One group under way.

    Attributes:
        group: Which.
        squares: Their folder.
        truth: What they are.
        scratch: Folder for what contestants write.
        entry: The results, which grow.
    """

    group: Group
    squares: Path
    truth: Truth
    scratch: Path
    entry: dict[str, Any]

    def begin(self, name: str, environments: Path | None, stack: ExitStack) -> Running | None:
        """Start one, time its first epoch, look at what it delivers; None where that does not work."""
        contestant = CONTESTANTS[name]
        python = interpreter(contestant, environments)
        if python is None:
            self._without(name, "not installed")
            return None
        running = start(contestant, python, self.squares, self.group, self.scratch / name)
        stack.callback(running.close)
        try:
            facts = self._opened(running, None if self.group[0] == "op" else contestant.tolerance)
        except PeerFailedError as error:
            self._without(name, f"failed: {error}")
            running.close()
            return None
        self.entry["started"].append({**self._place(), "name": name, **facts})
        restless = "" if facts["rests"] else "; NEVER AT REST, it disturbs the others"
        say(f"{self._title(name)}: ready, converted in {facts['conversion_seconds']:.1f} s{restless}")
        return running

    def _opened(self, running: Running, tolerance: float | None) -> dict[str, Any]:
        """Hear of the conversion, time the first epoch, look at two more, wait for rest."""
        begun = running.hear()
        first = running.ask("epoch")
        described = running.ask("describe")
        wrong = problem(described, self.truth, self.group[1], tolerance=tolerance)
        if wrong:
            raise PeerFailedError(f"delivers something else: {wrong}")
        return {**begun, "first": first, "described": described, "rests": running.settle()}

    def turn(self, name: str, running: Running, round_number: int, turn: int, seconds: float) -> None:
        """Let one read for some seconds."""
        load = round(os.getloadavg()[0], 2)
        running.forget_peaks()
        cpu = running.cpu_seconds()
        answer: Answer = running.ask(f"seconds {seconds}")
        if wrong := miscount(answer, self.truth["labels"], answer["epochs"]):
            raise PeerFailedError(wrong)
        # What was read ahead is still being worked on: it belongs to this turn as the one before left as much to it.
        running.settle()
        used = {"cpu": running.cpu_seconds() - cpu, "peak_bytes": running.peak_bytes()}
        told = {key: answer[key] for key in ("images", "seconds", "epochs")}
        place = {**self._place(), "round": round_number, "turn": turn, "name": name, "load": load}
        self.entry["runs"].append({**place, **told, **used})
        rate = told["images"] / told["seconds"]
        say(f"{self._title(name)}, round {round_number + 1}: {rate:,.0f} images/s, load {load}")

    def lose(self, name: str, error: PeerFailedError) -> None:
        """Take the runs of one that failed back."""
        place = {**self._place(), "name": name}
        self.entry["runs"] = [run for run in self.entry["runs"] if not place.items() <= run.items()]
        self._without(name, f"failed: {error}")

    def _without(self, name: str, reason: str) -> None:
        say(f"{self._title(name)}: LEFT OUT, {reason}")
        self.entry["absent"].append({**self._place(), "name": name, "reason": reason.replace("|", "/")})

    def _place(self) -> dict[str, Any]:
        return {"read": self.group[0], "size": self.group[1]}

    def _title(self, name: str) -> str:
        return f"{self.group[0]} {self.group[1]} px, {name}"


def measure_group(run: GroupRun, names: Sequence[str], options: argparse.Namespace) -> None:
    """Start everybody, then let them take turns; the results file is written after every round."""
    with ExitStack() as stack:
        begun = {name: run.begin(name, options.environments, stack) for name in names}
        running = {name: process for name, process in begun.items() if process is not None}
        write_json(options.out, run.entry)
        for round_number in range(options.rounds):
            for turn, name in enumerate(turns(list(running), round_number) if running else []):
                try:
                    run.turn(name, running[name], round_number, turn, options.seconds)
                except PeerFailedError as error:
                    run.lose(name, error)
                    del running[name]
            write_json(options.out, run.entry)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything."""
    entry = circumstances(PACKAGES)
    files = list_images(options.data)
    chosen = spaced(files, options.limit or len(files))
    entry["set"] = {"name": options.name or options.data.name, "images": len(chosen), "of": len(files)}
    entry |= {"batch": BATCH, "workers": WORKERS, "seconds": options.seconds}
    entry["titles"] = {name: CONTESTANTS[name].title for name in CONTESTANTS}
    entry |= {"repeats": {}, "started": [], "absent": [], "runs": []}
    with scratch_folder(options.scratch) as scratch:
        data = link_folder(options.data, chosen, scratch / "photos")
        for size in options.sizes:
            squares = scratch / f"squares-{size}"
            repeats = options.repeats or (REPEATS if size <= SMALL else 1)
            entry["repeats"][str(size)] = repeats
            truth = make_squares(data, squares, size, repeats)
            for read in options.reads:
                names = [name for name in options.only if read in CONTESTANTS[name].reads]
                work = scratch / f"{read}-{size}"
                measure_group(GroupRun((read, size), squares, truth, work, entry), names, options)
                shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(squares)
    return entry


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="loaders-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def main() -> None:
    """Measure and render, or only render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of class folders of photos")
    parser.add_argument("--name", help="what the set is called; by default its folder's name")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224], help="sides in px")
    parser.add_argument("--reads", nargs="+", choices=READS, default=list(READS), help="what is read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least seconds of a turn; epochs are finished")
    parser.add_argument("--repeats", type=int, help="files for each photo; by default 4 up to 64 px, else 1")
    parser.add_argument("--environments", type=Path, help="folder that peers/install.sh filled")
    parser.add_argument("--limit", type=int, default=0, help="only N photos (a multiple of 128), for trying")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results, JSON")
    parser.add_argument("--scratch", type=Path, help="folder for what contestants write, else the system's own")
    parser.add_argument("--table", action="store_true", help="only render, from --out")
    parser.add_argument("--chart", type=Path, help="draw the bar chart, PNG")
    options = parser.parse_args()
    if not options.table and options.data is None:
        parser.error("--data is missing: the folder of photos, for example path/to/trashnet")
    if options.limit and options.out == RESULTS and not options.table:
        parser.error("--limit is for trying: give another --out, so that it does not replace the results")
    entry = json.loads(options.out.read_text(encoding="utf-8")) if options.table else measure(options)
    if options.chart:
        draw(entry, options.chart)
    sys.stdout.write(render(entry) + "\n")


if __name__ == "__main__":
    main()
