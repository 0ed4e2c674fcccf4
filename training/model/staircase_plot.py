"""The cost of a model over the size of its images, as a picture."""

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.model.staircase import Step


def draw_staircase(steps: Sequence[Step], title: str) -> bytes:
    """Draw MACs over sizes, and mark the sizes right before a step.

    Args:
        steps: By rising size.
        title: Above the picture.

    Returns:
        The PNG file.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    known = [(step.size, step.macs / 1e6) for step in steps if step.macs is not None]
    axes.step([size for size, _ in known], [macs for _, macs in known], where="mid", color="0.35", linewidth=1.5)
    best = [(step.size, step.macs / 1e6) for step in steps if step.best and step.macs is not None]
    axes.plot([size for size, _ in best], [macs for _, macs in best], "o", color="tab:green", label="before a step")
    for size, macs in best:
        axes.annotate(str(size), (size, macs), xytext=(-4, 6), textcoords="offset points", ha="right", fontsize=9)
    axes.set_xlabel("side of the image, px")
    axes.set_ylabel("million MACs")
    axes.set_ylim(0, 1.08 * max(macs for _, macs in known))
    axes.grid(alpha=0.3)
    axes.set_title(title)
    if best:
        axes.legend(loc="upper left")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
