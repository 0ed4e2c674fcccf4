"""How long pressing takes by itself, without recovery: every press on every architecture of the list.

    python -m tests.benchmarks.press_time
    python -m tests.benchmarks.press_time --table

A turn reads the model file, decides, cuts, proves and writes; rounds go through all networks in turn. Importing is not
counted. Layers are ranked by their weights: by ablation, the data decide how long it takes. Writes
`tests/benchmarks/results/press_time.json`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from compress.channels import ChannelsConfig, channels
from compress.layers import LayersConfig, layers
from compress.low_rank import LowRankConfig, low_rank
from compress.press.contract import NoEffectError, OutOfReachError
from compress.weights import WeightsConfig, weights
from pipelines.console.files import write_json
from tests.benchmarks.rivals.facts import circumstances, spread
from tests.compress.nets import MODELS, with_random_statistics
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.model_file import save_model

RESULTS = Path(__file__).parent / "results" / "press_time.json"
GOAL, SIZE, CLASSES = 10.0, 80, ("battery", "glass", "metal", "paper", "plastic", "trash")
PACKAGES = ("torch", "timm", "pytorchcv", "scipy", "numpy")
PRESSES = {
    "channels, half the MACs": lambda model, out: channels(ChannelsConfig(model=model, out=out, target_share=0.5)),
    "channels, 40 % of all": lambda model, out: channels(
        ChannelsConfig(model=model, out=out, ratio=0.4, scope="global")
    ),
    "layers, one": lambda model, out: layers(LayersConfig(model=model, out=out, rank_by="weight_std", count=1)),
    "low rank, 90 % of the energy": lambda model, out: low_rank(LowRankConfig(model=model, out=out, energy=0.9)),
    "weights, 80 % zeros": lambda model, out: weights(WeightsConfig(model=model, out=out, sparsity=0.8)),
}


def make(folder):
    """A model file of every architecture."""
    files = {}
    for number, name in enumerate(MODELS):
        torch.manual_seed(number)
        files[name] = folder / f"{number}.safetensors"
        card = ModelCard(architecture=name, classes=CLASSES, size=SIZE, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3)
        save_model(files[name], with_random_statistics(create_model(name, len(CLASSES))), card)
    return files


def measure(options):
    """All rounds; the contents of the results file."""
    entry = circumstances(PACKAGES) | {"size": SIZE, "threads": torch.get_num_threads(), "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        files = make(Path(folder))
        for number in range(options.rounds):
            for name, model in files.items():
                for title, press in PRESSES.items():
                    run = {"network": name, "press": title, "round": number, "load": round(os.getloadavg()[0], 1)}
                    wall, cpu = time.monotonic(), time.process_time()
                    try:
                        press(model, Path(folder) / "pressed.safetensors")
                    except (NoEffectError, OutOfReachError) as error:
                        run["refused"] = str(error)
                    run |= {"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}
                    entry["runs"].append(run)
                sys.stderr.write(f"round {number}: {name}\n")
    return entry


def render(entry):
    """Markdown: a row for each press."""
    loads = [run["load"] for run in entry["runs"]]
    rounds = 1 + max(run["round"] for run in entry["runs"])
    machine, versions = entry["machine"], entry["versions"]
    lines = [
        f"{len(MODELS)} architectures at {entry['size']} px, {rounds} rounds; {machine['cpu']}, "
        f"{machine['cores']} cores, Python {machine['python']}, torch {versions['torch']}, "
        f"load {min(loads):.1f} to {max(loads):.1f}; {entry['date']}, commit {entry['git']}. Seconds: "
        "median (least-most).",
        "",
        f"| press | refused | all networks | the slowest network | CPU s | goal, every network: {GOAL:.0f} s |",
        "|---|---|---|---|---|---|",
    ]
    for title in PRESSES:
        runs = [run for run in entry["runs"] if run["press"] == title]
        of = {name: [run["seconds"] for run in runs if run["network"] == name] for name in MODELS}
        slowest = max(of, key=lambda name: median(of[name]))
        refusing = len({run["network"] for run in runs if "refused" in run})
        cpu = [run["cpu_seconds"] for run in runs if run["network"] == slowest]
        met = "met" if all(run["seconds"] < GOAL for run in runs) else "missed"
        every = spread([run["seconds"] for run in runs], 2)
        lines.append(
            f"| {title} | {refusing} | {every} | {slowest}: {spread(of[slowest], 2)} | {spread(cpu, 2)} | {met} |"
        )
    return "\n".join(lines)


def main():
    """Measure and render, or only render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results, JSON")
    parser.add_argument("--table", action="store_true", help="only render the table from --out")
    options = parser.parse_args()
    if not options.table:
        write_json(options.out, measure(options))
    sys.stdout.write(render(json.loads(options.out.read_text(encoding="utf-8"))) + "\n")


if __name__ == "__main__":
    main()
