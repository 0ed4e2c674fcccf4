"""Does a training step ever wait? The same loop on constant tensors and on what the loader gives; writes JSON.

    python -m tests.benchmarks.training_feed --cache out/trashnet64
    python -m tests.benchmarks.training_feed --table

Forward, backward and optimizer step of a network at the cache's size, float32, all cores. Each round runs every feed in
turn for the same number of steps, the first of one round being the last of the next; ratios are taken within a round.
Loader and network share the cores, so whatever the loader computes is lost to the network.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import nn

from augment_cache.format.policy import load_policy
from augment_cache.format.source import CacheSource
from pipelines.console.cores import usable_cores
from pipelines.console.files import write_json
from pipelines.console.output import say
from pipelines.engines.base import RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.loader import Loader, LoaderOptions
from pipelines.plan import View
from pipelines.resident import ResidentSource
from pipelines.sources import Source
from pipelines.tensors import TensorFormat
from tests.benchmarks.rivals.facts import circumstances, spread

RESULTS = Path(__file__).parent / "results" / "training_feed.json"
NETWORKS = {"resnet18": 0.97, "mobilenetv3_small_050": 0.93}
"""Network → share of the throughput on constant tensors that is the goal for resident data."""
FEEDS = ("constant", "resident", "streamed", "resident, one op")
PACKAGES = ("torch", "timm", "numpy", "opencv-python-headless", "simplejpeg")
Pair = tuple[torch.Tensor, torch.Tensor]


def constant(loader: Loader) -> Iterator[Pair]:
    """One batch of the loader, over and over."""
    batch = next(iter(loader))
    while True:
        yield batch.images, batch.labels


def endless(loader: Loader) -> Iterator[Pair]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        epoch += 1
        for batch in loader:
            yield batch.images, batch.labels


def make_feeds(cache: Path, engine: CpuEngine, batch_size: int) -> dict[str, Iterator[Pair]]:
    """Every feed of `FEEDS`."""
    streamed: Source = CacheSource(cache, "train")
    resident: Source = ResidentSource(streamed, engine)

    def loader(source: Source, *, ops: bool = False) -> Loader:
        policy = load_policy("taco14") if ops else None
        options = LoaderOptions(batch_size=batch_size, train=True, view=View(flip=True), policy=policy)
        return Loader(source, engine, options, TensorFormat("float32"))

    return {
        "constant": constant(loader(resident)),
        "resident": endless(loader(resident)),
        "streamed": endless(loader(streamed)),
        "resident, one op": endless(loader(resident, ops=True)),
    }


def steps_of(network: nn.Module, optimizer: torch.optim.Optimizer, feed: Iterator[Pair], steps: int) -> float:
    """Seconds of some training steps."""
    start = time.perf_counter()
    for _ in range(steps):
        images, labels = next(feed)
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the results file is written after every round."""
    torch.set_num_threads(usable_cores())
    size = CacheSource(options.cache, "train").image_size
    entry = circumstances(PACKAGES)
    entry |= {"size": size, "batch_size": options.batch_size, "seconds_per_run": options.seconds, "runs": []}
    engine = CpuEngine(RenderSpec(size))
    for name in options.networks:
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=6).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        feeds = make_feeds(options.cache, engine, options.batch_size)
        warm = steps_of(network, optimizer, feeds["constant"], 5) / 5
        steps = max(5, round(options.seconds / warm))
        for number in range(options.rounds):
            load = round(os.getloadavg()[0], 2)
            for feed in [*FEEDS[number % len(FEEDS) :], *FEEDS[: number % len(FEEDS)]]:
                seconds = steps_of(network, optimizer, feeds[feed], steps)
                rate = steps * options.batch_size / seconds
                entry["runs"].append(
                    {"network": name, "round": number, "feed": feed, "images_per_second": rate, "load": load}
                )
                say(f"{name}, round {number + 1}: {feed} {rate:,.0f} images/s, load {load}")
            write_json(options.out, entry)
    engine.close()
    return entry


def shares(entry: dict[str, Any], network: str, feed: str) -> list[float]:
    """Throughput of a feed over that of constant tensors, per round."""
    rates = {
        (run["round"], run["feed"]): run["images_per_second"] for run in entry["runs"] if run["network"] == network
    }
    rounds = sorted({number for number, _ in rates})
    return [rates[number, feed] / rates[number, "constant"] for number in rounds if (number, feed) in rates]


def render(entry: dict[str, Any]) -> str:
    """The Markdown table."""
    machine, loads = entry["machine"], [run["load"] for run in entry["runs"]]
    lines = [
        f"{entry['size']} px, batch {entry['batch_size']}, float32, {machine['cpu']}, {machine['cores']} cores, Python "
        f"{machine['python']}, torch {entry['versions']['torch']}, load {min(loads)} to {max(loads)}; {entry['date']}, "
        f"commit {entry['git']}. Share of the images/s on constant tensors, median of rounds (least-most).",
        "",
        f"| network | constant, images/s | {' | '.join(FEEDS[1:])} | goal, resident |",
        "|---|---|" + "---|" * len(FEEDS),
    ]
    for network in dict.fromkeys(run["network"] for run in entry["runs"]):
        own = [
            run["images_per_second"] for run in entry["runs"] if run["network"] == network and run["feed"] == "constant"
        ]
        found = [spread(shares(entry, network, feed), 3) for feed in FEEDS[1:]]
        goal = NETWORKS.get(network)
        verdict = (
            ""
            if goal is None
            else f"{goal}: {'met' if median(shares(entry, network, 'resident')) >= goal else 'missed'}"
        )
        lines.append(f"| {network} | {spread(own, 0)} | {' | '.join(found)} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and render, or only render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="a cache with a train split")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="timm names")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run, roughly")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results, JSON")
    parser.add_argument("--table", action="store_true", help="only render the table from --out")
    options = parser.parse_args()
    if not options.table and options.cache is None:
        parser.error("--cache is missing: a cache, for example out/cache")
    entry = json.loads(options.out.read_text(encoding="utf-8")) if options.table else measure(options)
    sys.stdout.write(render(entry) + "\n")


if __name__ == "__main__":
    main()
