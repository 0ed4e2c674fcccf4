"""A score with its uncertainty, as reports have it."""

from dataclasses import asdict
from typing import Any

from training.measure.bootstrap import below_cliff, percentile_interval
from training.measure.score import Floats, ScorePreset, score


def score_entry(
    preset: ScorePreset,
    f1: float,
    distribution: Floats | None,
    *,
    macs: float | None = None,
    seconds: float | None = None,
    smooth: bool = False,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """One row of a report.

    Args:
        preset: Which score.
        f1: Macro F1.
        distribution: float64 [resamples] of macro F1, see `bootstrap_distribution`; None where it is not known.
        macs: See `score`.
        seconds: See `score`.
        smooth: See `score`.
        confidence: Share of the resamples between `low` and `high`.

    Returns:
        Keys: `preset`, `kind`, `total`, `f1_term`, `cost_term`; `low`, `high` and `below_cliff` (share of the
        resamples), null without a distribution.

    Raises:
        UsageError: A number that the score needs is missing or out of its range.
    """
    terms = score(preset, f1, macs=macs, seconds=seconds, smooth=smooth)
    entry = {
        "preset": preset.name,
        "kind": preset.kind,
        **asdict(terms),
        "low": None,
        "high": None,
        "below_cliff": None,
    }
    if distribution is not None:
        spread = score(preset, distribution, macs=macs, seconds=seconds, smooth=smooth)
        entry["low"], entry["high"] = percentile_interval(spread.total, confidence)
        entry["below_cliff"] = below_cliff(preset, distribution)
    return entry
