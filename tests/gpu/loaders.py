"""How fast the loader is on a GPU: every way of reading the same images, as `pipelines.bench` measures it.

python -m tests.gpu.loaders --data path/to/trashnet --out out/gpu/loaders.json --work out/gpu/caches
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pipelines.console.files import write_json
from pipelines.console.output import render_table, say
from tests.benchmarks.rivals.facts import circumstances

SIZES = (64, 224)
WAYS: dict[str, list[str]] = {
    "raw, resident": ["raw", "--resident", "on"],
    "raw, streamed": ["raw", "--resident", "off"],
    "JPEG, streamed": ["jpeg", "--resident", "off"],
    "raw, resident, one op": ["raw", "--resident", "on", "--ops", "1"],
    "JPEG, streamed, one op": ["jpeg", "--resident", "off", "--ops", "1"],
    "raw, resident, random crops": ["raw", "--resident", "on", "--min_area", "0.3"],
    "raw, resident, cpu engine": ["raw", "--resident", "on", "--engine", "cpu"],
}
PACKAGES = ("torch", "nvidia-dali-cuda110", "nvidia-dali-cuda130", "numpy", "opencv-python-headless", "simplejpeg")


def job(name: str, *words: object) -> dict[str, Any]:
    """Run a job and return its report."""
    command = [sys.executable, "-m", name, *map(str, words), "--json"]
    report: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return report


def measure(data: Path, work: Path, out: Path) -> dict[str, Any]:
    """Build the caches and run every way at every size; the results are written after each."""
    entry = circumstances(PACKAGES)
    entry["gpu"] = torch.cuda.get_device_name()
    entry["driver"] = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    ).stdout.strip()
    entry["runs"] = []
    for size in SIZES:
        for encoding in ("raw", "jpeg"):
            options = ["--size", size, "--encoding", encoding, "--copies", 0, "--val", 0, "--test", 0]
            job("augment_cache.build", "--data", data, "--out", work / f"{encoding}{size}", *options)
        for name, (encoding, *words) in WAYS.items():
            batch = ["--batch_size", 256, "--device", "gpu", "--dtype", "float16"]
            report = job("pipelines.bench", "--data", work / f"{encoding}{size}", *batch, *words)
            entry["runs"].append({"size": size, "way": name, **report})
            say(f"{size} px, {name}: {report['images_per_second']['median']:,.0f} images/s")
            write_json(out, entry)
    return entry


def table(entry: dict[str, Any]) -> str:
    """The results for people."""
    rows = [
        [run["size"], run["way"], run["engine"], round(run["images_per_second"]["median"]), run["wait_share"]]
        for run in entry["runs"]
    ]
    return render_table([">px", "way", "engine", ">images/s", ">waited"], rows)


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders of photos")
    parser.add_argument("--out", type=Path, required=True, help="the results, JSON")
    parser.add_argument("--work", type=Path, required=True, help="folder for the caches")
    options = parser.parse_args()
    sys.stdout.write(table(measure(options.data, options.work, options.out)) + "\n")


if __name__ == "__main__":
    main()
