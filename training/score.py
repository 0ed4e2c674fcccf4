"""Compute competition scores from macro F1 and MACs or time, with a 95 % interval from the confusion matrix."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.console.job import run_job
from pipelines.console.output import render_table
from pipelines.console.words import names_in
from pipelines.errors import UsageError
from training.engine.metrics import Scores
from training.measure.bootstrap import bootstrap_distribution, cliff_warning, percentile_interval
from training.measure.score import Floats, ScorePreset, load_preset, preset_names
from training.measure.scoring import score_entry

EXAMPLE = """
  python -m training.score
  python -m training.score --f1 0.6149 --macs 1083210
  python -m training.score --preset level3-2021 --f1 0.7 --seconds 60
  python -m training.score --evaluation runs/train/evaluation_test.json --preset p4-2021,p4-2021-teams
  python -m training.score --evaluation runs/train --timing predictions.timing.json --json
"""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Options of the score job; without any it shows the presets. Lower scores are better.

    Args:
        preset: Which scores: names or YAML files, with commas between them. All that come with Tacopress when absent;
            then those are left out whose numbers are not given.
        f1: Macro F1, as a share.
        macs: MACs of one image by the competition's convention, not by the exact meter.
        seconds: Wall time of the whole program, start-up and reading included.
        evaluation: In place of f1, a report of the evaluate job (evaluation_SPLIT.json), or its folder for that of the
            test split. It holds F1, the confusion matrix and MACs; --macs wins over its own.
        timing: In place of seconds, the record of time that the predict job wrote (NAME.timing.json).
        list: Show the presets with their constants, and where those come from.
        smooth: The variant for searches, without the flat step below the cliff; not the official score.
        resamples: Of the test samples, for the interval.
        seed: Of the resamples.
        confidence: Share of the resamples inside the interval.
    """

    preset: str | tuple[str, ...] | None = None
    f1: float | None = None
    macs: int | None = None
    seconds: float | None = None
    evaluation: Path | None = None
    timing: Path | None = None
    list: bool = False
    smooth: bool = False
    resamples: int = 10_000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.f1 is not None and self.evaluation is not None:
            raise UsageError("--f1 and --evaluation both say what macro F1 is; give one of them")
        if self.seconds is not None and self.timing is not None:
            raise UsageError("--seconds and --timing both say how long the program took; give one of them")
        if self.f1 is None and self.evaluation is None and not self.list:
            given = [name for name in ("preset", "macs", "seconds", "timing") if getattr(self, name) is not None]
            if given or self.smooth:
                raise UsageError("a score needs macro F1; give --f1 or --evaluation, or --list to see the presets")
        if not 100 <= self.resamples <= 10_000_000:
            raise UsageError(f"--resamples must be from 100 to 10,000,000, got {self.resamples:,}")
        if self.seed < 0:
            raise UsageError(f"--seed must be 0 or more, got {self.seed}")
        if not 0.0 < self.confidence < 1.0:
            raise UsageError(f"--confidence must lie between 0 and 1, got {self.confidence:g}")


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """What is scored.

    Args:
        f1: Macro F1.
        macs: By the competition's convention; None if not known.
        seconds: Of the whole program; None if not known.
        distribution: Macro F1 of the resamples; None without a confusion matrix.
    """

    f1: float
    macs: float | None
    seconds: float | None
    distribution: Floats | None = None


def score(config: ScoreConfig) -> dict[str, Any]:
    """Compute scores, or list the presets.

    Returns:
        The report. Keys: `kind`: presets or scores. presets: `presets` of `name`, `kind` (f1_macs or f1_time),
        `source`, `constants`. scores: `evaluation` (null without), `f1`, `macs`, `seconds`, `smooth`, `confidence`;
        `f1_low` and `f1_high` (null without a confusion matrix); `scores` of `preset`, `kind`, `total`, `f1_term`,
        `cost_term`, `low`, `high`, `below_cliff` (share of the resamples), the last three null without a confusion
        matrix; `left_out` of `preset`, `needs`; `notes`, sentences.

    Raises:
        UsageError: A number or a file is missing or wrong.
    """
    named = _named(config)
    presets = [load_preset(name) for name in named or preset_names()]
    if config.list or (config.f1 is None and config.evaluation is None):
        return {"kind": "presets", "presets": [_described(preset) for preset in presets]}
    numbers = _numbers(config)
    scores, left_out = [], []
    for preset in presets:
        missing = _missing(preset, numbers)
        if missing and named:
            raise UsageError(f"preset {preset.name} needs {missing}")
        if missing:
            left_out.append({"preset": preset.name, "needs": missing})
        else:
            scores.append(_scored(preset, numbers, config))
    if not scores:
        reasons = "; ".join(f"{entry['preset']} needs {entry['needs']}" for entry in left_out)
        raise UsageError(f"no score can be computed: {reasons}")
    low, high = _interval(numbers.distribution, config.confidence)
    return {
        "kind": "scores",
        "evaluation": None if config.evaluation is None else str(config.evaluation),
        "f1": numbers.f1,
        "macs": numbers.macs,
        "seconds": numbers.seconds,
        "smooth": config.smooth,
        "confidence": config.confidence,
        "f1_low": low,
        "f1_high": high,
        "scores": scores,
        "left_out": left_out,
        "notes": _notes(numbers, presets),
    }


def _named(config: ScoreConfig) -> tuple[str, ...]:
    """The presets that were asked for; empty if none were."""
    if config.preset is None:
        return ()
    parts = names_in(config.preset) if isinstance(config.preset, str) else map(str.strip, config.preset)
    names = tuple(dict.fromkeys(filter(None, parts)))
    if not names:
        raise UsageError(f"--preset names none; give one of {', '.join(preset_names())}, or leave it out for all")
    return names


def _described(preset: ScorePreset) -> dict[str, Any]:
    constants = asdict(preset.constants)
    return {"name": preset.name, "kind": preset.kind, "source": preset.source, "constants": constants}


def _missing(preset: ScorePreset, numbers: _Numbers) -> str | None:
    """What a preset needs and nobody has given, with the cure."""
    if preset.kind == "f1_macs" and numbers.macs is None:
        return "MACs by the competition's convention; give --macs, or an evaluation with competition_macs"
    if preset.kind == "f1_time" and numbers.seconds is None:
        return "the seconds of the whole program; give --seconds or --timing"
    return None


def _scored(preset: ScorePreset, numbers: _Numbers, config: ScoreConfig) -> dict[str, Any]:
    return score_entry(
        preset,
        numbers.f1,
        numbers.distribution,
        macs=numbers.macs,
        seconds=numbers.seconds,
        smooth=config.smooth,
        confidence=config.confidence,
    )


def _notes(numbers: _Numbers, presets: Sequence[ScorePreset]) -> list[str]:
    """What the reader should know beside the numbers."""
    if numbers.distribution is None:
        return []
    warnings = (cliff_warning(preset, numbers.distribution) for preset in presets)
    return [warning for warning in warnings if warning]


def _interval(distribution: Floats | None, confidence: float) -> tuple[float | None, float | None]:
    return (None, None) if distribution is None else percentile_interval(distribution, confidence)


def _numbers(config: ScoreConfig) -> _Numbers:
    seconds = config.seconds if config.timing is None else _seconds(config.timing)
    if config.evaluation is None:
        assert config.f1 is not None
        return _Numbers(f1=config.f1, macs=config.macs, seconds=seconds)
    path = config.evaluation / "evaluation_test.json" if config.evaluation.is_dir() else config.evaluation
    report = _read(path, "--evaluation", "evaluation_SPLIT.json that python -m training.evaluate wrote")
    f1 = _entry(report, "macro_f1", path)
    if f1 is None or not 0.0 <= f1 <= 1.0:
        raise UsageError(f"{path}: macro_f1 must be a number from 0 to 1; give what python -m training.evaluate wrote")
    matrix = _confusion(report, f1, path)
    distribution = None
    if matrix is not None:
        distribution = bootstrap_distribution(matrix, resamples=config.resamples, seed=config.seed)
    return _Numbers(
        f1=f1,
        macs=_entry(report, "competition_macs", path) if config.macs is None else config.macs,
        seconds=seconds,
        distribution=distribution,
    )


def _seconds(path: Path) -> float:
    """Of the whole program, from the record that predict wrote."""
    report = _read(path, "--timing", "NAME.timing.json that python -m training.predict wrote")
    timing = report.get("timing")
    seconds = _entry(timing, "all", path) if isinstance(timing, dict) else None
    if seconds is None:
        raise UsageError(f"--timing {path} holds no record of time; give what python -m training.predict wrote")
    return seconds


def _read(path: Path, option: str, source: str) -> dict[str, Any]:
    try:
        report = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read ({error.strerror}); give the {source}") from error
    except ValueError as error:
        raise UsageError(f"{option} {path} is no JSON ({error}); give the {source}") from error
    if not isinstance(report, dict):
        raise UsageError(f"{option} {path} holds no report; give the {source}")
    return report


def _entry(report: dict[str, Any], key: str, path: Path) -> float | None:
    """A finite number of an evaluation; None where it has none."""
    value = report.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise UsageError(f"{path}: {key} must be a number, got {value!r:.60}; evaluate again")
    return value


def _confusion(report: dict[str, Any], f1: float, path: Path) -> NDArray[np.int64] | None:
    """The confusion matrix of an evaluation; None where it has none."""
    rows = report.get("confusion")
    if rows is None:
        return None
    whole = isinstance(rows, list) and all(isinstance(row, list) and len(row) == len(rows) for row in rows)
    if not whole or not all(type(count) is int and 0 <= count < 2**53 for row in rows for count in row):
        raise UsageError(f"{path}: confusion must be a square matrix of counts; evaluate again")
    matrix = np.array(rows, np.int64).reshape(len(rows), len(rows))
    own = Scores(matrix).macro_f1
    if abs(own - f1) > 1e-6:
        raise UsageError(f"{path}: macro_f1 is {f1:.6f}, but its confusion matrix gives {own:.6f}; evaluate again")
    return matrix


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    return _presets_table(report) if report["kind"] == "presets" else _scores_table(report)


def _presets_table(report: dict[str, Any]) -> str:
    parts = []
    for preset in report["presets"]:
        constants = " · ".join(f"{key} {value:,.10g}" for key, value in preset["constants"].items())
        source = textwrap.fill(preset["source"], 116, initial_indent="  ", subsequent_indent="  ")
        parts.append(f"{preset['name']} ({preset['kind']})\n  {constants}\n{source}")
    cure = "--f1 with --macs or --seconds, or --evaluation, computes scores; lower is better."
    return "\n\n".join([*parts, cure])


def _scores_table(report: dict[str, Any]) -> str:
    sure = report["f1_low"] is not None
    headers = ["preset", ">F1 term", ">cost term", ">score"]
    rows = [[entry["preset"], entry["f1_term"], entry["cost_term"], entry["total"]] for entry in report["scores"]]
    if sure:
        headers += [">from", ">to", ">below cliff"]
        for row, entry in zip(rows, report["scores"], strict=True):
            row += [entry["low"], entry["high"], f"{entry['below_cliff']:.1%}"]
    variant = ", smooth variant" if report["smooth"] else ""
    title = f"Scores{variant}; lower is better" + (f"; {100 * report['confidence']:g} % intervals" if sure else "")
    between = f" ({report['f1_low']:.4f} to {report['f1_high']:.4f})" if sure else ""
    macs = f" · {report['macs']:,} MACs" if report["macs"] is not None else ""
    seconds = f" · {report['seconds']:g} s" if report["seconds"] is not None else ""
    lines = [
        render_table(headers, rows, title=title),
        "",
        f"macro F1 {report['f1']:.4f}{between}{macs}{seconds}",
        *(f"left out: {entry['preset']} needs {entry['needs']}" for entry in report["left_out"]),
        *report["notes"],
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the job."""
    run_job(ScoreConfig, score, name="training.score", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
