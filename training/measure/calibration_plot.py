"""Two pictures in one: how far confidence can be believed, and how often each class is predicted."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.engine.metrics import Scores
from training.measure.calibration import BINS, Calibration

TRUE, SAID = "#9aa5b1", "#2f6db5"


def draw_calibration(found: Calibration, scores: Scores, classes: Sequence[str], title: str) -> bytes:
    """Draw the reliability diagram and the histogram of classes, true and predicted.

    Args:
        found: How probabilities and truth go together.
        scores: Of the same predictions.
        classes: Names in index order.
        title: Above both.

    Returns:
        The PNG file.
    """
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    bins = [entry for entry in found.bins if entry.count]
    left.bar(
        [entry.low + 0.5 / BINS for entry in bins],
        [entry.accuracy for entry in bins],
        width=0.9 / BINS,
        color=SAID,
        alpha=0.35,
        label="share that is right",
    )
    largest = max(entry.count for entry in bins)
    left.scatter(
        [entry.confidence for entry in bins],
        [entry.accuracy for entry in bins],
        s=[12 + 150 * entry.count / largest for entry in bins],
        color=SAID,
        zorder=3,
        label="bin, its size the number of samples",
    )
    left.plot([0, 1], [0, 1], color="0.4", linewidth=1, linestyle="--", label="perfectly calibrated")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    left.set_title(f"reliability: ECE {found.ece:.3f}, NLL {found.nll:.3f}, Brier {found.brier:.3f}")
    left.legend(loc="lower right", fontsize=8)
    places, said = np.arange(len(classes)), scores.confusion.sum(axis=0)
    right.bar(places - 0.2, scores.support, width=0.4, color=TRUE, label="true")
    right.bar(places + 0.2, said, width=0.4, color=SAID, label="predicted")
    right.set_xticks(places, classes, rotation=30, ha="right")
    right.set_ylabel("samples")
    right.set_title("how often each class is true, and is predicted")
    right.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
