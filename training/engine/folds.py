"""Cross-validation: one run a fold, and one report over all samples, each predicted by the run that did not see it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.console.files import write_bytes, write_json
from pipelines.console.output import say
from pipelines.errors import UsageError
from training.engine.config import TrainConfig
from training.engine.folder import BEST_NAME, changes
from training.engine.loop import gather_predictions
from training.engine.metrics import Scores
from training.engine.run import Run
from training.engine.setup import Machine
from training.measure.confusion_plot import draw_confusion
from training.measure.predictions import read_predictions, write_predictions
from training.model.model_file import load_model

PREDICTIONS_NAME = "predictions_out_of_fold.csv"
REPORT_NAME, PLOT_NAME = "out_of_fold.json", "confusion_out_of_fold.png"


def own_folder(config: TrainConfig) -> TrainConfig:
    """Where one fold alone is asked for: in a folder of its own below that of all folds, unless it is given."""
    name = f"fold-{config.data.fold}"
    if config.data.fold is None or config.out.name == name:
        return config
    return replace(config, out=config.out / name)


def cross_validate(config: TrainConfig, train: Callable[[TrainConfig], dict[str, Any]]) -> dict[str, Any]:
    """Train all folds in turn; those that are finished are not trained again.

    Args:
        config: With `data.folds`, without `data.fold`.
        train: Trains one fold, and writes its predictions; after the last one the report, too.

    Returns:
        The report over all folds, on the first process; elsewhere it is empty.
    """
    for number in range(config.data.folds):
        fold = replace(config, data=replace(config.data, fold=number), out=config.out / f"fold-{number}")
        main = bool(train(fold))
        if main:
            say(f"train: fold {number + 1} of {config.data.folds} is done")
    if not main:
        return {}
    report: dict[str, Any] = json.loads((config.out / REPORT_NAME).read_text(encoding="utf-8"))
    return report


def predict_fold(config: TrainConfig, machine: Machine, run: Run) -> None:
    """Write what the best model says to the samples of its fold; with the last fold, the report over all.

    Raises:
        UsageError: There is nothing to validate on.
    """
    loader = run.val_loader
    if loader is None:
        raise UsageError("--data.folds needs a validation split")
    model, card = load_model(config.out / BEST_NAME)
    accelerator = machine.accelerator
    found = gather_predictions(accelerator, model.to(accelerator.device), loader, card.classes, run.trainer.format)
    if found is None:
        return
    write_predictions(config.out / PREDICTIONS_NAME, found)
    everything, folds = config.out.parent, config.data.folds
    folders = _folders(everything, folds)
    if not all((path / PREDICTIONS_NAME).is_file() for path in folders):
        return
    if _same_options(config, folders):
        out_of_fold(everything, folds)
    else:  # some lie there from before, and will be trained again
        (everything / REPORT_NAME).unlink(missing_ok=True)


def _same_options(config: TrainConfig, folders: list[Path]) -> bool:
    """Whether all folds were trained alike."""
    expected = [
        replace(config, out=folder, data=replace(config.data, fold=number)) for number, folder in enumerate(folders)
    ]
    return not any(changes(fold) for fold in expected)


def _folders(out: Path, folds: int) -> list[Path]:
    return [out / f"fold-{number}" for number in range(folds)]


def out_of_fold(out: Path, folds: int) -> dict[str, Any]:
    """Put the predictions of all folds together, and write `out_of_fold.json` and a picture of the confusion.

    Returns:
        Keys: `run`, `folds`, `classes`, `macro_f1`, `accuracy`, `samples`, `per_class`, `confusion`; `fold_macro_f1`,
        and its `mean` and `std`.

    Raises:
        UsageError: The folds are not parts of one data set.
    """
    read = [read_predictions(path / PREDICTIONS_NAME) for path in _folders(out, folds)]
    classes = read[0].classes
    ids = np.concatenate([found.ids for found in read])
    if any(found.classes != classes for found in read) or len(np.unique(ids)) < len(ids):
        raise UsageError(f"the folds in {out} are of several data sets; train them all again, with --overwrite true")
    confusions = [found.scores.confusion for found in read]
    scores = Scores(np.sum(confusions, axis=0))
    each = [Scores(confusion).macro_f1 for confusion in confusions]
    report = {
        "run": str(out),
        "folds": folds,
        "classes": list(classes),
        **scores.as_dict(classes),
        "fold_macro_f1": each,
        "mean": float(np.mean(each)),
        "std": float(np.std(each, ddof=1)) if folds > 1 else math.nan,
    }
    write_json(out / REPORT_NAME, report)
    title = f"out of fold: macro F1 {scores.macro_f1:.3f}, {scores.samples:,} samples"
    write_bytes(out / PLOT_NAME, draw_confusion(scores.confusion, classes, title))
    return report
