"""Compare evaluated models: one table, and a paired bootstrap of each against the first on the same samples."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.console.job import run_job
from pipelines.console.output import human_bytes, render_table
from pipelines.console.words import names_in
from pipelines.errors import UsageError
from training.measure.bootstrap import Paired, paired_bootstrap
from training.measure.predictions import Predictions, read_predictions

EXAMPLE = """
  python -m training.compare --runs runs/quick,runs/competition
  python -m training.compare --runs 'runs/*' --split val --reference runs/seed --json
"""

NUMBERS = ("macro_f1", "macro_f1_low", "macro_f1_high", "accuracy", "samples", "macs", "competition_macs", "parameters")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Options of the compare job.

    Args:
        runs: Folders that training.evaluate has written to, with commas between them; * and ? stand for any.
        split: Which evaluation of each.
        reference: The folder that the others are compared with; the first when absent.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """

    runs: str
    split: str = "test"
    reference: Path | None = None
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise UsageError(f"--resamples must be at least 100, got {self.resamples}")
        if self.seed < 0:
            raise UsageError(f"--seed must be at least 0, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """An evaluated model.

    Attributes:
        folder: Where its evaluation lies.
        report: What evaluate said.
        predictions: What it predicted.
    """

    folder: Path
    report: dict[str, Any]
    predictions: Predictions


def compare(config: CompareConfig) -> dict[str, Any]:
    """Compare.

    Returns:
        The report. Keys: `split`; `reference` (a folder); `runs`, best macro F1 first, of `run`, `model`, `macro_f1`,
        `macro_f1_low`, `macro_f1_high` (95 %), `accuracy`, `samples`, `macs`, `competition_macs`, `parameters`,
        `bytes`, `latency_ratio` (to evaluate's reference; null if it was too noisy), `scores` {preset: total}, and
        `paired` (null for the reference): `difference` in macro F1 to the reference, `low`, `high` (95 %), `p_value`
        (two-sided, paired bootstrap over samples).

    Raises:
        UsageError: A folder holds no evaluation, or they are not about the same samples.
    """
    folders = _folders(config)
    entries = [_read(folder, config.split) for folder in folders]
    reference = entries[0]
    for entry in entries[1:]:
        _check_same(reference, entry)
    rows = [_row(entry, None if entry is reference else _paired(reference, entry, config)) for entry in entries]
    rows.sort(key=lambda row: (-row["macro_f1"], row["macs"]))
    return {"split": config.split, "reference": str(reference.folder), "runs": rows}


def _folders(config: CompareConfig) -> list[Path]:
    """The folders, the reference first, each once."""
    found: list[Path] = []
    for word in names_in(config.runs):
        if any(sign in word for sign in "*?["):
            matches = [path for path in _glob(word) if (path / f"evaluation_{config.split}.json").is_file()]
            if not matches:
                raise UsageError(f"no folder that matches {word} holds evaluation_{config.split}.json")
            found += matches
        else:
            found.append(Path(word))
    if config.reference is not None:
        found.insert(0, config.reference)
    by_place: dict[Path, Path] = {}
    for path in found:
        by_place.setdefault(path.resolve(), path)
    unique = list(by_place.values())
    if len(unique) < 2:
        raise UsageError("--runs names fewer than two folders; give at least two to compare")
    return unique


def _glob(pattern: str) -> list[Path]:
    path = Path(pattern)
    anchor = Path(path.anchor)
    try:
        return sorted(anchor.glob(str(path.relative_to(anchor)) if path.is_absolute() else pattern))
    except ValueError as error:
        raise UsageError(f"--runs {pattern} is no pattern ({error}); use * for any name") from error


def _read(folder: Path, split: str) -> _Entry:
    path = folder / f"evaluation_{split}.json"
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no evaluation_{split}.json; run python -m training.evaluate --model {folder} "
            f"--split {split} first"
        )
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in (*NUMBERS, "confusion", "scores", "bytes") if key not in report]
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is no report of training.evaluate ({error}); evaluate again") from error
    if missing:
        raise UsageError(f"{path} lacks {missing[0]}: it was written by another version; evaluate again")
    predictions = read_predictions(folder / f"predictions_{split}.csv")
    if predictions.scores.confusion.tolist() != report["confusion"]:
        raise UsageError(f"{path} and predictions_{split}.csv beside it are of different evaluations; evaluate again")
    return _Entry(folder=folder, report=report, predictions=predictions)


def _check_same(first: _Entry, other: _Entry) -> None:
    """Both are about the same samples with the same labels."""
    one, two = first.predictions, other.predictions
    if one.classes != two.classes:
        raise UsageError(f"{first.folder} and {other.folder} have other classes; compare models of the same task")
    if not np.array_equal(one.ids, two.ids):
        common = len(np.intersect1d(one.ids, two.ids))
        raise UsageError(
            f"{first.folder} was evaluated on {len(one.ids):,} samples and {other.folder} on {len(two.ids):,}, "
            f"of which {common:,} are the same; evaluate both on the same split of the same data"
        )
    if not np.array_equal(one.labels, two.labels):
        raise UsageError(f"{first.folder} and {other.folder} disagree about true classes; evaluate both again")


def _paired(reference: _Entry, entry: _Entry, config: CompareConfig) -> Paired:
    one, two = reference.predictions, entry.predictions
    return paired_bootstrap(
        one.labels,
        one.predicted,
        two.predicted,
        len(one.classes),
        resamples=config.resamples,
        seed=config.seed,
    )


def _row(entry: _Entry, paired: Paired | None) -> dict[str, Any]:
    report, latency = entry.report, entry.report.get("latency")
    return {
        "run": str(entry.folder),
        "model": report["model"],
        **{key: report[key] for key in NUMBERS},
        "bytes": report["bytes"],
        "latency_ratio": latency["ratio_median"] if latency and latency["ratio_trusted"] else None,
        "scores": {score["preset"]: score["total"] for score in report["scores"]},
        "paired": None if paired is None else asdict(paired),
    }


def table(report: dict[str, Any]) -> str:
    """The report for people: how well, and at what cost."""
    rows = _shortened(report["runs"])
    title = f"{report['split']} split; differences in macro F1 to {report['reference']}"
    quality = [">macro F1", ">95 %", ">difference", ">95 %", ">p"]
    presets = list(dict.fromkeys(preset for row in rows for preset in row["scores"]))
    cost = [">MACs", ">parameters", ">size", ">latency", *(f">{preset}" for preset in presets)]
    return (
        render_table(["run", *quality], [[row["run"], *_quality(row)] for row in rows], title=title)
        + "\n\n"
        + render_table(["run", *cost], [[row["run"], *_cost(row, presets)] for row in rows])
        + "\n\nScores: lower is better. Latency: of one image, over that of the network evaluate compares with."
    )


def _shortened(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the folders that all runs have in common."""
    paths = [Path(row["run"]).resolve() for row in rows]
    common = os.path.commonpath([path.parent for path in paths])
    return [row | {"run": str(path.relative_to(common))} for row, path in zip(rows, paths, strict=True)]


def _quality(row: dict[str, Any]) -> list[object]:
    own = [row["macro_f1"], f"{row['macro_f1_low']:.3f} to {row['macro_f1_high']:.3f}"]
    paired = row["paired"]
    if paired is None:
        return [*own, "reference", "", ""]
    interval = f"{paired['low']:+.3f} to {paired['high']:+.3f}"
    return [*own, f"{paired['difference']:+.4f}", interval, f"{paired['p_value']:.4f}"]


def _cost(row: dict[str, Any], presets: list[str]) -> list[object]:
    ratio = row["latency_ratio"]
    latency = None if ratio is None else f"x{ratio:.2f}"
    scores = [row["scores"].get(preset) for preset in presets]
    return [row["macs"], row["parameters"], human_bytes(row["bytes"]), latency, *scores]


def main() -> None:
    """Run the job."""
    run_job(CompareConfig, compare, name="training.compare", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
