"""The facts of a cache as one picture."""

import io
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

from augment_cache.statistics.policy_text import known_op
from augment_cache.statistics.tables import shortened

WIDTH, DPI = 13.0, 110
ROW, FRAME = 0.23, 1.25
"""Inches that a horizontal bar takes, and that title and axis of a part take."""
STRENGTHS_ACROSS, STRENGTH_HEIGHT = 6, 1.5
DARK, LIGHT = "#1f4e79", "#9dc3e6"
SPLIT_COLOURS = ("#1f4e79", "#e07b39", "#3a9a5b")
STYLE = {
    # A class may be called "$5$": names are no formulas.
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def draw_info(report: dict[str, Any]) -> bytes:
    """Draw images per class and split, counts of ops, sizes of images and magnitudes per op.

    Args:
        report: The report of `augment_cache.info`.

    Returns:
        The PNG file; the same report gives the same bytes.
    """
    splits = report["splits"]
    augmented = next((name for name, entry in splits.items() if entry["ops"]), "")
    ops = splits[augmented]["ops"] if augmented else {}
    strengths = {name: op for name, op in ops.items() if op["histogram"]}
    sizes = {name: entry for name, entry in splits.items() if entry["image_histogram"] and entry["rows"]}
    lines = -(-len(strengths) // STRENGTHS_ACROSS)
    heights = [max(FRAME + ROW * len(report["classes"]), 2.5)]
    heights += [max(FRAME + ROW * len(ops), 3.4)] if ops or sizes else []
    heights += [0.6 + STRENGTH_HEIGHT * lines] if lines else []
    with matplotlib.style.context(STYLE, after_reset=True):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), dpi=DPI, layout=layout)
        FigureCanvasAgg(figure)
        figure.suptitle(_headline(report))
        parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        _classes(next(parts), report)
        if ops or sizes:
            _ops_and_sizes(next(parts), augmented, ops, sizes)
        if lines:
            _strengths(next(parts), augmented, strengths, lines)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _headline(report: dict[str, Any]) -> str:
    entries = report["splits"].values()
    name = shortened(Path(report["folder"]).resolve().name, 60)
    count, most = sum(entry["rows"] for entry in entries), max(entry["image_bytes"]["max"] or 0 for entry in entries)
    alike = "" if any(entry["image_histogram"] for entry in entries) else f", {most:,} bytes each"
    classes = len(report["classes"])
    return f"{name}: {count:,} images of {report['recipe']['size']} px in {classes} classes{alike}"


def _classes(part: SubFigure, report: dict[str, Any]) -> None:
    names, splits = report["classes"], report["splits"]
    panels = part.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    copied = any(entry["rows"] != entry["samples"] for entry in splits.values())
    for axes, (split, entry) in zip(panels, splits.items(), strict=True):
        originals = [entry["originals"][name] for name in names]
        copies = [entry["classes"][name] - entry["originals"][name] for name in names]
        axes.barh(range(len(names)), originals, color=DARK, height=0.75, label="originals")
        if any(copies):
            axes.barh(range(len(names)), copies, left=originals, color=LIGHT, height=0.75, label="copies")
        _bar_numbers(axes, [entry["classes"][name] for name in names])
        axes.set_title(f"{split}: {entry['samples']:,} originals, {entry['rows'] - entry['samples']:,} copies")
    _name_rows(panels[0], names)
    if copied:
        panel = next(
            axes for axes, entry in zip(panels, splits.values(), strict=True) if entry["rows"] != entry["samples"]
        )
        handles, labels = panel.get_legend_handles_labels()
        part.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [shortened(name, 28) for name in names])
    # The first row on top, and no more room than half a bar above and below.
    axes.set_ylim(len(names) - 0.4, -0.6)


def _bar_numbers(axes: Axes, values: list[int]) -> None:
    """Numbers behind horizontal bars, with room for them."""
    most = max(max(values), 1)
    for row, value in enumerate(values):
        axes.text(value + 0.01 * most, row, f"{value:,}", va="center", fontsize=8)
    axes.set_xlim(0, most * 1.16)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="y", length=0)


def _ops_and_sizes(part: SubFigure, augmented: str, ops: dict[str, Any], sizes: dict[str, Any]) -> None:
    panels = part.subplots(1, bool(ops) + bool(sizes), squeeze=False)[0]
    if ops:
        counts = [op["rows"] for op in ops.values()]
        panels[0].barh(range(len(ops)), counts, color=LIGHT, height=0.75)
        _bar_numbers(panels[0], counts)
        _name_rows(panels[0], list(ops))
        panels[0].set_title(f"copies of {augmented} with each op")
    if sizes:
        _sizes(panels[-1], sizes)


def _sizes(axes: Axes, shown: dict[str, Any]) -> None:
    """Shares instead of numbers, so that a small split can be held against a large one."""
    for place, (name, entry) in enumerate(shown.items()):
        edges, counts = entry["image_histogram"]["edges"], entry["image_histogram"]["counts"]
        shares = [count / entry["rows"] for count in counts]
        colour = SPLIT_COLOURS[place % len(SPLIT_COLOURS)]
        if place == 0:
            axes.stairs(shares, edges, color=LIGHT, fill=True)
        label = f"{name}: median {round(entry['image_bytes']['median']):,} bytes"
        axes.stairs(shares, edges, color=colour, linewidth=1.6, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set_ylabel("share of the split")
    axes.set_title("sizes of the images")
    # Room for the legend above the bars.
    axes.set_ylim(0, 1.3 * axes.dataLim.y1)
    axes.legend(loc="upper right", frameon=False)


def _strengths(part: SubFigure, split: str, ops: dict[str, Any], lines: int) -> None:
    part.suptitle(f"strengths in {split}", x=0.01, ha="left", fontsize=10)
    panels = part.subplots(lines, STRENGTHS_ACROSS, squeeze=False).ravel()
    for axes in panels[len(ops) :]:
        axes.set_axis_off()
    for axes, (name, op) in zip(panels, ops.items(), strict=False):
        axes.stairs(op["histogram"]["counts"], op["histogram"]["edges"], color=LIGHT, fill=True)
        axes.stairs(op["histogram"]["counts"], op["histogram"]["edges"], color=DARK, linewidth=0.8)
        known = known_op(name)
        axes.set_title(name, fontsize=9, pad=3)
        axes.set_xlabel(textwrap.fill(known.unit, 26) if known is not None else "", fontsize=7, labelpad=1)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=known is not None and known.whole))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.tick_params(labelsize=7, pad=2)
        axes.margins(x=0)
        axes.set_ylim(bottom=0)
