"""Evaluate a model: macro F1 and how sure it is, confusion, calibration, MACs, latency, competition scores, rules."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from pipelines.console.files import write_bytes, write_json
from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.output import say
from pipelines.console.words import names_in
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import EngineName
from pipelines.errors import CorruptSampleError, ProblemFoundError, UsageError
from pipelines.opening import OpenOptions
from pipelines.sources import Source
from pipelines.tensors import TensorFormat
from training.engine.config import Precision
from training.engine.data import Process, make_test_loader, open_data, process_of, trained_split
from training.engine.loop import gather_predictions
from training.measure.bootstrap import bootstrap_distribution, cliff_warning, percentile_interval
from training.measure.calibration import Calibration, calibration
from training.measure.calibration_plot import draw_calibration
from training.measure.competition_macs import count_competition_macs
from training.measure.confusion_plot import draw_confusion
from training.measure.evaluation_table import table
from training.measure.latency import measure_latency
from training.measure.macs import UncountableError, count_macs
from training.measure.predictions import Predictions, probabilities, write_predictions
from training.measure.rules import check_rules
from training.measure.score import ScorePreset, load_preset
from training.measure.scoring import score_entry
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.deploy import strip_training_heads
from training.model.model_file import find_model, load_model, rebuild
from training.runtimes.base import Runtime
from training.runtimes.onnx_runtime import OnnxRuntime
from training.runtimes.pump import pump
from training.runtimes.torch_runtime import TorchRuntime, torch_threads

EXAMPLE = """
  python -m training.evaluate --model runs/train --data out/cache
  python -m training.evaluate --model model.onnx --data out/cache --split val --json
  python -m training.evaluate --model runs/train --data out/cache --floor 0.5 || echo 'below 0.5'
"""

REFERENCE = "mobilenetv3_small_050"
"""What latency is compared with: everybody's smallest network, in eager torch, at the same size."""
WARMUP = 10


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Options of the evaluate job.

    Args:
        model: A run folder (its best model), a model file, or an ONNX file that `compress.export` wrote.
        data: A cache, a folder of crops, or a folder of class folders. Copies in a cache are left out.
        split: Which split.
        floor: Exit with status 1 if macro F1 is below this.
        batch_size: Images per step, over all processes together. An ONNX file takes one by one, as in prediction.
        engine: Renders the images. auto is DALI on a GPU, the cpu engine otherwise; an ONNX file has the cpu engine.
        out: Folder for evaluation_SPLIT.json, predictions_SPLIT.csv, confusion_SPLIT.png and calibration_SPLIT.png;
            that of the model when absent.
        val: Share for validation, where data holds class folders without splits; as in training when absent.
        test: Share for the test, likewise.
        split_seed: Which of the possible splits, likewise.
        precision: no is float32; as in training when absent.
        allow_empty_classes: Accept classes without images.
        presets: Competition scores to compute, names or YAML files with commas between them; see training.score.
        seconds: Of the whole program, for scores of F1 and time: `all` in the timing record of training.predict.
        resamples: Of the bootstrap, for the 95 % intervals of macro F1 and of the scores.
        latency_rounds: Rounds in which the forward pass of one image is timed; 0 leaves it out.
        threads: CPU threads of that pass.
    """

    model: Path
    data: Path
    split: str = "test"
    floor: float | None = None
    batch_size: int = 256
    engine: EngineName = "auto"
    out: Path | None = None
    val: float | None = None
    test: float | None = None
    split_seed: int | None = None
    precision: Precision | None = None
    allow_empty_classes: bool = False
    presets: str = "p4-2021,level3-2021"
    seconds: float | None = None
    resamples: int = 10_000
    latency_rounds: int = 50
    threads: int = 1

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "resamples": 100, "latency_rounds": 0, "threads": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"--{name} must be at least {bound}, got {getattr(self, name)}")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise UsageError(f"--seconds must be above 0, got {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is evaluated.

    Attributes:
        path: Of its file.
        card: Goes with it.
        network: Without what only training used. Of an ONNX file: its architecture, with random weights.
        onnx: The file in onnxruntime; None if it is a model file.
    """

    path: Path
    card: ModelCard
    network: nn.Module
    onnx: OnnxRuntime | None


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate; exactly once per sample, over all processes.

    Returns:
        The report, on the first process only. Keys: `model`, `data`, `split`; `macro_f1`, `accuracy`, `loss` (mean
        cross-entropy), `samples`; `macro_f1_low`, `macro_f1_high`, `macro_f1_std` (bootstrap, 95 %); `per_class` {name:
        `precision`, `recall`, `f1`, `support`, `predicted`}; `confusion` (rows true, columns predicted, in the order of
        `classes`); `classes`; `calibration` (`ece`, `nll`, `brier`, `bins`); `macs`, `competition_macs` (null where
        that convention does not see all) and `parameters`; `input_size`; `bytes` of the file; `latency` (null without;
        else of one image: `runtime`, `threads`, `median_ms`, `p95_ms`, `spread`, `ratio_median` to `reference`,
        `ratio_low`, `ratio_high`, `trusted`, `complaint`); `scores` of `preset`, `total`, `low`, `high`, ...; `notes`,
        sentences; `rules` of `rule`, `ok`, `detail`; `seconds` it took.

    Raises:
        ProblemFoundError: Macro F1 is below the floor, or the network answers with numbers that are not finite.
        UncountableError: The MACs of the network cannot be counted.
    """
    quiet_libraries()
    presets = [load_preset(name) for name in names_in(config.presets)]
    subject = _open(config.model)
    card, path = subject.card, subject.path
    accelerator = Accelerator(mixed_precision="no" if subject.onnx else _precision(config, card))
    process = process_of(accelerator)
    if subject.onnx is not None and process.world > 1:
        raise UsageError(f"{path} runs in one process; start without accelerate launch")
    source = _source(config, subject, say_so=accelerator.is_main_process)
    start = time.monotonic()
    cost = _cost(subject)
    found = (
        _by_onnx(subject.onnx, source, card, process)
        if subject.onnx
        else _by_torch(config, subject, source, accelerator, process)
    )
    if found is None:
        return {}
    scores, quality = found.scores, calibration(found.labels, found.shares)
    distribution = bootstrap_distribution(scores.confusion, resamples=config.resamples)
    low, high = percentile_interval(distribution)
    learned = _learned(config, card)
    priced = _scores(config, presets, scores.macro_f1, distribution, cost["competition_macs"])
    report = {
        "model": str(path),
        "data": str(config.data),
        "split": config.split,
        "classes": list(card.classes),
        **scores.as_dict(card.classes),
        "macro_f1_low": low,
        "macro_f1_high": high,
        "macro_f1_std": float(distribution.std()),
        "loss": quality.nll,
        "calibration": asdict(quality) | {"bins": [asdict(entry) for entry in quality.bins]},
        **cost,
        "input_size": card.size,
        "bytes": path.stat().st_size,
        "latency": _latency(config, subject),
        "scores": priced["scores"],
        "notes": [*([learned] if learned else []), *priced["notes"]],
        "rules": [asdict(finding) for finding in check_rules(subject.network, card)],
        "seconds": round(time.monotonic() - start, 3),
    }
    _write(config.out or path.parent, config.split, report, found, quality)
    if config.floor is not None and scores.macro_f1 < config.floor:
        message = f"macro F1 {scores.macro_f1:.4f} on {config.split} is below the floor of {config.floor}"
        raise ProblemFoundError(message, report)
    return report


def _open(model: Path) -> _Subject:
    if model.suffix == ".onnx":
        runtime = OnnxRuntime(model)
        network = rebuild(runtime.card, model).eval()
        return _Subject(path=model, card=runtime.card, network=strip_training_heads(network), onnx=runtime)
    path = find_model(model)
    network, card = load_model(path)
    return _Subject(path=path, card=card, network=strip_training_heads(network), onnx=None)


def _source(config: EvaluateConfig, subject: _Subject, *, say_so: bool) -> Source:
    card, path = subject.card, subject.path
    options = OpenOptions(
        split=trained_split(card, config.val, config.test, config.split_seed),
        copies=0,
        allow_empty_classes=config.allow_empty_classes,
    )
    (source,) = open_data(config.data, (config.split,), options)
    if source.classes != card.classes:
        raise UsageError(
            f"{config.data} has the classes {', '.join(source.classes)}, but {path} was trained on "
            f"{', '.join(card.classes)}; give the data that belongs to the model"
        )
    if say_so and (warning := _learned(config, card)):
        say(f"training.evaluate: {path}: {warning}")
    return source


def _learned(config: EvaluateConfig, card: ModelCard) -> str:
    """What to say of a split that the model has learned from; empty if it has not."""
    if config.split == "train" or not card.knows(config.split):
        return ""
    return f"it has learned from the {config.split} split, so this is no test of it"


def _by_torch(
    config: EvaluateConfig, subject: _Subject, source: Source, accelerator: Accelerator, process: Process
) -> Predictions | None:
    card = subject.card
    spec = RenderSpec(card.size, card.fit)
    loader = make_test_loader(source, process, spec=spec, engine=config.engine, batch_size=config.batch_size)
    wanted = TensorFormat("float32", card.mean, card.std)
    try:
        with torch_threads(process.threads(0)):
            network = subject.network.to(accelerator.device)
            return gather_predictions(accelerator, network, loader, card.classes, wanted)
    finally:
        loader.engine.close()


def _by_onnx(runtime: OnnxRuntime, source: Source, card: ModelCard, process: Process) -> Predictions:
    threads = process.threads(0)
    images = source.fetch(np.arange(len(source.labels)))
    pumped = pump(runtime, images, RenderSpec(card.size, card.fit), threads=threads, networks=threads)
    kept = pumped.kept
    for row, reason in pumped.errors.items():
        say(f"training.evaluate: {source.describe(row)}: {reason}; left out")
    if not len(kept):
        raise CorruptSampleError(f"no image can be read; the first: {pumped.errors[0]}")
    return Predictions(
        classes=card.classes,
        ids=source.ids[kept],
        sources=[source.describe(row) for row in kept.tolist()],
        labels=source.labels[kept],
        shares=probabilities(pumped.logits[kept]),
    )


def _cost(subject: _Subject) -> dict[str, Any]:
    """MACs by both conventions, and parameters. An int8 file costs what its float twin does."""
    exact = count_macs(subject.network, subject.card.size)
    try:
        competition: int | None = count_competition_macs(subject.network, subject.card.size).macs
    except UncountableError:
        competition = None  # the rules say why
    return {"macs": exact.macs, "competition_macs": competition, "parameters": exact.parameters}


def _latency(config: EvaluateConfig, subject: _Subject) -> dict[str, Any] | None:
    if not config.latency_rounds:
        return None
    card, threads = subject.card, config.threads
    reference = TorchRuntime(create_model(REFERENCE, len(card.classes)), card, threads=threads)
    mine: Runtime = TorchRuntime(subject.network.cpu(), card, threads=threads)
    if subject.onnx is not None:
        mine = OnnxRuntime(subject.path, threads=threads)
    pair = [reference, mine]
    found = measure_latency(pair, batch_size=1, warmup=WARMUP, rounds=config.latency_rounds, seed=0)[1]
    figures = found.figures()
    return {"runtime": figures.pop("name"), "reference": f"{REFERENCE}, {reference.name}", **figures}


def _scores(
    config: EvaluateConfig,
    presets: list[ScorePreset],
    f1: float,
    distribution: NDArray[np.float64],
    macs: int | None,
) -> dict[str, Any]:
    """The scores that can be computed, and what is to be said about them."""
    scores, notes = [], []
    for preset in presets:
        needed = macs if preset.kind == "f1_macs" else config.seconds
        if needed is None:
            cure = "MACs that its convention sees" if preset.kind == "f1_macs" else "--seconds of the whole program"
            notes.append(f"{preset.name} is left out: it needs {cure}")
            continue
        scores.append(score_entry(preset, f1, distribution, macs=macs, seconds=config.seconds))
        warning = cliff_warning(preset, distribution)
        notes += [warning] if warning else []
    return {"scores": scores, "notes": notes}


def _precision(config: EvaluateConfig, card: ModelCard) -> Precision:
    """As asked, else as trained; float16 arithmetic exists on GPUs only."""
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("--precision fp16 needs a GPU; use bf16 or no")
    trained: Precision = card.provenance.get("precision", "no")
    if config.precision is not None:
        return config.precision
    return "no" if trained == "fp16" and not torch.cuda.is_available() else trained


def _write(out: Path, split: str, report: dict[str, Any], found: Predictions, quality: Calibration) -> None:
    write_predictions(out / f"predictions_{split}.csv", found)
    scores, classes = found.scores, report["classes"]
    title = f"{split}: macro F1 {scores.macro_f1:.3f}, {scores.samples:,} samples"
    write_bytes(out / f"confusion_{split}.png", draw_confusion(scores.confusion, classes, title))
    write_bytes(out / f"calibration_{split}.png", draw_calibration(quality, scores, classes, title))
    write_json(out / f"evaluation_{split}.json", report)  # last: where it is, the rest is


def main() -> None:
    """Run the job."""
    run_job(EvaluateConfig, evaluate, name="training.evaluate", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
