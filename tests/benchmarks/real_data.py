"""The whole road on real photos, several seeds; writes JSON and renders the README's table from it.

    python -m tests.benchmarks.real_data --data path/to/taco --name taco --recipe real --out out/bench
    python -m tests.benchmarks.real_data --render

Each run adds or replaces one entry of `tests/benchmarks/results/real_data.json`. Training starts from the recipe; words
after `--` go to training as they stand, for example `-- --model.weights tf_efficientnet_lite0.pth`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "real_data.json"
RECIPES = HERE.parent.parent / "training" / "recipes"


def job(*words):
    """Run a job with --json; its report and the seconds of the whole process."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words), "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout), time.monotonic() - start


def measure(data, name, recipe, out, seeds, cache_size, extra):
    """Crop, build, train and evaluate; the entry for the results file."""
    entry = {"data": name, "recipe": recipe, "extra": extra_text(extra), "machine": machine(), "runs": []}
    crops = data
    if (data / "annotations.json").is_file():
        crops = out / "crops"
        report, seconds = job("augment_cache.crop", "--data", data, "--out", crops, "--overwrite", "true")
        entry["crop"] = {key: report[key] for key in ("photos", "crops", "bytes", "counts", "rejected")}
        entry["crop"]["seconds"] = round(seconds, 1)
    report, seconds = job(
        "augment_cache.build", "--data", crops, "--out", out / "cache", "--size", cache_size, "--force"
    )
    entry["cache"] = {"size": cache_size, "bytes": report["bytes"], "splits": report["splits"]}
    entry["cache"] |= {"seconds": round(seconds, 1), "sources_per_second": report["sources_per_second"]}
    for seed in seeds:
        run = out / f"run{seed}"
        options = ["--config", RECIPES / f"{recipe}.yaml", "--data.path", out / "cache", "--out", run]
        trained, seconds = job("training.train", *options, "--seed", seed, "--overwrite", "true", *extra)
        result, _ = job("training.evaluate", "--model", run, "--data", out / "cache")
        entry["runs"].append(
            {"seed": seed, "val_macro_f1": trained["val_macro_f1"], "train_seconds": round(seconds, 1)}
            | {key: result[key] for key in ("macro_f1", "accuracy", "samples", "macs", "parameters", "input_size")}
            | {"f1": {label: facts["f1"] for label, facts in result["per_class"].items()}}
        )
    return entry


def extra_text(extra):
    """The extra options without anybody's paths."""
    return " ".join(Path(word).name if "/" in word else word for word in extra)


def machine():
    """What the figures were measured on."""
    packages = ("torch", "timm", "opencv-python-headless", "simplejpeg", "numpy")
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def render(entries):
    """The Markdown table."""
    lines = [
        "| data | recipe | test crops | macro F1, mean ± std of seeds (each) | accuracy | MACs at px | training, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        runs = entry["runs"]
        scores = [run["macro_f1"] for run in runs]
        spread = f" ± {stdev(scores):.3f}" if len(scores) > 1 else ""
        each = ", ".join(f"{score:.3f}" for score in scores)
        accuracy = mean(run["accuracy"] for run in runs)
        seconds = [run["train_seconds"] for run in runs]
        lines.append(
            f"| {entry['data']} | {entry['recipe']} | {runs[0]['samples']:,} | **{mean(scores):.3f}**{spread} ({each}) "
            f"| {accuracy:.3f} | {runs[0]['macs']:,} at {runs[0]['input_size']} "
            f"| {min(seconds):.0f}-{max(seconds):.0f} |"
        )
    return "\n".join(lines)


def main():
    """Measure or render."""
    words, _, extra = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--recipe", default="real")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache_size", type=int, default=80)
    options = parser.parse_args(words.split())
    entries = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    if not options.render:
        entry = measure(
            options.data, options.name, options.recipe, options.out, options.seeds, options.cache_size, extra.split()
        )
        entries = [old for old in entries if (old["data"], old["recipe"]) != (options.name, options.recipe)] + [entry]
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(render(entries) + "\n")


if __name__ == "__main__":
    main()
