"""What the training engine costs: a run with everything on against a bare loop over the same batches; writes JSON.

    python -m tests.benchmarks.training_loop --cache out/trashnet64
    python -m tests.benchmarks.training_loop --table

`bare` is written by hand: forward, loss, backward, clipping, optimizer step, nothing else. `steps` is what the engine
does in the same epochs, with learning rates, noise, signals, the watch on the loss, progress, logs and a checkpoint
every few seconds; `whole` is the whole run, with the evaluation after each epoch and all files. The first of one round
is the last of the next; ratios are taken within a round. Everything runs in one process, float32, all cores.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from pipelines.console.files import write_json
from pipelines.console.output import say
from pipelines.loader import Loader
from tests.benchmarks.rivals.facts import circumstances, spread
from training.engine.config import DataConfig, ModelConfig, SaveConfig, TrainConfig
from training.engine.data import training_sources
from training.engine.optimization import ScheduleConfig
from training.engine.preemption import StopSignals
from training.engine.run import Run
from training.engine.setup import Machine, assemble, start
from training.train import make_network

RESULTS = Path(__file__).parent / "results" / "training_loop.json"
NETWORKS = ("mobilenetv3_small_050", "shufflenet_g3_wd4")
WAYS = ("bare", "engine")
GOAL = 0.97
PACKAGES = ("torch", "timm", "accelerate", "numpy")


def make_run(options: argparse.Namespace, name: str, out: Path, machine: Machine, signals: StopSignals) -> Run:
    """A run of the engine, ready to go."""
    config = TrainConfig(
        data=DataConfig(path=options.cache, batch_size=options.batch_size, engine="cpu"),
        model=ModelConfig(name=name),
        schedule=ScheduleConfig(epochs=options.epochs, warmup_epochs=0),
        save=SaveConfig(minutes=options.save_seconds / 60),
        out=out,
    )
    sources = training_sources(config.data)
    return assemble(config, machine, sources, make_network(config, sources[0]), signals)


def bare(run: Run, epochs: int) -> float:
    """Seconds of the epochs of a run, by hand."""
    loader: Loader = run.train_loader
    trainer, model = run.trainer, run.trainer.plain
    weights = run.trainer.objective.loss.class_weights  # type: ignore[attr-defined]
    optimizer: torch.optim.Optimizer = trainer.optimizer.optimizer
    model.train()
    began = time.perf_counter()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            logits = model(trainer.format(batch.images))
            loss = nn.functional.cross_entropy(logits, batch.labels, weights, label_smoothing=0.1)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - began
    loader.engine.close()
    return seconds


def once(options: argparse.Namespace, name: str, way: str, machine: Machine) -> dict[str, float]:
    """Images per second of one way, and CPU seconds per 1,000 images."""
    with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
        run = make_run(options, name, Path(folder) / "run", machine, signals)
        images = options.epochs * run.steps * options.batch_size
        cpu = time.process_time()
        if way == "bare":
            seconds = whole = bare(run, options.epochs)
        else:
            whole = run.fit(None)["seconds"]
            run.train_loader.engine.close()
            seconds = sum(line["seconds"] for line in run.state.log)
        cpu = time.process_time() - cpu
    return {"steps": images / seconds, "whole": images / whole, "cpu_per_1000": 1000 * cpu / images}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the results file is written after every round."""
    entry = circumstances(PACKAGES)
    entry |= {name: getattr(options, name) for name in ("batch_size", "epochs", "save_seconds")} | {"runs": []}
    for name in options.networks:
        machine = start(TrainConfig(data=DataConfig(path=options.cache), out=Path("unused")))
        once(replace_epochs(options, 1), name, "engine", machine)  # warm
        for number in range(options.rounds):
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                load = round(os.getloadavg()[0], 2)
                found = once(options, name, way, machine)
                entry["runs"].append({"network": name, "round": number, "way": way, "load": load, **found})
                say(f"{name}, round {number + 1}: {way} {found['steps']:,.0f} images/s, load {load}")
            write_json(options.out, entry)
    return entry


def replace_epochs(options: argparse.Namespace, epochs: int) -> argparse.Namespace:
    """The same options with other epochs."""
    return argparse.Namespace(**{**vars(options), "epochs": epochs})


def shares(entry: dict[str, Any], network: str, what: str) -> list[float]:
    """Throughput of the engine over that of the bare loop, per round."""
    runs = {(run["round"], run["way"]): run for run in entry["runs"] if run["network"] == network}
    rounds = sorted({number for number, _ in runs})
    pairs = [(runs.get((number, "engine")), runs.get((number, "bare"))) for number in rounds]
    return [engine[what] / other[what] for engine, other in pairs if engine and other]


def render(entry: dict[str, Any]) -> str:
    """The Markdown table."""
    machine, loads = entry["machine"], [run["load"] for run in entry["runs"]]
    where = (
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, torch {entry['versions']['torch']}"
    )
    lines = [
        f"Batch {entry['batch_size']}, float32, {entry['epochs']} epochs, a checkpoint every "
        f"{entry['save_seconds']:g} s; {where}, load {min(loads)} to {max(loads)}; {entry['date']}, "
        f"commit {entry['git']}. Medians of rounds (least-most).",
        "",
        "| network | bare loop, images/s | engine / bare, steps | engine / bare, whole run | CPU s per 1,000 images, "
        "bare | engine, whole | goal, steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for network in dict.fromkeys(run["network"] for run in entry["runs"]):
        steps, whole = shares(entry, network, "steps"), shares(entry, network, "whole")
        verdict = "met" if median(steps) >= GOAL else "missed"
        lines.append(
            f"| {network} | {spread(values(entry, network, 'bare', 'steps'), 0)} | {spread(steps, 3)} "
            f"| {spread(whole, 3)} | {spread(values(entry, network, 'bare', 'cpu_per_1000'), 2)} "
            f"| {spread(values(entry, network, 'engine', 'cpu_per_1000'), 2)} | {GOAL}: {verdict} |"
        )
    return "\n".join(lines)


def values(entry: dict[str, Any], network: str, way: str, what: str) -> Sequence[float]:
    """One figure of all rounds."""
    return [run[what] for run in entry["runs"] if (run["network"], run["way"]) == (network, way)]


def main() -> None:
    """Measure and render, or only render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="a cache with train and val splits")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save_seconds", type=float, default=5.0, help="between two checkpoints; the default is 60")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results, JSON")
    parser.add_argument("--table", action="store_true", help="only render the table from --out")
    options = parser.parse_args()
    if not options.table and options.cache is None:
        parser.error("--cache is missing: a cache, for example out/cache")
    entry = json.loads(options.out.read_text(encoding="utf-8")) if options.table else measure(options)
    sys.stdout.write(render(entry) + "\n")


if __name__ == "__main__":
    main()
