"""The three recipes on real photos, several seeds, against a plain PyTorch loop; writes JSON and renders the table.

    python -m tests.benchmarks.real_data --data path/to/taco --name taco --recipe quick
    python -m tests.benchmarks.real_data --data path/to/taco --name taco --recipe pretrained -- \
        --model.weights tf_efficientnet_lite0.pth
    python -m tests.benchmarks.real_data --table

The protocol of the plain loop: 80 % of the crops to learn from, cut by photo (the train and val splits together), 20 %
to test on, nothing chosen by the test: the weights after the last epoch count. Each call adds or replaces one entry of
`tests/benchmarks/results/real_data.json`; words after `--` go to training as they stand.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from tests.benchmarks.rivals.facts import circumstances

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "real_data.json"
RECIPES = HERE.parent.parent / "training" / "recipes"
CACHE_SIZE = {"quick": 80, "competition": 96, "pretrained": 112}
PACKAGES = ("torch", "timm", "opencv-python-headless", "simplejpeg", "numpy", "pytorchcv")
PLAIN = {
    ("taco", "quick"): (0.219, 40),
    ("taco", "competition"): (0.213, 40),
    ("taco", "pretrained"): (0.381, 12),
    ("trashnet", "quick"): (0.627, 40),
    ("trashnet", "competition"): (0.656, 40),
    ("trashnet", "pretrained"): (0.774, 8),
}
"""Macro F1 and epochs of a plain PyTorch loop: AdamW, one cycle, label smoothing 0.1, random resized crops of at least
half, flips, batch 64, one seed, no cache; same networks, sizes and shares, another split of the same photos."""


def job(*words):
    """Run a job with --json; its report and the seconds of the whole process."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words), "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout), time.monotonic() - start


def prepare(data, name, out, size):
    """Crop and build, where that has not been done; the cache and what its job says."""
    split = ["--val", 0.15, "--test", 0.2]
    crops, cut = data, split
    if (data / "annotations.json").is_file():
        crops, cut = out / f"{name}-crops", []
        if not crops.is_dir():
            job("augment_cache.crop", "--data", data, "--out", crops, *split)
    cache = out / f"{name}-{size}"
    report, _ = job("augment_cache.build", "--data", crops, "--out", cache, "--size", size, *cut)
    return cache, report


def measure(options, extra):
    """Crop, build, train and evaluate; the entry for the results file."""
    size = options.cache_size or CACHE_SIZE[options.recipe]
    cache, built = prepare(options.data, options.name, options.out, size)

    def train(seed):
        run = options.out / f"{options.name}-{options.recipe}-{seed}"
        words = ["--config", RECIPES / f"{options.recipe}.yaml", "--data.path", cache, "--out", run, "--seed", seed]
        words += ["--data.train_on", "train+val", "--threads", options.threads, "--data.threads", 1, *extra]
        trained, seconds = job("training.train", *words)
        result, _ = job("training.evaluate", "--model", run, "--data", cache)
        sys.stderr.write(f"{options.name} {options.recipe} seed {seed}: macro F1 {result['macro_f1']:.4f}\n")
        return (
            {"seed": seed, "epochs": trained["epochs"], "steps": trained["steps"], "train_seconds": round(seconds, 1)}
            | {key: result[key] for key in ("macro_f1", "accuracy", "samples", "macs", "parameters", "input_size")}
            | {"f1": {label: facts["f1"] for label, facts in result["per_class"].items()}}
        )

    with ThreadPoolExecutor(options.jobs) as pool:
        runs = list(pool.map(train, options.seeds))
    return {
        "data": options.name,
        "recipe": options.recipe,
        "extra": " ".join(Path(word).name if "/" in word else word for word in extra),
        **circumstances(PACKAGES),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.system(),
        "jobs": options.jobs,
        "cache": {"size": size, "bytes": built["bytes"], "splits": built["splits"]},
        "runs": runs,
    }


def render(entries):
    """The Markdown table."""
    lines = [
        "| data | recipe | macro F1, mean ± std of seeds (each) | accuracy | epochs | plain loop: F1, epochs | more "
        "| test crops | MACs at px |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        runs = entry["runs"]
        scores = [run["macro_f1"] for run in runs]
        spread = f" ± {stdev(scores):.3f}" if len(scores) > 1 else ""
        each = ", ".join(f"{score:.3f}" for score in scores)
        plain, epochs = PLAIN.get((entry["data"], entry["recipe"]), (None, None))
        against = f"{plain:.3f}, {epochs} | {mean(scores) - plain:+.3f}" if plain else "|"
        lines.append(
            f"| {entry['data']} | {entry['recipe']} | **{mean(scores):.3f}**{spread} ({each}) "
            f"| {mean(run['accuracy'] for run in runs):.3f} | {runs[0]['epochs']} | {against} "
            f"| {runs[0]['samples']:,} | {runs[0]['macs']:,} at {runs[0]['input_size']} |"
        )
    return "\n".join(lines)


def main():
    """Measure or render."""
    own = sys.argv[1:]
    extra = own[own.index("--") + 1 :] if "--" in own else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only render the table")
    parser.add_argument("--data", type=Path, help="photos with annotations, or a folder per class")
    parser.add_argument("--name", help="how the table calls them: taco, trashnet")
    parser.add_argument("--recipe", choices=list(CACHE_SIZE), default="quick")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for crops, caches and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache_size", type=int, help="px; as the recipe says when absent")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    options = parser.parse_args(own[: own.index("--")] if "--" in own else own)
    entries = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    if not options.table:
        if options.data is None or options.name is None:
            parser.error("--data and --name are missing: --data path/to/taco --name taco")
        entry = measure(options, extra)
        entries = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
        key = options.name, options.recipe
        entries = sorted(
            [old for old in entries if (old["data"], old["recipe"]) != key] + [entry],
            key=lambda found: (found["data"], found["recipe"]),
        )
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(render(entries) + "\n")


if __name__ == "__main__":
    main()
