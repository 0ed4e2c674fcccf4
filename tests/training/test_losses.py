"""Losses against torch, against numpy, and against themselves when processes share a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from pipelines.errors import UsageError
from pipelines.mix import Mix
from training.engine.losses import LossConfig, balanced_weights, focal_loss, log_prior, make_loss, soft_f1_loss

NAMES = ["cross_entropy", "focal", "soft_f1", "f1_focal", "logit_adjusted"]
CLASSES = 4
ROWS = np.repeat([0, 1, 3], [60, 30, 10])  # nobody of class 2


def batch(samples, seed=0, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, CLASSES, generator=random, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.tensor([0, 1, 3])[torch.randint(3, (samples,), generator=random)]


def pairs(samples, share=0.7):
    partners = np.arange(samples) ^ 1
    return Mix(share, np.where(partners < samples, partners, np.arange(samples)), None)


def one_rank(config, logits, labels, mix=None):
    return make_loss(config, ROWS, CLASSES, "cpu")(logits, labels, mix, total=len(labels), sum_over_ranks=None)


def soft(labels, mix=None):
    own = np.eye(CLASSES)[labels.numpy()]
    return own if mix is None else mix.share * own + (1 - mix.share) * own[mix.partners]


def numpy_focal(logits, targets, weights, gamma, smoothing):
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = targets * (1 - smoothing) + smoothing / CLASSES
    return sum(
        weights[c] * targets[i, c] * (1 - p[i, c]) ** gamma * -np.log(p[i, c])
        for i in range(len(p))
        for c in range(CLASSES)
    ) / len(p)


def numpy_soft_f1(logits, targets):
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = []
    for c in range(CLASSES):
        if targets[:, c].sum() > 0:
            tp = (targets[:, c] * p[:, c]).sum()
            fp, fn = p[:, c].sum() - tp, targets[:, c].sum() - tp
            scores.append(2 * tp / (2 * tp + fp + fn))
    return 1 - np.mean(scores)


def test_balanced_weights():
    labels = np.repeat([0, 1, 3], [60, 30, 10])
    ones = balanced_weights(labels, 4, 0.0)
    assert ones.tolist() == [1, 1, 0, 1]
    full = balanced_weights(labels, 4, 1.0)
    assert torch.allclose(full * torch.tensor([60.0, 30, 0, 10]), torch.tensor([100 / 3, 100 / 3, 0, 100 / 3]))
    half = balanced_weights(labels, 4, 0.5)
    assert half[labels].mean() == pytest.approx(1.0)
    assert half[3] / half[0] == pytest.approx(6**0.5)


def test_prior_is_the_share_of_the_rows_and_finite_without_any():
    assert log_prior(ROWS, CLASSES).exp().tolist() == pytest.approx([60 / 101, 30 / 101, 1 / 101, 10 / 101])
    full = log_prior(np.repeat([0, 1], [3, 1]), 2)
    assert full.exp().tolist() == pytest.approx([0.75, 0.25])


def test_nothing_to_weigh_by_is_an_error():
    with pytest.raises(UsageError, match="no training row"):
        make_loss(LossConfig(), np.zeros(0, np.int64), CLASSES, "cpu")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_cross_entropy_is_that_of_torch(smoothing, balance):
    logits, labels = batch(9)
    config = LossConfig(label_smoothing=smoothing, class_balance=balance)
    weights = balanced_weights(ROWS, CLASSES, balance)
    assert torch.equal(make_loss(config, ROWS, CLASSES, "cpu").class_weights, weights)
    expected = cross_entropy(logits, labels, weights, label_smoothing=smoothing, reduction="sum") / 9
    assert torch.equal(one_rank(config, logits, labels), expected)
    # Probability targets agree with indices: everybody is mixed with itself.
    itself = Mix(0.5, np.arange(9), None)
    assert torch.allclose(one_rank(config, logits, labels, itself), expected, atol=1e-6)
    targets = torch.from_numpy(soft(labels, pairs(9))).float()
    expected = cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="sum") / 9
    assert torch.allclose(one_rank(config, logits, labels, pairs(9)), expected, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mix", [None, pairs(9)])
def test_focal_and_soft_f1_are_those_of_numpy(smoothing, mix):
    logits, labels = batch(9, dtype=torch.float64)
    numbers, targets = logits.detach().numpy(), soft(labels, mix)
    weights = balanced_weights(ROWS, CLASSES, 0.5).numpy()
    focal = numpy_focal(numbers, targets, weights, 1.5, smoothing)
    f1 = numpy_soft_f1(numbers, targets)
    for name, expected in {"focal": focal, "soft_f1": f1, "f1_focal": 0.6 * f1 + 0.4 * focal}.items():
        config = LossConfig(name=name, label_smoothing=smoothing, class_balance=0.5, gamma=1.5)
        assert one_rank(config, logits, labels, mix).item() == pytest.approx(expected, rel=1e-12)


def test_soft_f1_by_hand():
    p = torch.tensor([[0.8, 0.2, 0.0], [0.4, 0.6, 0.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    # class 0: 2 * 0.8 / (1.2 + 1), class 1: 2 * 0.6 / (0.8 + 1), class 2 is not there
    assert soft_f1_loss(p, targets, None).item() == pytest.approx(1 - (1.6 / 2.2 + 1.2 / 1.8) / 2)


def test_focal_by_hand():
    log_p = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    loss = focal_loss(log_p, torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([2.0, 5.0]), 2.0)
    assert loss.item() == pytest.approx(2 * 0.75**2 * -np.log(0.25))


@pytest.mark.parametrize("mix", [None, pairs(9)])
def test_focal_without_focus_is_cross_entropy(mix):
    logits, labels = batch(9)
    focal, plain = LossConfig(name="focal", gamma=0, class_balance=1.0), LossConfig(class_balance=1.0)
    assert torch.allclose(one_rank(focal, logits, labels, mix), one_rank(plain, logits, labels, mix), atol=1e-6)


def test_logit_adjustment_adds_the_prior_to_the_logits():
    logits, labels = batch(9)
    config = LossConfig(name="logit_adjusted", tau=1.5)
    adjusted = logits + 1.5 * torch.tensor([60 / 101, 30 / 101, 1 / 101, 10 / 101]).log()
    assert torch.allclose(one_rank(config, logits, labels), one_rank(LossConfig(), adjusted, labels), atol=1e-6)
    none = LossConfig(name="logit_adjusted", tau=0.0)
    assert torch.equal(one_rank(none, logits, labels), one_rank(LossConfig(), logits, labels))


def test_perfect_predictions_have_no_soft_f1_loss():
    _, labels = batch(9)
    logits = 1e4 * torch.eye(CLASSES)[labels]
    assert one_rank(LossConfig(name="soft_f1"), logits, labels).item() == 0
    wrong = 1e4 * torch.eye(CLASSES)[(labels + 1) % CLASSES]
    assert one_rank(LossConfig(name="soft_f1"), wrong, labels).item() == 1


@pytest.mark.parametrize("mix", [None, pairs(5)])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_slopes(name, mix):
    logits, labels = batch(5, dtype=torch.float64)
    config = LossConfig(name=name, class_balance=0.5)
    assert torch.autograd.gradcheck(lambda values: one_rank(config, values, labels, mix), logits)


def shares(config, logits, labels, cuts, mix_of):
    """Each simulated rank's value and gradient, and what it would have to sum over ranks."""
    loss = make_loss(config, ROWS, CLASSES, "cpu")
    bounds = list(zip([0, *cuts], [*cuts, len(labels)], strict=True))
    parts = [logits.detach()[start:end].requires_grad_() for start, end in bounds]
    sums, values = [], []

    def call(rank, reduce):
        start, end = bounds[rank]
        return loss(parts[rank], labels[start:end], mix_of(start, end), total=len(labels), sum_over_ranks=reduce)

    for rank in range(len(bounds)):  # first round: what everybody brings
        call(rank, lambda tensor: sums.append(tensor.clone()) or tensor)
    assert len(sums) == (len(bounds) if "f1" in config.name else 0)
    for rank in range(len(bounds)):
        value = call(rank, lambda tensor: tensor.copy_(torch.stack(sums).sum(0)))  # in place, as all_reduce does
        value.backward()
        values.append(value.detach())
    return torch.stack(values).sum(), torch.cat([part.grad for part in parts])


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("cuts", [[], [6], [2, 2], [0, 4, 10], [2, 8, 12]])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_ranks_has_the_same_loss_and_gradient(name, cuts, mixed):
    """Shares are uneven, and some ranks have none; partners are never parted."""
    logits, labels = batch(12)
    mix = pairs(12) if mixed else None
    config = LossConfig(name=name, class_balance=0.5)
    whole = one_rank(config, logits, labels, mix)
    whole.backward()
    value, gradient = shares(
        config, logits, labels, cuts, lambda start, end: mix and mix._replace(partners=pairs(end - start).partners)
    )
    assert value.item() == pytest.approx(whole.item(), abs=1e-6)
    assert torch.allclose(gradient, logits.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_samples_is_worth_nothing(name):
    logits = torch.zeros(0, CLASSES, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.int64)
    for mix in (None, Mix(0.5, np.zeros(0, np.int64), None)):
        loss = make_loss(LossConfig(name=name), ROWS, CLASSES, "cpu")
        for reduce in (None, lambda tensor: 2 * tensor):
            value = loss(logits, labels, mix, total=8, sum_over_ranks=reduce)
            value.backward()
            assert value.item() == 0
            assert logits.grad.shape == (0, CLASSES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_single(name, dtype):
    half, labels = batch(9, dtype=dtype)
    config = LossConfig(name=name)
    loss = one_rank(config, half, labels, pairs(9))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, one_rank(config, half.float(), labels, pairs(9)))
    loss.backward()
    assert half.grad.dtype == dtype


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    numbers=st.lists(st.sampled_from([0.0, -1e4, 1e4, 30.0]) | st.floats(-1e4, 1e4), min_size=16, max_size=16),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    gamma=st.sampled_from([0.0, 0.01, 0.5, 2.0, 10.0]),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_loss_and_gradient_are_finite(name, numbers, share, gamma, smoothing):
    logits = torch.tensor(numbers).reshape(4, CLASSES).requires_grad_()
    labels = torch.tensor([0, 1, 3, 3])
    loss = one_rank(LossConfig(name=name, gamma=gamma, label_smoothing=smoothing), logits, labels, pairs(4, share))
    loss.backward()
    assert loss.isfinite()
    assert loss >= -1e-6
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "hinge"}, r"--loss\.name must be one of .*got hinge"),
        ({"label_smoothing": 1.0}, r"--loss\.label_smoothing must be at least 0 and below 1, got 1\.0"),
        ({"label_smoothing": -0.1}, r"--loss\.label_smoothing"),
        ({"class_balance": 1.5}, r"--loss\.class_balance must be 0 to 1, got 1\.5"),
        ({"gamma": -1.0}, r"--loss\.gamma must be 0 to 10, got -1\.0"),
        ({"f1_share": 1.1}, r"--loss\.f1_share must be 0 to 1, got 1\.1"),
        ({"tau": float("nan")}, r"--loss\.tau must be 0 to 10, got nan"),
    ],
)
def test_options_out_of_range_name_themselves(changes, words):
    with pytest.raises(UsageError, match=words):
        LossConfig(**changes)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "soft_f1", "f1_focal", "logit_adjusted"])
def test_a_part_without_samples_that_was_to_be_mixed(name):
    """All of its samples may have been skipped; the partners are those of images that stay for their size only."""
    loss = make_loss(LossConfig(name=name), np.array([0, 1, 2]), 3, "cpu")
    logits = torch.zeros(0, 3, requires_grad=True)
    mix = Mix(0.3, np.array([1, 0]), None)
    value = loss(logits, torch.zeros(0, dtype=torch.int64), mix, total=8, sum_over_ranks=None)
    value.backward()
    assert float(value.detach()) == 0.0
