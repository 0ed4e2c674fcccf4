"""A ladder as a picture: macro F1 over multiply-accumulates."""

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from compress.rungs.climb import Climbed


def draw_ladder(climbed: Sequence[Climbed], title: str) -> bytes:
    """Draw the rungs that were measured, those that were rolled back hollow.

    Args:
        climbed: From `compress.rungs.climb.climb`.
        title: Above the picture.

    Returns:
        The PNG file.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kept = [one for one in climbed if one.verdict in ("start", "kept")]
    axes.plot([one.macs / 1e6 for one in kept], [one.macro_f1 for one in kept], color="0.7", zorder=1)
    for one in climbed:
        if one.evaluation is None:
            continue
        colour = "tab:red" if one.verdict == "rolled back" else "tab:blue"
        low, high = one.evaluation["macro_f1_low"], one.evaluation["macro_f1_high"]
        axes.errorbar(
            one.macs / 1e6,
            one.macro_f1,
            yerr=[[max(0.0, one.macro_f1 - low)], [max(0.0, high - one.macro_f1)]],
            fmt="o",
            color=colour,
            markerfacecolor="w" if one.verdict == "rolled back" else colour,
            ecolor="0.8",
            capsize=3,
        )
        axes.annotate(
            one.press or "start", (one.macs / 1e6, one.macro_f1), xytext=(7, 7), textcoords="offset points", fontsize=9
        )
    axes.set_xlabel("million MACs")
    axes.set_ylabel("macro F1, 95 % interval")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.set_title(title)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
