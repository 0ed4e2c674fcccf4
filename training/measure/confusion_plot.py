"""The confusion matrix as a picture."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray


def draw_confusion(confusion: NDArray[np.int64], classes: Sequence[str], title: str) -> bytes:
    """Draw counts on a colour that shows the share of each true class.

    Args:
        confusion: int64 [classes, classes]; rows are true classes.
        classes: Names in index order.
        title: Above the matrix.

    Returns:
        The PNG file.
    """
    count = len(classes)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(2.2 + 0.75 * count, 1.8 + 0.65 * count), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(count), classes, rotation=30, ha="right")
    axes.set_yticks(range(count), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    for row in range(count):
        for column in range(count):
            dark = shares[row, column] > 0.5
            axes.text(column, row, f"{confusion[row, column]:,}", ha="center", va="center", color="w" if dark else "k")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
