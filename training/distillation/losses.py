"""The formulas of distillation, as pure functions of tensors. In float64 they are exact to the papers.

k is the number of images, c that of classes. Student tensors carry gradients, teacher tensors none.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-12


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(t / T) ‖ softmax(s / T)) of each image.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.

    Args:
        student: Logits, float [k, c].
        teacher: Likewise.
        temperature: T, above 0.

    Returns:
        Float [k].
    """
    return temperature**2 * _divergence((teacher / temperature).log_softmax(1), (student / temperature).log_softmax(1))


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of each row; a class with p = 0 adds nothing."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1)


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, *, target: float, others: float
) -> Tensor:
    """T² (target · TCKD + others · NCKD) of each image.

    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7. TCKD is the divergence between
    (p_label, 1 - p_label) of teacher and student, NCKD that between their distributions over all other classes.

    Args:
        student: Logits, float [k, c].
        teacher: Likewise.
        labels: int64 [k]; the class that is decoupled.
        temperature: T, above 0.
        target: The paper's alpha.
        others: The paper's beta.

    Returns:
        Float [k].
    """
    own = torch.zeros_like(teacher, dtype=torch.bool).scatter_(1, labels[:, None], True)
    tckd, nckd = (
        _divergence(pick(teacher / temperature, own), pick(student / temperature, own))
        for pick in (_of_the_target, _of_the_others)
    )
    return temperature**2 * (target * tckd + others * nckd)


def _of_the_target(logits: Tensor, own: Tensor) -> Tensor:
    """Logarithms of (p_label, 1 - p_label): [k, 2]."""
    log_p = logits.log_softmax(1)
    label = log_p.masked_fill(~own, -torch.inf).logsumexp(1)
    return torch.stack([label, log_p.masked_fill(own, -torch.inf).logsumexp(1)], 1)


def _of_the_others(logits: Tensor, own: Tensor) -> Tensor:
    """Logarithms of the probabilities among the classes that are not the label: [k, c - 1]."""
    k, c = logits.shape
    return logits[~own].view(k, c - 1).log_softmax(1)


def dist(student: Tensor, teacher: Tensor, temperature: float, *, inter: float, intra: float) -> Tensor:
    """T² (inter · mean over images of 1 - r(rows) + intra · mean over classes of 1 - r(columns)).

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (DIST), NeurIPS 2022, equations 7 to 10: r is
    Pearson's correlation between the probabilities of student and teacher, within each image and within each class
    over the batch.

    Args:
        student: Logits of the whole batch, float [k, c].
        teacher: Likewise.
        temperature: T, above 0.
        inter: The paper's beta.
        intra: The paper's gamma.

    Returns:
        Scalar; 0 of no images.
    """
    if not len(student):
        return student.sum()
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    rows, columns = 1 - _correlation(p, q), 1 - _correlation(p.T, q.T)
    return temperature**2 * (inter * rows.mean() + intra * columns.mean())


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two matrices [n, m]: [n]; 0 where one does not vary."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-8)


def relational(student: Tensor, teacher: Tensor, *, distance: float, angle: float) -> Tensor:
    """Distance · Huber(distances) + angle · Huber(angles): how images lie to each other, not where.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 5 to 8: distances between the embeddings of
    all pairs of images, divided by their mean; and cosines of the angles of all triples.

    Args:
        student: Embeddings of the whole batch, float [k, d].
        teacher: Likewise, float [k, e].
        distance: Weight of the distances; the paper takes 25 to 1 of the loss of the labels.
        angle: Weight of the angles; the paper takes 50.

    Returns:
        Scalar: means over all pairs, and over all triples.
    """
    if len(student) < 2:
        return student.sum() * 0
    ours, theirs = _Pairs.of(student), _Pairs.of(teacher)
    distances, angles = (
        functional.smooth_l1_loss(relation(ours), relation(theirs)) for relation in (_distances, _angles)
    )
    return (distance * distances + angle * angles).to(student.dtype)


class _Pairs(NamedTuple):
    """Points, by pairs.

    Attributes:
        lengths: Float64 [k, k]; Euclidean distances.
        apart: bool [k, k]; whether they are not 0.
        products: Float64 [k, k]; of the points, from their middle.
    """

    lengths: Tensor
    apart: Tensor
    products: Tensor

    @classmethod
    def of(cls, points: Tensor) -> "_Pairs":
        """Of float [k, d]."""
        points = points.double()
        points = points - points.mean(0)
        products = points @ points.T
        squares = products.diagonal()[:, None] + products.diagonal()[None] - 2 * products
        apart = squares > EPSILON * products.diagonal().mean()
        # The slope of a root at 0 is infinite.
        return cls(torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0), apart, products)


def _distances(pairs: _Pairs) -> Tensor:
    """Distances divided by the mean of those that are not 0: [k, k]."""
    lengths, apart, _ = pairs
    return lengths / (lengths.sum() / apart.sum().clamp_min(1)).clamp_min(EPSILON)


def _angles(pairs: _Pairs) -> Tensor:
    """Cosine of the angle at point i between points j and l: [k, k, k]."""
    lengths, apart, products = pairs
    own = products.diagonal()
    # (p_j - p_i) · (p_l - p_i), from products of the points: their differences would take k² vectors of memory.
    steps = products[None] - products[:, :, None] - products[:, None, :] + own[:, None, None]
    both = apart[:, :, None] & apart[:, None, :]
    return torch.where(both, steps / torch.where(both, lengths[:, :, None] * lengths[:, None, :], 1.0), 0.0)


def feature(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance between the student's adapted features and the teacher's, these scaled to unit RMS.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3. The scaling, of each image, spares a
    weight that depends on the teacher's layer.

    Args:
        student: Float [k, …].
        teacher: Float, same shape.

    Returns:
        Float [k].
    """
    student, teacher = student.flatten(1), teacher.flatten(1)
    scaled = teacher / teacher.pow(2).mean(1, keepdim=True).sqrt().clamp_min(EPSILON)
    return (student - scaled).pow(2).mean(1)


def residual(assistant: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance between what the assistant says and what the student leaves out, of each image.

    Gao et al., "Residual Knowledge Distillation", arXiv 2002.09168, equation 2, on logits: the assistant learns
    teacher - student, and the student is not moved by it. A constant added to the logits of an image means nothing, so
    it is taken off both.

    Args:
        assistant: Logits, float [k, c].
        student: Likewise.
        teacher: Likewise.

    Returns:
        Float [k].
    """
    missing = teacher - student.detach()
    return (_centred(assistant) - _centred(missing)).pow(2).mean(1)


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)


def arcface_logits(cosines: Tensor, labels: Tensor, *, scale: float, margin: float) -> Tensor:
    """Scale · cos(θ + margin) for the label, scale · cos θ for the other classes.

    Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019, equation 3. Where
    θ + margin would pass π, the cosine goes on falling along a line (as the authors' code has it), so that a greater
    angle never costs less.

    Args:
        cosines: Float [k, c], between the embedding and the centre of each class.
        labels: int64 [k].
        scale: The paper's s.
        margin: The paper's m, in radians; above 2.3, a greater angle would cost less behind π - m.

    Returns:
        Float [k, c].
    """
    cos = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-7, 1 - 1e-7)
    shifted = cos * math.cos(margin) - (1 - cos * cos).sqrt() * math.sin(margin)
    straight = cos - math.sin(margin) * margin
    turned = torch.where(cos > math.cos(math.pi - margin), shifted, straight)
    return scale * cosines.scatter(1, labels[:, None], turned)


def combined(teachers: list[Tensor], weights: list[float], temperature: float) -> Tensor:
    """Logits of a committee: at the temperature, its distribution is the weighted mean of the teachers'.

    Args:
        teachers: Logits, float [k, c] each.
        weights: Their shares; they sum to 1.
        temperature: At which they are averaged.

    Returns:
        [k, c]; those of a single teacher as they are.
    """
    if len(teachers) == 1:
        return teachers[0]
    shares = torch.stack([(logits / temperature).log_softmax(1) for logits in teachers])
    logs = torch.tensor(weights, dtype=shares.dtype, device=shares.device).log()
    return temperature * (shares + logs[:, None, None]).logsumexp(0)


def best_of(teachers: list[Tensor], targets: Tensor) -> Tensor:
    """For each image the logits of the teacher with the smallest cross-entropy, the first of equals.

    Args:
        teachers: Logits, float [k, c] each.
        targets: Float [k, c]; probabilities.

    Returns:
        [k, c].
    """
    stacked = torch.stack(teachers)
    losses = -(targets * stacked.log_softmax(2)).sum(2)
    rows = torch.arange(stacked.shape[1], device=stacked.device)
    return stacked[losses.argmin(0), rows]
