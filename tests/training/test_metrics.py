"""Scores against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from training.engine.metrics import Scores

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=200)


def scores_of(pairs):
    counts = np.zeros((5, 5), np.int64)
    for true, predicted in pairs:
        counts[true, predicted] += 1
    return Scores(counts)


@given(PAIRS)
def test_equal_to_scikit_learn(pairs):
    true, predicted = zip(*pairs, strict=True)
    scores = scores_of(pairs)
    assert scores.macro_f1 == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0))
    assert scores.accuracy == pytest.approx(accuracy_score(true, predicted))
    expected = precision_recall_fscore_support(true, predicted, labels=range(5), zero_division=0)
    for ours, theirs in zip((scores.precision, scores.recall, scores.f1, scores.support), expected, strict=True):
        assert np.allclose(ours, theirs)
    assert np.array_equal(scores.confusion, confusion_matrix(true, predicted, labels=range(5)))


def test_a_constant_predictor_on_taco_shares():
    """Majority share 34.6 % of six classes: macro F1 0.086, accuracy 0.346."""
    counts = np.zeros((6, 6), np.int64)
    counts[:, 3] = (165, 188, 65, 478, 412, 75)
    scores = Scores(counts)
    assert scores.macro_f1 == pytest.approx(0.0857, abs=1e-3)
    assert scores.accuracy == pytest.approx(0.346, abs=1e-3)
