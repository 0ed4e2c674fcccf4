"""Calibration against scikit-learn and worked examples, and predictions that survive their file."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, log_loss

from pipelines.errors import ProblemFoundError, UsageError
from training.measure.calibration import BINS, calibration
from training.measure.calibration_plot import draw_calibration
from training.measure.predictions import Predictions, probabilities, read_predictions, write_predictions

CLASSES = ("a", "b, c", "ç")


def found(logits, labels):
    count = len(labels)
    return Predictions(
        classes=CLASSES,
        ids=np.arange(count, dtype=np.uint64) << np.uint64(60),
        sources=[f"folder/{number}.jpg" for number in range(count)],
        labels=np.array(labels, np.int64),
        shares=probabilities(np.asarray(logits, np.float32)),
    )


LOGITS = arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(-15, 15, width=32))


@settings(max_examples=60, deadline=None)
@given(logits=LOGITS, data=st.data())
def test_figures_equal_scikit_learns(logits, data):
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(logits), max_size=len(logits)))
    predictions = found(logits, labels)
    quality = calibration(predictions.labels, predictions.shares)
    assert quality.nll == pytest.approx(log_loss(labels, predictions.shares, labels=[0, 1, 2]), rel=1e-6, abs=1e-9)
    assert quality.brier == pytest.approx(((predictions.shares - np.eye(3)[labels]) ** 2).sum(1).mean())
    assert 0 <= quality.ece <= 1
    assert sum(entry.count for entry in quality.bins) == len(labels)
    for entry in quality.bins:
        if entry.count:
            assert entry.low < entry.confidence + 1e-12
            assert entry.confidence <= entry.high + 1e-12
    assert (
        predictions.scores.confusion.tolist()
        == confusion_matrix(labels, predictions.predicted, labels=[0, 1, 2]).tolist()
    )
    assert predictions.scores.macro_f1 == pytest.approx(
        f1_score(labels, predictions.predicted, average="macro", zero_division=0)
    )


def test_a_worked_example():
    # Of two that are said with 0.8 one is right, of two with 0.6 both: |0.5 - 0.8| and |1 - 0.6|.
    shares = np.array([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]])
    quality = calibration(np.array([0, 1, 1, 1]), shares)
    assert quality.ece == pytest.approx((0.3 + 0.4) / 2)
    assert quality.nll == pytest.approx(-np.log([0.8, 0.2, 0.6, 0.6]).mean())
    assert quality.brier == pytest.approx((2 * 0.04 + 2 * 0.64 + 2 * 2 * 0.16) / 4)


def test_certainty():
    sure = calibration(np.array([0, 1]), np.eye(2))
    assert (sure.ece, sure.nll, sure.brier) == (0, 0, 0)
    assert sure.bins[BINS - 1].count == 2
    wrong = calibration(np.array([1, 0]), np.eye(2))
    assert wrong.ece == 1
    assert np.isfinite(wrong.nll)
    assert wrong.brier == 2


def test_the_picture_is_one(tmp_path):
    predictions = found(np.random.default_rng(0).normal(size=(50, 3)), [number % 3 for number in range(50)])
    quality = calibration(predictions.labels, predictions.shares)
    picture = Image.open(io.BytesIO(draw_calibration(quality, predictions.scores, CLASSES, "test")))
    assert picture.size[0] > 800
    assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


@settings(max_examples=30, deadline=None)
@given(logits=LOGITS, seed=st.integers(0, 99))
def test_predictions_come_back_as_they_were(tmp_path_factory, logits, seed):
    path = tmp_path_factory.mktemp("predictions") / "p.csv"
    before = found(logits, np.random.default_rng(seed).integers(0, 3, len(logits)))
    write_predictions(path, before)
    after = read_predictions(path)
    assert (after.classes, list(after.sources)) == (before.classes, list(before.sources))
    for name in ("ids", "labels", "shares"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert getattr(after, name).dtype == getattr(before, name).dtype


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "sample_id,source,label,predicted\n", "sample_id,source,label,predicted,x\n00,s,y,x,1.0\n",
     "sample_id,source,label,predicted,x\nzz,s,x,x,1.0\n",
     "sample_id,source,label,predicted,x\nfffffffffffffffff,s,x,x,1\n",
     'sample_id,source,label,predicted,x\n00,"' + "s" * 200_000, "sample_id,source,label,predicted,x\n00,s,x,x\n"],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UsageError, match=r"p\.csv holds no predictions"):
        read_predictions(tmp_path / "p.csv")
    with pytest.raises(UsageError, match="does not exist"):
        read_predictions(tmp_path / "q.csv")


def test_names_that_are_no_utf8(tmp_path):
    odd = found([[0, 1, 2]], [0])
    odd = Predictions(classes=CLASSES, ids=odd.ids, sources=["d/\udce9.png"], labels=odd.labels, shares=odd.shares)
    write_predictions(tmp_path / "p.csv", odd)
    assert read_predictions(tmp_path / "p.csv").sources == ["d/\\xe9.png"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_give_no_class(value):
    with pytest.raises(ProblemFoundError, match="1 of 2 images with numbers that are not finite"):
        probabilities(np.array([[0, 1, 2], [0, 1, value]], np.float32))


def test_softmax_of_extremes():
    shares = probabilities(np.array([[1e4, -1e4, 0], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(shares, [[1, 0, 0], [1 / 3] * 3])
