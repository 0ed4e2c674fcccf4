"""Evaluate a model: macro F1, F1 per class, confusion matrix, MACs, parameters."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pipelines.console.files import write_bytes, write_json
from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.output import human_bytes, render_table, say
from pipelines.datasets import SplitOptions
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import EngineName
from pipelines.errors import ProblemFoundError, UsageError
from pipelines.opening import OpenOptions
from pipelines.tensors import TensorFormat
from training.engine.config import Precision
from training.engine.data import make_test_loader, open_data, process_of
from training.engine.loop import evaluate as evaluate_model
from training.engine.metrics import Scores
from training.measure.confusion_plot import draw_confusion
from training.measure.macs import count_macs
from training.model.model_file import ModelCard, find_model, load_model

EXAMPLE = """
  python -m training.evaluate --model runs/train --data out/cache
  python -m training.evaluate --model runs/train/best.safetensors --data out/cache --split val --json
  python -m training.evaluate --model runs/train --data out/cache --floor 0.5 || echo 'below 0.5'
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Options of the evaluate job.

    Args:
        model: A run folder (its best model) or a model file.
        data: A cache, a folder of crops, or a folder of class folders. Copies in a cache are left out.
        split: Which split.
        floor: Exit with status 1 if macro F1 is below this.
        batch_size: Images per step, over all processes together.
        engine: Renders the images. auto is DALI on a GPU, the cpu engine otherwise.
        out: Folder for evaluation_SPLIT.json and confusion_SPLIT.png; that of the model when absent.
        val: Share for validation, where data holds class folders without splits; as in training when absent.
        test: Share for the test, likewise.
        split_seed: Which of the possible splits, likewise.
        precision: no is float32; as in training when absent.
        allow_empty_classes: Accept classes without images.
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

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch_size must be at least 1, got {self.batch_size}")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate; exactly once per sample, over all processes.

    Returns:
        The report, on the first process only. Keys: `model`, `data`, `split`; `macro_f1`, `accuracy`, `loss`,
        `samples`; `per_class` {name: `precision`, `recall`, `f1`, `support`}; `confusion` (rows true, columns
        predicted, in the order of `classes`); `classes`; `macs` and `parameters`; `input_size`; `bytes` of the model
        file; `seconds`.

    Raises:
        ProblemFoundError: Macro F1 is below the floor.
    """
    quiet_libraries()
    path = find_model(config.model)
    model, card = load_model(path)
    cost = count_macs(model, card.size)
    accelerator = Accelerator(mixed_precision=_precision(config, card))
    process = process_of(accelerator)
    torch.set_num_threads(process.threads(0))
    options = OpenOptions(split=_split_options(config, card), copies=0, allow_empty_classes=config.allow_empty_classes)
    (source,) = open_data(config.data, (config.split,), options)
    if source.classes != card.classes:
        raise UsageError(
            f"{config.data} has the classes {', '.join(source.classes)}, but {path} was trained on "
            f"{', '.join(card.classes)}; give the data that belongs to the model"
        )
    learned = str(card.provenance.get("learned_from", "train"))
    if accelerator.is_main_process and config.split != "train" and (learned == "all" or config.split in learned):
        say(f"training.evaluate: {path} has learned from the {config.split} split: this is no test of it")
    spec = RenderSpec(card.size, card.fit)
    loader = make_test_loader(source, process, spec=spec, engine=config.engine, batch_size=config.batch_size)
    start = time.monotonic()
    try:
        scores, loss = evaluate_model(
            accelerator,
            model.to(accelerator.device),
            loader,
            len(card.classes),
            TensorFormat("float32", card.mean, card.std),
        )
    finally:
        loader.engine.close()
    if not accelerator.is_main_process:
        return {}
    report = {
        "model": str(path),
        "data": str(config.data),
        "split": config.split,
        "classes": list(card.classes),
        **scores.as_dict(card.classes),
        "loss": loss,
        "macs": cost.macs,
        "parameters": cost.parameters,
        "input_size": card.size,
        "bytes": path.stat().st_size,
        "seconds": round(time.monotonic() - start, 3),
    }
    _write(config.out or path.parent, config.split, report, scores)
    if config.floor is not None and scores.macro_f1 < config.floor:
        message = f"macro F1 {scores.macro_f1:.4f} on {config.split} is below the floor of {config.floor}"
        raise ProblemFoundError(message, report)
    return report


def _precision(config: EvaluateConfig, card: ModelCard) -> Precision:
    """As asked, else as trained; float16 arithmetic exists on GPUs only."""
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("--precision fp16 needs a GPU; use bf16 or no")
    trained: Precision = card.provenance.get("precision", "no")
    if config.precision is not None:
        return config.precision
    return "no" if trained == "fp16" and not torch.cuda.is_available() else trained


def _split_options(config: EvaluateConfig, card: ModelCard) -> SplitOptions:
    """How a folder of class folders is cut: as asked, else as in training, or test images would be training images."""
    trained = card.provenance.get("split", {})
    standard = SplitOptions()
    return SplitOptions(
        val=trained.get("val", standard.val) if config.val is None else config.val,
        test=trained.get("test", standard.test) if config.test is None else config.test,
        seed=trained.get("split_seed", standard.seed) if config.split_seed is None else config.split_seed,
    )


def _write(out: Path, split: str, report: dict[str, Any], scores: Scores) -> None:
    write_json(out / f"evaluation_{split}.json", report)
    title = f"{split}: macro F1 {scores.macro_f1:.3f}, {scores.samples:,} samples"
    write_bytes(out / f"confusion_{split}.png", draw_confusion(scores.confusion, report["classes"], title))


def table(report: dict[str, Any]) -> str:
    """The report for people: scores per class, the confusion matrix, then the whole and its cost."""
    classes = report["classes"]
    entries = [report["per_class"][name] for name in classes]
    scores = [
        [name, entry["precision"], entry["recall"], entry["f1"], entry["support"]]
        for name, entry in zip(classes, entries, strict=True)
    ]
    counts = [[name, *row] for name, row in zip(classes, report["confusion"], strict=True)]
    return (
        render_table(["class", ">precision", ">recall", ">F1", ">samples"], scores, title=f"{report['split']} split")
        + "\n\n"
        + render_table(["true \\ predicted", *(f">{name}" for name in classes)], counts)
        + "\n\n"
        f"macro F1 {report['macro_f1']:.4f} · accuracy {report['accuracy']:.4f} · {report['samples']:,} samples · "
        f"{report['macs']:,} MACs at {report['input_size']} px · {report['parameters']:,} parameters · "
        f"{human_bytes(report['bytes'])}"
    )


def main() -> None:
    """Run the job."""
    run_job(EvaluateConfig, evaluate, name="training.evaluate", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
