"""Predict the class of every image in a folder or cache, into CSV, JSON or Arrow, with a record of the time it took."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.console.cores import usable_cores
from pipelines.console.files import replacing, write_csv, write_json, write_text
from pipelines.console.job import run_job
from pipelines.console.output import as_text, human_seconds, say
from pipelines.console.progress import ProgressMeter
from pipelines.console.since import seconds_since_start
from pipelines.engines.base import Image, RenderSpec
from pipelines.errors import UsageError
from pipelines.fit import Fit
from pipelines.sources import Lazy, list_images, read_file
from training.measure.predictions import probabilities
from training.runtimes.base import Runtime
from training.runtimes.onnx_runtime import OnnxRuntime
from training.runtimes.pump import Pumped, pump

# Neither torch nor DALI here: with an ONNX file this program is done before they would be loaded.

EXAMPLE = """
  python -m training.predict --model model.onnx --data crops/test --out predictions.csv
  python -m training.predict --model runs/train --data out/cache --split test --out predictions.arrow
  python -m training.predict --model model.onnx --data crops/test --out predictions.json --json
"""

SUFFIXES = (".csv", ".json", ".arrow")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Options of the predict job.

    Args:
        model: An ONNX file, a model file, or a run folder (its best model). An ONNX file is many times as fast to start
            and to run as the others, which need torch; `python -m compress.export` makes one.
        data: A folder of images at any depth, one image, or a cache.
        out: Where predictions go: .csv, .json or .arrow. Damaged images are listed in NAME.rejected.csv beside it, the
            time it took in NAME.timing.json.
        split: Which split of a cache. Augmented copies are left out.
        batch_size: Images that go through the network together; 1 is what the competition asked for.
        threads: CPU threads; 0 takes one per core that this process may use.
        device: Where a model file runs; an ONNX file runs on cuda only with onnxruntime-gpu.
    """

    model: Path
    data: Path
    out: Path = Path("predictions.csv")
    split: str = "test"
    batch_size: int = 1
    threads: int = 0
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        if self.out.suffix not in SUFFIXES:
            raise UsageError(f"--out {self.out} must end in {', '.join(SUFFIXES)}")
        if not 1 <= self.batch_size <= 65_536:
            raise UsageError(f"--batch_size must be 1 to 65536, got {self.batch_size}")
        if not 0 <= self.threads <= 1024:
            raise UsageError(f"--threads must be 0 (all cores) to 1024, got {self.threads}")


@dataclass(frozen=True)
class Inputs:
    """What is predicted.

    Attributes:
        names: Of each image, relative to the folder.
        images: Read when asked for.
    """

    names: list[str]
    images: Sequence[Image]


def predict(config: PredictConfig) -> dict[str, Any]:
    """Predict.

    Returns:
        The report. Keys: `model`, `runtime`, `data`, `out`, `images`, `predicted`, `rejected` (how many), `classes`,
        `counts` {class: how often it was predicted}, `batch_size`, `threads`, `timing`: seconds of the whole program up
        to the written predictions (`all`), of the network alone, image by image (`inference_only`), while at least one
        thread ran the network (`inferring`), before the first image (`start_up`), between first and last without a
        running network (`exposed_loading`), after the last (`writing`), and `per_image_ms` (`mean`, `median`, `p95`).
    """
    inputs = find_inputs(config.data, config.split)
    threads = config.threads or usable_cores()
    runtime, fit, networks, surroundings = _open_runtime(config, threads)
    if clash := {"path", "class"} & set(runtime.classes):
        raise UsageError(
            f"a class of {config.model} is called {clash.pop()!r}, as a column is; rename it and train again"
        )
    start_up = seconds_since_start()
    with surroundings, ProgressMeter("predict", len(inputs.names), "images") as meter:
        pumped = pump(
            runtime,
            inputs.images,
            RenderSpec(runtime.size, fit),
            batch_size=config.batch_size,
            threads=threads,
            networks=networks,
            done=meter.advance,
        )
    pumped_at = seconds_since_start()
    if len(pumped.errors) == len(inputs.names):
        raise UsageError(f"none of the {len(inputs.names)} images of {config.data} can be read: {pumped.errors[0]}")
    _write(config.out, inputs.names, runtime.classes, pumped)
    timing = _timing(pumped, start_up, pumped_at)
    report = {
        "model": as_text(str(config.model)),
        "runtime": runtime.name,
        "data": as_text(str(config.data)),
        "out": as_text(str(config.out)),
        "images": len(inputs.names),
        "predicted": len(inputs.names) - len(pumped.errors),
        "rejected": len(pumped.errors),
        "classes": list(runtime.classes),
        "counts": _counts(runtime.classes, pumped),
        "batch_size": config.batch_size,
        "threads": threads,
        "timing": timing,
    }
    _write_timing(config.out, inputs.names, pumped, report)
    if pumped.errors:
        say(f"training.predict: {len(pumped.errors)} damaged images are listed in {beside(config.out, 'rejected.csv')}")
    return report


def find_inputs(data: Path, split: str) -> Inputs:
    """Open what is to be predicted.

    Args:
        data: A cache, a folder of images, or an image.
        split: Of the cache.

    Raises:
        UsageError: There is nothing, or a link that leaves the folder.
    """
    if (data / "manifest.json").is_file():  # the name is spelled out here: to look it up would load what caches need
        from augment_cache.format.source import CacheSource

        source = CacheSource(data, split, copies=0)
        return Inputs(source.names(), source.fetch(np.arange(len(source.labels))))
    if data.is_file():
        return Inputs([as_text(data.name)], Lazy(lambda _: read_file(data), np.arange(1)))
    names = list_images(data)
    return Inputs(list(map(as_text, names)), Lazy(lambda row: read_file(f"{data}/{names[row]}"), np.arange(len(names))))


def _open_runtime(config: PredictConfig, threads: int) -> tuple[Runtime, Fit, int, AbstractContextManager[None]]:
    """The network, how its images become square, how many threads may run it at once, and in what surroundings."""
    if config.model.suffix == ".onnx":
        runtime = OnnxRuntime(config.model, device=config.device)
        return runtime, runtime.card.fit, threads, nullcontext()
    from training.model.model_file import find_model, load_model
    from training.runtimes.torch_runtime import TorchRuntime, torch_threads

    model, card = load_model(find_model(config.model))
    # One thread each: a team of threads for every thread that asks would be the square of them.
    networks = threads if config.device == "cpu" else 1
    return TorchRuntime(model, card, device=config.device), card.fit, networks, torch_threads(1)


def beside(out: Path, ending: str) -> Path:
    """`predictions.csv` → `predictions.ENDING`."""
    return out.with_name(f"{out.stem}.{ending}")


def _write(out: Path, names: list[str], classes: tuple[str, ...], pumped: Pumped) -> None:
    """Predictions and damaged images; a list of damaged ones from an earlier run goes."""
    kept = pumped.kept
    shares = probabilities(pumped.logits[kept])
    winners = [classes[index] for index in shares.argmax(axis=1).tolist()]
    writers = {".csv": _write_csv, ".json": _write_json, ".arrow": _write_arrow}
    writers[out.suffix](out, [names[row] for row in kept.tolist()], winners, classes, shares)
    rejected = beside(out, "rejected.csv")
    if pumped.errors:
        write_csv(
            rejected, ("path", "reason"), [(names[row], as_text(reason)) for row, reason in pumped.errors.items()]
        )
    else:
        rejected.unlink(missing_ok=True)


def _write_csv(
    out: Path, names: list[str], winners: list[str], classes: tuple[str, ...], shares: NDArray[np.float64]
) -> None:
    rows = zip(names, winners, shares.tolist(), strict=True)
    lines = ([name, winner, *[f"{share:.6f}" for share in row]] for name, winner, row in rows)
    write_csv(out, ("path", "class", *classes), lines)


def _write_json(
    out: Path, names: list[str], winners: list[str], classes: tuple[str, ...], shares: NDArray[np.float64]
) -> None:
    rows = zip(names, winners, shares.round(6).tolist(), strict=True)
    lines = [
        json.dumps(
            {"path": name, "class": winner, "probabilities": dict(zip(classes, row, strict=True))}, ensure_ascii=False
        )
        for name, winner, row in rows
    ]
    write_text(out, "[\n" + ",\n".join(lines) + "\n]\n")


def _write_arrow(
    out: Path, names: list[str], winners: list[str], classes: tuple[str, ...], shares: NDArray[np.float64]
) -> None:
    import pyarrow as pa

    columns = [pa.array(names, pa.string()), pa.array(winners, pa.string()).dictionary_encode()]
    columns += [pa.array(shares[:, index], pa.float64()) for index in range(len(classes))]
    table = pa.Table.from_arrays(columns, names=["path", "class", *classes])
    with replacing(out) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _timing(pumped: Pumped, start_up: float, pumped_at: float) -> dict[str, Any]:
    now = seconds_since_start()
    each = pumped.seconds[pumped.kept] * 1000
    median, p95 = np.percentile(each, (50, 95))
    return {
        "all": round(now, 4),
        "inference_only": round(float(pumped.seconds.sum()), 4),
        "inferring": round(pumped.inferring, 4),
        "start_up": round(start_up, 4),
        "exposed_loading": round(pumped_at - start_up - pumped.inferring, 4),
        "writing": round(now - pumped_at, 4),
        "per_image_ms": {
            "mean": round(float(each.mean()), 4),
            "median": round(float(median), 4),
            "p95": round(float(p95), 4),
        },
    }


def _counts(classes: tuple[str, ...], pumped: Pumped) -> dict[str, int]:
    counts = Counter(pumped.logits[pumped.kept].argmax(axis=1).tolist())
    return {name: counts[index] for index, name in enumerate(classes)}


def _write_timing(out: Path, names: list[str], pumped: Pumped, report: dict[str, Any]) -> None:
    """The record of the competition's own program: `time.runtime.all`, `time.runtime.inference_only`, every image."""
    inference = {name: round(seconds, 7) for name, seconds in zip(names, pumped.seconds.tolist(), strict=True)}
    runtime = {key: report["timing"][key] for key in ("all", "inference_only")}
    record = {"time": {"runtime": runtime, "inference": inference}, "timing": report["timing"]}
    keys = ("model", "runtime", "data", "batch_size", "threads")
    write_json(beside(out, "timing.json"), {key: report[key] for key in keys} | record)


def table(report: dict[str, Any]) -> str:
    """The report for people: how often each class was predicted, and where the time went."""
    timing, most = report["timing"], max(report["counts"].values()) or 1
    width = max(len(name) for name in report["classes"])
    bars = [
        f"  {name:<{width}}  {count:>7,}  {'█' * round(30 * count / most)}".rstrip()
        for name, count in report["counts"].items()
    ]
    lost = f", {report['rejected']:,} damaged" if report["rejected"] else ""
    return (
        f"{report['predicted']:,} images predicted{lost} → {report['out']}\n"
        + "\n".join(bars)
        + f"\n{human_seconds(timing['all'])} in all · start-up {timing['start_up']:.2f} s · network "
        f"{timing['inferring']:.2f} s (median {timing['per_image_ms']['median']:.3f} ms an image) · loading beside it "
        f"{timing['exposed_loading']:.2f} s · {report['runtime']}, {report['threads']} threads"
    )


def main() -> None:
    """Run the job."""
    run_job(PredictConfig, predict, name="training.predict", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
