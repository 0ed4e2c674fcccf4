"""Uncertainty: macro F1 against scikit-learn, multinomial counts against resampled rows, paired comparison, cliff."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score

from pipelines.errors import UsageError
from training.engine.metrics import Scores
from training.measure import bootstrap
from training.measure.bootstrap import (
    below_cliff,
    bootstrap_distribution,
    bootstrap_macro_f1,
    cliff_warning,
    paired_bootstrap,
    percentile_interval,
)
from training.measure.score import load_preset

P4, LEVEL3 = load_preset("p4-2021"), load_preset("level3-2021")
NINE_CLASSES = np.array([28.5, 28.2, 15.5, 6.8, 6.4, 6.0, 4.8, 2.8, 1.0]) / 100
MANY = {"resamples": 4000, "seed": 1}


def predictions(samples, right, seed, shares=NINE_CLASSES):
    """Labels and predictions of which so many are right."""
    random = np.random.default_rng(seed)
    labels = random.choice(len(shares), samples, p=shares)
    guesses = random.integers(0, len(shares), samples)
    return labels, np.where(random.random(samples) < right, labels, guesses)


def counts_of(labels, predicted, classes=9):
    return confusion_matrix(labels, predicted, labels=range(classes)).astype(np.int64)


def macro_f1(labels, predicted):
    return f1_score(labels, predicted, average="macro", zero_division=0)


def quick_macro_f1(labels, predicted):
    """`macro_f1` without scikit-learn's checks."""
    return Scores(np.bincount(labels * 9 + predicted, minlength=81).reshape(9, 9)).macro_f1


def rows_resampled(labels, predicted, resamples, seed):
    """The plain way: draw rows, count, score."""
    random = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        rows = random.integers(0, len(labels), len(labels))
        values.append(quick_macro_f1(labels[rows], predicted[rows]))
    return np.array(values)


class TestMacroF1:
    @given(
        st.sampled_from([(0, 1, 2, 3, 4, 5), (1, 4), (3,)]).flatmap(
            lambda classes: st.lists(
                st.tuples(st.sampled_from(classes), st.sampled_from(classes)), min_size=1, max_size=60
            )
        )
    )
    def test_equal_to_scikit_learn_with_classes_missing_and_a_single_class(self, pairs):
        labels, predicted = np.array(pairs).T
        assert Scores(counts_of(labels, predicted, 6)).macro_f1 == pytest.approx(macro_f1(labels, predicted))

    def test_nothing(self):
        assert Scores(np.zeros((3, 3), np.int64)).macro_f1 == 0.0

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8),
        st.integers(0, 2**32),
    )
    def test_each_value_is_what_scores_says_of_the_resample(self, pairs, seed):
        """Few samples, so that classes vanish from resamples all the time."""
        labels, predicted = np.array(pairs).T
        matrix = counts_of(labels, predicted, 5)
        cells = np.nonzero(matrix)
        random = np.random.Generator(np.random.Philox(seed))
        expected = []
        for drawn in random.multinomial(len(pairs), matrix[cells] / len(pairs), size=20):
            resample = np.zeros_like(matrix)
            resample[cells] = drawn
            expected.append(Scores(resample).macro_f1)
        assert np.allclose(bootstrap_distribution(matrix, resamples=20, seed=seed), expected, rtol=0, atol=1e-15)


class TestInterval:
    def test_same_as_resampling_rows(self):
        labels, predicted = predictions(300, 0.6, seed=3)
        ours = bootstrap_distribution(counts_of(labels, predicted), **MANY)
        plain = rows_resampled(labels, predicted, 1500, seed=4)
        error = ours.std() * np.sqrt(1 / len(ours) + 1 / len(plain))
        assert abs(ours.mean() - plain.mean()) < 4 * error
        assert ours.std() == pytest.approx(plain.std(), rel=0.1)
        assert stats.ks_2samp(ours, plain).pvalue > 0.001

    def test_same_as_scipy(self):
        labels, predicted = predictions(250, 0.7, seed=5)

        theirs = stats.bootstrap(
            (labels, predicted), quick_macro_f1, paired=True, vectorized=False, n_resamples=1500, method="percentile",
            rng=np.random.default_rng(6),
        )  # fmt: skip
        ours = bootstrap_macro_f1(counts_of(labels, predicted), **MANY)
        # Three standard errors of a 2.5 % quantile of 1,500 draws from a normal distribution.
        error = 3 * ours.std * np.sqrt(0.025 * 0.975 / 1500) / stats.norm.pdf(1.96)
        assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=error)
        assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=error)
        assert ours.std == pytest.approx(theirs.standard_error, rel=0.1)

    def test_covers_the_truth_about_as_often_as_it_says(self):
        shares = np.array([0.5, 0.3, 0.2])
        truth = macro_f1(*predictions(400_000, 0.7, seed=1, shares=shares))
        hits = 0
        for seed in range(200):
            matrix = counts_of(*predictions(400, 0.7, seed=1000 + seed, shares=shares), 3)
            interval = bootstrap_macro_f1(matrix, resamples=400, seed=seed)
            hits += interval.low <= truth <= interval.high
        assert 180 <= hits <= 199

    def test_estimate_and_width(self):
        labels, predicted = predictions(1000, 0.6, seed=2)
        matrix = counts_of(labels, predicted)
        interval = bootstrap_macro_f1(matrix, **MANY)
        assert interval.estimate == pytest.approx(macro_f1(labels, predicted))
        assert interval.low < interval.estimate < interval.high
        wider = bootstrap_macro_f1(matrix, **MANY, confidence=0.99)
        assert wider.low < interval.low
        assert wider.high > interval.high
        ten_times = bootstrap_macro_f1(matrix * 10, **MANY)
        assert ten_times.estimate == pytest.approx(interval.estimate)
        assert ten_times.std == pytest.approx(interval.std / np.sqrt(10), rel=0.1)

    def test_all_right_is_sure(self):
        interval = bootstrap_macro_f1(np.diag([5, 0, 7]).astype(np.int64), resamples=200)
        assert (interval.low, interval.high, interval.estimate, interval.std) == (1, 1, 1, 0)

    def test_seed_and_memory_decide_nothing_else(self, monkeypatch):
        matrix = counts_of(*predictions(500, 0.6, seed=2))
        first = bootstrap_distribution(matrix, resamples=300, seed=9)
        monkeypatch.setattr(bootstrap, "_CHUNK", 1000)
        assert np.array_equal(bootstrap_distribution(matrix, resamples=300, seed=9), first)
        assert not np.array_equal(bootstrap_distribution(matrix, resamples=300, seed=10), first)

    def test_fast(self):
        matrix = counts_of(*predictions(10_000, 0.6, seed=2))
        start = time.process_time()
        bootstrap_macro_f1(matrix)
        assert time.process_time() - start < 5

    @pytest.mark.parametrize(
        ("matrix", "message"),
        [
            (np.zeros((3, 3), np.int64), "counts no sample"),
            (np.zeros((0, 0), np.int64), "counts no sample"),
            (np.ones((2, 3), np.int64), "is square"),
            (np.ones(4, np.int64), "is square"),
            (np.ones((2, 2)), "whole counts"),
            (np.array([[1, -1], [0, 2]]), "of 0 or more"),
        ],
    )
    def test_no_confusion_matrix(self, matrix, message):
        with pytest.raises(UsageError, match=message):
            bootstrap_distribution(matrix)

    def test_wrong_options(self):
        matrix = np.eye(2, dtype=np.int64)
        with pytest.raises(UsageError, match="resamples must be at least 1"):
            bootstrap_distribution(matrix, resamples=0)
        with pytest.raises(UsageError, match="seed must be 0 or more"):
            bootstrap_distribution(matrix, seed=-1)
        for confidence in (0.0, 1.0, 95.0, float("nan")):
            with pytest.raises(UsageError, match="confidence must lie between 0 and 1"):
                bootstrap_macro_f1(matrix, resamples=10, confidence=confidence)


class TestPaired:
    def test_identical_predictions(self):
        labels, predicted = predictions(300, 0.6, seed=1)
        result = paired_bootstrap(labels, predicted, predicted, 9, **MANY)
        assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)

    def test_same_as_resampling_rows(self):
        labels, one = predictions(300, 0.6, seed=1)
        two = np.where(np.random.default_rng(2).random(300) < 0.1, labels, one)
        random = np.random.default_rng(3)
        plain = []
        for _ in range(1500):
            rows = random.integers(0, 300, 300)
            plain.append(quick_macro_f1(labels[rows], two[rows]) - quick_macro_f1(labels[rows], one[rows]))
        result = paired_bootstrap(labels, one, two, 9, **MANY)
        assert result.difference == pytest.approx(macro_f1(labels, two) - macro_f1(labels, one))
        low, high = percentile_interval(np.array(plain))
        error = 4 * np.std(plain) * np.sqrt(0.025 * 0.975 / 1500) / stats.norm.pdf(1.96)
        assert result.low == pytest.approx(low, abs=error)
        assert result.high == pytest.approx(high, abs=error)

    def test_p_value_counts_both_sides(self):
        """The second model is right on 8 samples and wrong on 2 where the first is not."""
        labels, one, two = np.zeros((3, 300), np.int64)
        one[:16], two[8:18] = 1, 1
        # F1 of class 0 rises with its hits, class 1 has none: only the 8 and the 2 samples where they differ count.
        random = np.random.default_rng(0)
        better, worse, _ = random.multinomial(300, [8 / 300, 2 / 300, 290 / 300], size=20_000).T
        result = paired_bootstrap(labels, one, two, 2, **MANY)
        assert result.p_value == pytest.approx(2 * np.mean(better <= worse), abs=0.012)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=40), st.randoms())
    def test_models_and_samples_can_change_places(self, triples, random):
        labels, one, two = np.array(triples).T
        forward = paired_bootstrap(labels, one, two, 3, resamples=100)
        back = paired_bootstrap(labels, two, one, 3, resamples=100)
        assert back.p_value == forward.p_value
        assert (back.difference, back.low, back.high) == pytest.approx(
            (-forward.difference, -forward.high, -forward.low), abs=1e-12
        )
        random.shuffle(triples)
        assert paired_bootstrap(*np.array(triples).T, 3, resamples=100) == forward

    def test_a_clear_difference_reaches_the_floor(self):
        labels = np.repeat(np.arange(3), 100)
        result = paired_bootstrap(labels, np.roll(labels, 60), labels, 3, resamples=500)
        assert result.p_value == 1 / 500
        assert 0 < result.low < result.difference < result.high

    def test_false_alarms_are_about_as_rare_as_they_should_be(self):
        alarms = 0
        for seed in range(200):
            labels, one = predictions(300, 0.7, seed=seed, shares=np.full(3, 1 / 3))
            guesses = np.random.default_rng(10_000 + seed).integers(0, 3, 300)
            two = np.where(np.random.default_rng(seed + 500).random(300) < 0.7, labels, guesses)
            alarms += paired_bootstrap(labels, one, two, 3, resamples=400, seed=seed).p_value < 0.05
        assert 1 <= alarms <= 22

    @pytest.mark.parametrize(
        ("labels", "one", "two", "message"),
        [
            ([0, 1], [0, 1], [0], "2 labels, 2 first and 1 second"),
            ([], [], [], "labels must be a list of whole numbers"),
            ([0.5], [0], [0], "labels must be a list of whole numbers"),
            ([0], [3], [0], "first must be classes from 0 to 2, got 3"),
            ([0], [0], [-1], "second must be classes from 0 to 2, got -1"),
        ],
    )
    def test_wrong_predictions(self, labels, one, two, message):
        with pytest.raises(UsageError, match=message):
            paired_bootstrap(labels, one, two, 3)


class TestCliff:
    def test_share_below(self):
        distribution = np.array([0.4, 0.49, 0.5, 0.6])
        assert below_cliff(P4, distribution) == 0.5
        assert below_cliff(LEVEL3, distribution) == 0.0

    def test_warns_from_two_and_a_half_per_cent_on(self):
        distribution = np.full(1000, 0.52)
        distribution[:25] = 0.49
        assert cliff_warning(P4, distribution) is None
        distribution[25] = 0.49
        warning = cliff_warning(P4, distribution)
        assert "p4-2021" in warning
        assert "below 0.5" in warning
        assert "2.6%" in warning
        assert cliff_warning(LEVEL3, np.full(1000, 0.69)) is None
