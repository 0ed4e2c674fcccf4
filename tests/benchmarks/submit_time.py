"""The time of a whole submission, from the start of the process to its end, each image by itself; writes JSON.

    python -m tests.benchmarks.submit_time --crops out/crops path/to/trashnet
    python -m tests.benchmarks.submit_time --table

`plain` is how submissions are usually written (`rivals/submission.py`: torch, DataLoader with 8 workers, eager),
`prototype` a short loop over onnxruntime and simplejpeg, `ours` is `python -m training.predict` with an ONNX file on
the same folder, `ours, cache` the same on an augmentation cache of the crops. The order turns from round to round;
ratios are taken within a round. Networks have random weights: that changes no time.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipelines.console.files import write_json
from pipelines.console.output import say
from tests.benchmarks.rivals.facts import ROOT, circumstances, spread
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.model_file import save_model
from training.model.onnx_file import export_onnx

RESULTS = Path(__file__).parent / "results" / "submit_time.json"
RIVALS = Path(__file__).parent / "rivals"
NETWORKS = {"shufflenet_g3_x025_4_8_4": 80, "mobilenetv3_small_050": 64}
CLASSES = ("Metal", "Paper", "Paperpack", "Plastic", "Plasticbag", "Styrofoam")
IMAGES = 5217
GOAL, EXPOSED_GOAL = 15, 0.2
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "numpy", "opencv-python-headless", "simplejpeg", "pillow")


def make_folder(crops: list[Path], folder: Path, count: int) -> dict[str, int]:
    """Copy crops into a folder per class, again and again up to a number; what it holds."""
    files = sorted(file for root in crops for file in root.rglob("*.jpg"))
    size = 0
    for number in range(count):
        file = files[number % len(files)]
        target = folder / CLASSES[number % len(CLASSES)] / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        size += target.stat().st_size
    return {"images": count, "different": len(files), "bytes": size}


def make_models(folder: Path) -> None:
    """A model file and an ONNX file of each network."""
    for name, size in NETWORKS.items():
        torch.manual_seed(0)
        model = create_model(name, len(CLASSES)).eval()
        scale = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        card = ModelCard(architecture=name, classes=CLASSES, size=size, fit="stretch", **scale)
        save_model(folder / f"{name}.safetensors", model, card)
        export_onnx(folder / f"{name}.onnx", model, card)


def make_caches(folder: Path) -> None:
    """A cache of raw pixels for each size."""
    for size in set(NETWORKS.values()):
        words = ["--data", folder / "crops", "--out", folder / f"cache{size}", "--size", size, "--copies", 0]
        words += ["--encoding", "raw", "--fit", "stretch", "--val", 0, "--test", 0]
        subprocess.run([sys.executable, "-m", "augment_cache.build", *map(str, words)], check=True, cwd=ROOT)


def commands(folder: Path, network: str) -> dict[str, list[str]]:
    """What is run, by the name of the way."""
    onnx, crops, out = folder / f"{network}.onnx", folder / "crops", folder / "out.csv"
    cache = folder / f"cache{NETWORKS[network]}"
    ours = ["-m", "training.predict", "--model", onnx, "--out", out, "--json", "--data"]
    return {
        way: [sys.executable, *map(str, words)]
        for way, words in {
            "plain": [RIVALS / "submission.py", folder / f"{network}.safetensors", crops, out],
            "prototype": [RIVALS / "prototype.py", onnx, crops, out],
            "ours": [*ours, crops],
            "ours, cache": [*ours, cache, "--split", "train"],
        }.items()
    }


def warm(folder: Path, command: list[str]) -> None:
    """Read what the program will read, libraries too: some machines forget files that nobody reads for a minute."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.read_bytes()
    few = folder.parent / "few"
    words = [word.replace(str(folder / "crops"), str(few / "crops")) for word in command]
    subprocess.run(words, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, check=True)


def once(command: list[str]) -> dict[str, Any]:
    """Run a program: seconds from start to end, CPU seconds with its children, and what it says of itself."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "."},
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = json.loads(done.stdout) if done.stdout.strip() else {}
    return {"seconds": seconds, "cpu": cpu, "timing": said.get("timing", said)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the results file is written after every round."""
    entry = circumstances(PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "all"
        make_folder(options.crops, Path(name) / "few" / "crops", 20)
        entry |= {"data": make_folder(options.crops, folder / "crops", IMAGES), "runs": []}
        make_models(folder)
        make_caches(folder)
        for network in NETWORKS:
            ways = commands(folder, network)
            for number in range(options.rounds):
                for way in list(ways) if number % 2 == 0 else list(ways)[::-1]:
                    warm(folder, ways[way])
                    load = round(os.getloadavg()[0], 2)
                    found = once(ways[way])
                    say(f"{network}, round {number + 1}: {way} {found['seconds']:.2f} s, load {load}")
                    entry["runs"].append({"network": network, "round": number, "way": way, "load": load, **found})
                write_json(options.out, entry)
    return entry


def values(entry: dict[str, Any], network: str, way: str, what: str) -> list[float]:
    """One figure of all rounds."""
    return [run[what] for run in entry["runs"] if (run["network"], run["way"]) == (network, way)]


def ratios(entry: dict[str, Any], network: str, way: str) -> list[float]:
    """How many times as long the plain way takes, per round."""
    plain = values(entry, network, "plain", "seconds")
    return [other / mine for other, mine in zip(plain, values(entry, network, way, "seconds"), strict=True)]


def exposed(run: dict[str, Any]) -> float | None:
    """Share of the whole time that is start-up or loading that nothing hides."""
    timing = run["timing"]
    if "exposed_loading" not in timing:
        return 1 - timing["inference_only"] / run["seconds"] if timing else None
    return (timing["start_up"] + timing["exposed_loading"]) / run["seconds"]


def render(entry: dict[str, Any]) -> str:
    """The Markdown table."""
    machine, data, loads = entry["machine"], entry["data"], [run["load"] for run in entry["runs"]]
    versions = ", ".join(f"{name} {entry['versions'][name]}" for name in ("torch", "onnxruntime"))
    lines = [
        f"{data['images']:,} crops ({data['different']:,} different ones, "
        f"{data['bytes'] / data['images'] / 1000:.0f} kB each), every image by itself, float32. {machine['cpu']}, "
        f"{machine['cores']} cores, Python {machine['python']}, {versions}, load {min(loads)} to {max(loads)}; "
        f"{entry['date']}, commit {entry['git']}. Medians of rounds (least-most).",
        "",
        "| network | way | whole program, s | CPU s per 1,000 images | plain / this | start-up and exposed loading |",
        "|---|---|---|---|---|---|",
    ]
    for network, size in NETWORKS.items():
        for way in dict.fromkeys(run["way"] for run in entry["runs"]):
            runs = [run for run in entry["runs"] if (run["network"], run["way"]) == (network, way)]
            cpu = [1000 * run["cpu"] / data["images"] for run in runs]
            shares = [share for run in runs if (share := exposed(run)) is not None]
            lines.append(
                f"| {network}, {size} px | {way} | {spread([run['seconds'] for run in runs], 2)} | {spread(cpu, 2)} "
                f"| {spread(ratios(entry, network, way), 1)} "
                f"| {f'{median(shares):.0%} ({min(shares):.0%}-{max(shares):.0%})' if shares else ''} |"
            )
    lines += ["", *verdicts(entry)]
    return "\n".join(lines)


def verdicts(entry: dict[str, Any]) -> list[str]:
    """The goals, one line per network."""
    lines = []
    for network in NETWORKS:
        times = median(ratios(entry, network, "ours"))
        share = median(
            share
            for run in entry["runs"]
            if (run["network"], run["way"]) == (network, "ours") and (share := exposed(run)) is not None
        )
        lines.append(
            f"- {network}: {times:.1f} times as fast as the plain way (goal {GOAL}: "
            f"{'met' if times >= GOAL else 'missed'}); start-up and exposed loading {share:.0%} "
            f"(goal under {EXPOSED_GOAL:.0%}: {'met' if share < EXPOSED_GOAL else 'missed'})"
        )
    return lines


def main() -> None:
    """Measure and render, or only render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=Path, nargs="+", help="folders of crops, JPEG")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results, JSON")
    parser.add_argument("--table", action="store_true", help="only render the table from --out")
    options = parser.parse_args()
    if not options.table and not options.crops:
        parser.error("--crops is missing: folders of crops, for example out/crops")
    entry = json.loads(options.out.read_text(encoding="utf-8")) if options.table else measure(options)
    sys.stdout.write(render(entry) + "\n")


if __name__ == "__main__":
    main()
