"""The report of an evaluation as text."""

from typing import Any

import numpy as np

from pipelines.console.output import human_bytes, render_table


def table(report: dict[str, Any]) -> str:
    """The report for people: scores per class, the confusion matrix, then the whole, its cost, and its scores."""
    classes = report["classes"]
    entries = [report["per_class"][name] for name in classes]
    said = np.sum(report["confusion"], axis=0).tolist()
    rows = [
        [name, entry["precision"], entry["recall"], entry["f1"], entry["support"], count]
        for name, entry, count in zip(classes, entries, said, strict=True)
    ]
    counts = [[name, *row] for name, row in zip(classes, report["confusion"], strict=True)]
    headers = ["class", ">precision", ">recall", ">F1", ">samples", ">predicted"]
    parts = [
        render_table(headers, rows, title=f"{report['split']} split"),
        render_table(["true \\ predicted", *(f">{name}" for name in classes)], counts),
        _summary(report),
    ]
    if report["scores"]:
        parts.append(_score_table(report))
    broken = [finding for finding in report["rules"] if finding["ok"] is False]
    parts += [f"Rule {finding['rule']}: {finding['detail']}" for finding in broken]
    parts += report["notes"]
    return "\n\n".join(parts)


def _summary(report: dict[str, Any]) -> str:
    competition = report["competition_macs"]
    convention = "" if competition is None else f" ({competition:,} by the competition's convention)"
    lines = [
        f"macro F1 {report['macro_f1']:.4f} (95 %: {report['macro_f1_low']:.4f} to {report['macro_f1_high']:.4f}) · "
        f"accuracy {report['accuracy']:.4f} · ECE {report['calibration']['ece']:.4f} · {report['samples']:,} samples",
        f"{report['macs']:,} MACs{convention} at {report['input_size']} px · {report['parameters']:,} parameters · "
        f"{human_bytes(report['bytes'])}",
    ]
    latency = report["latency"]
    if latency is not None:
        lines.append(f"one image, {latency['runtime']}, {latency['threads']} thread(s): {_latency_words(latency)}")
    return "\n".join(lines)


def _latency_words(latency: dict[str, Any]) -> str:
    """Only what the noise allows to say."""
    words = []
    if latency["trusted"]:
        words.append(f"{latency['median_ms']:.3f} ms (p95 {latency['p95_ms']:.3f})")
    if latency["ratio_trusted"]:
        words.append(
            f"{latency['ratio_median']:.2f} of {latency['reference']} "
            f"({latency['ratio_low']:.2f} to {latency['ratio_high']:.2f})"
        )
    return " · ".join(words) or latency["complaint"]


def _score_table(report: dict[str, Any]) -> str:
    rows = [
        [entry["preset"], entry["total"], entry["low"], entry["high"], entry["f1_term"], entry["cost_term"]]
        for entry in report["scores"]
    ]
    return render_table(["score (lower is better)", ">total", ">2.5 %", ">97.5 %", ">F1 term", ">cost term"], rows)
