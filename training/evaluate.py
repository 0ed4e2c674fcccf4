"""Evaluate a model: macro F1, F1 per class, confusion matrix, MACs, parameters."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipelines.console.files import write_bytes, write_json
from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.output import human_bytes, render_table
from pipelines.datasets import SplitOptions
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import EngineName
from pipelines.errors import ProblemFoundError, UsageError
from training.engine.data import make_test_loader, process_of
from training.engine.loop import evaluate as evaluate_model
from training.engine.metrics import Scores
from training.measure.confusion_plot import draw_confusion
from training.measure.macs import count_macs
from training.model.model_file import find_model, load_model

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
        val: Share for validation, where data holds class folders without splits; as in training.
        test: Share for the test, likewise.
        split_seed: Which of the possible splits, likewise.
    """

    model: Path
    data: Path
    split: str = "test"
    floor: float | None = None
    batch_size: int = 256
    engine: EngineName = "auto"
    out: Path | None = None
    val: float = 0.15
    test: float = 0.15
    split_seed: int = 0


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
    accelerator = Accelerator()
    process = process_of(accelerator)
    loader = make_test_loader(
        config.data,
        config.split,
        SplitOptions(config.val, config.test, config.split_seed),
        process,
        spec=RenderSpec(card.size, card.fit),
        engine=config.engine,
        batch_size=config.batch_size,
    )
    if loader.source.classes != card.classes:
        raise UsageError(
            f"{config.data} has the classes {', '.join(loader.source.classes)}, but {path} was trained on "
            f"{', '.join(card.classes)}; give the data that belongs to the model"
        )
    start = time.monotonic()
    try:
        scores, loss = evaluate_model(
            accelerator, model.to(accelerator.device), loader, len(card.classes), mean=card.mean, std=card.std
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
        raise ProblemFoundError(
            f"macro F1 {scores.macro_f1:.4f} on {config.split} is below the floor of {config.floor}"
        )
    return report


def _write(out: Path, split: str, report: dict[str, Any], scores: Scores) -> None:
    write_json(out / f"evaluation_{split}.json", report)
    title = f"{split}: macro F1 {scores.macro_f1:.3f}, {scores.samples:,} samples"
    write_bytes(out / f"confusion_{split}.png", draw_confusion(scores.confusion, report["classes"], title))


def table(report: dict[str, Any]) -> str:
    """The report for people: scores per class with the confusion matrix beside them, then the cost."""
    classes = report["classes"]
    headers = ["class", ">precision", ">recall", ">F1", ">samples", *(f">→ {name}" for name in classes)]
    rows: list[list[object]] = []
    for name, counts in zip(classes, report["confusion"], strict=True):
        entry = report["per_class"][name]
        rows.append([name, entry["precision"], entry["recall"], entry["f1"], entry["support"], *counts])
    return (
        f"{render_table(headers, rows, title=report['split'] + ' split; → counts predictions')}\n"
        f"macro F1 {report['macro_f1']:.4f} · accuracy {report['accuracy']:.4f} · {report['samples']:,} samples · "
        f"{report['macs']:,} MACs at {report['input_size']} px · {report['parameters']:,} parameters · "
        f"{human_bytes(report['bytes'])}"
    )


def main() -> None:
    """Run the job."""
    run_job(EvaluateConfig, evaluate, name="training.evaluate", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
