"""The formulas of distillation against the papers: plain loops over floats, numbers worked out by hand, properties."""

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from training.distillation.losses import (
    arcface_logits,
    best_of,
    combined,
    dist,
    dkd,
    feature,
    kd,
    relational,
    residual,
)
from training.distillation.methods.alone import CosineHead
from training.engine.objective import gathered, share

IMAGES = 5
CLASSES = [2, 6, 9]
TEMPERATURES = [1.0, 4.0, 20.0]
ALPHA, BETA = 1.5, 8.0

golden = pytest.mark.parametrize("seed", range(3))
each_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)
each_width = pytest.mark.parametrize("classes", CLASSES)
each_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)
widths, temperatures = st.sampled_from(CLASSES), st.sampled_from(TEMPERATURES)


def normal(seed, *shape, scale=2.0):
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape))


def three(seed, classes, images=IMAGES):
    """Logits of a student and of a teacher, and labels."""
    random = np.random.default_rng(seed)
    student, teacher = (torch.from_numpy(2 * random.standard_normal((images, classes))) for _ in range(2))
    return student, teacher, torch.from_numpy(random.integers(classes, size=images))


@st.composite
def two_of_a_shape(draw, bound=60.0):
    """Logits that hypothesis may choose: ties, zeros and certainty among them."""
    numbers = arrays(np.float64, (draw(st.integers(1, 6)), draw(widths)), elements=st.floats(-bound, bound))
    return torch.from_numpy(draw(numbers)), torch.from_numpy(draw(numbers))


def close(found, expected, tolerance=1e-9):
    found = found.detach().numpy()
    assert found.shape == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# The papers once more, one number at a time.


def plain_softmax(row, temperature):
    top = max(row)
    powers = [math.exp((x - top) / temperature) for x in row]
    return [power / math.fsum(powers) for power in powers]


def plain_kl(p, q):
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def plain_kd(student, teacher, temperature):
    """Hinton 2015: soft targets, times T² for gradients of the same size at all T."""
    found = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        found.append(temperature**2 * plain_kl(plain_softmax(t, temperature), plain_softmax(s, temperature)))
    return found


def plain_dkd(student, teacher, labels, temperature, alpha, beta):
    """Zhao 2022, equation 7: alpha TCKD + beta NCKD, each times T²."""
    found = []
    for s, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = plain_softmax(t, temperature), plain_softmax(s, temperature)
        rest_p = math.fsum(x for c, x in enumerate(p) if c != label)
        rest_q = math.fsum(x for c, x in enumerate(q) if c != label)
        tckd = plain_kl([p[label], rest_p], [q[label], rest_q])
        nckd = 0.0
        for c in range(len(p)):
            if c != label:
                own, other = p[c] / rest_p, q[c] / rest_q
                nckd += own * math.log(own / other)
        found.append(temperature**2 * (alpha * tckd + beta * nckd))
    return found


def plain_pearson(a, b):
    mean_a, mean_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
    both = math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return both / math.sqrt(math.fsum((x - mean_a) ** 2 for x in a) * math.fsum((y - mean_b) ** 2 for y in b))


def plain_dist(student, teacher, temperature, inter, intra):
    """Huang 2022, equations 7 to 10."""
    p = [plain_softmax(row, temperature) for row in student.tolist()]
    q = [plain_softmax(row, temperature) for row in teacher.tolist()]
    images, classes = len(p), len(p[0])
    between = [1 - plain_pearson(p[i], q[i]) for i in range(images)]
    within = []
    for c in range(classes):
        within.append(1 - plain_pearson([p[i][c] for i in range(images)], [q[i][c] for i in range(images)]))
    return temperature**2 * (inter * math.fsum(between) / images + intra * math.fsum(within) / classes)


def plain_huber(x, y):
    apart = abs(x - y)
    return apart**2 / 2 if apart <= 1 else apart - 0.5


def plain_angle(points, i, j, k):
    """Cosine of the angle that j and k form at i; 0 where one of them is i, as normalising nothing gives nothing."""
    if i in (j, k):
        return 0.0
    to_j = [a - b for a, b in zip(points[j], points[i], strict=True)]
    to_k = [a - b for a, b in zip(points[k], points[i], strict=True)]
    return math.fsum(a * b for a, b in zip(to_j, to_k, strict=True)) / (math.hypot(*to_j) * math.hypot(*to_k))


def plain_relational(student, teacher, distance, angle):
    """Park 2019, equations 5 to 8, with the authors' means over all k² pairs and all k³ triples."""
    s, t = student.tolist(), teacher.tolist()
    images = range(len(s))
    mean_s, mean_t = (
        math.fsum(math.dist(x[i], x[j]) for i in images for j in images if i != j) / (len(x) * (len(x) - 1))
        for x in (s, t)
    )
    pairs, triples = 0.0, 0.0
    for i in images:
        for j in images:
            pairs += plain_huber(math.dist(s[i], s[j]) / mean_s, math.dist(t[i], t[j]) / mean_t)
            for k in images:
                triples += plain_huber(plain_angle(s, i, j, k), plain_angle(t, i, j, k))
    return distance * pairs / len(s) ** 2 + angle * triples / len(s) ** 3


def plain_feature(student, teacher):
    """FitNets: squared distance, here per number, to hints whose mean square is 1."""
    found = []
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        s, t = s.ravel().tolist(), t.ravel().tolist()
        size = math.sqrt(math.fsum(x * x for x in t) / len(t))
        found.append(math.fsum((x - y / size) ** 2 for x, y in zip(s, t, strict=True)) / len(t))
    return found


def plain_residual(assistant, student, teacher):
    """Gao 2020, equation 2, without what is common to all logits of an image."""
    found = []
    for a, s, t in zip(assistant.tolist(), student.tolist(), teacher.tolist(), strict=True):
        gap = [y - x for x, y in zip(s, t, strict=True)]
        mean_a, mean_gap = math.fsum(a) / len(a), math.fsum(gap) / len(gap)
        found.append(math.fsum((x - mean_a - (y - mean_gap)) ** 2 for x, y in zip(a, gap, strict=True)) / len(a))
    return found


def plain_arcface(angles, labels, scale, margin):
    """Deng 2019, equation 3, in angles; beyond π the line of the authors' code, cos θ - m sin(π - m)."""
    found = []
    for row, label in zip(angles.tolist(), labels.tolist(), strict=True):
        logits = [scale * math.cos(theta) for theta in row]
        own = row[label]
        line = math.cos(own) - margin * math.sin(math.pi - margin)
        logits[label] = scale * (math.cos(own + margin) if own + margin < math.pi else line)
        found.append(logits)
    return found


def plain_combined(teachers, weights, temperature):
    found = []
    for rows in zip(*(logits.tolist() for logits in teachers), strict=True):
        opinions = [plain_softmax(row, temperature) for row in rows]
        mean = [math.fsum(w * p[c] for w, p in zip(weights, opinions, strict=True)) for c in range(len(rows[0]))]
        found.append([temperature * math.log(p) for p in mean])
    return found


def plain_best_of(teachers, targets):
    found = []
    for target, *rows in zip(targets.tolist(), *(logits.tolist() for logits in teachers), strict=True):
        best, least = None, math.inf
        for row in rows:
            loss = -math.fsum(t * math.log(p) for t, p in zip(target, plain_softmax(row, 1.0), strict=True))
            if loss < least:
                best, least = row, loss
        found.append(best)
    return found


class TestThePapers:
    @golden
    @each_width
    @each_temperature
    def test_kd(self, seed, classes, temperature):
        student, teacher, _ = three(seed, classes)
        close(kd(student, teacher, temperature), plain_kd(student, teacher, temperature))

    @golden
    @each_width
    @each_temperature
    def test_dkd(self, seed, classes, temperature):
        student, teacher, labels = three(seed, classes)
        found = dkd(student, teacher, labels, temperature, target=ALPHA, others=BETA)
        close(found, plain_dkd(student, teacher, labels, temperature, ALPHA, BETA))

    @golden
    @each_width
    @each_temperature
    def test_dist(self, seed, classes, temperature):
        student, teacher, _ = three(seed, classes)
        found = dist(student, teacher, temperature, inter=2.0, intra=3.0)
        close(found, plain_dist(student, teacher, temperature, 2.0, 3.0))

    @golden
    @pytest.mark.parametrize("images", [2, 3, 7])
    @pytest.mark.parametrize(("distance", "angle"), [(25.0, 0.0), (0.0, 50.0), (25.0, 50.0)])
    def test_relational(self, seed, images, distance, angle):
        student, teacher = normal(seed, images, 4), normal(seed + 100, images, 9)  # the widths may differ
        found = relational(student, teacher, distance=distance, angle=angle)
        close(found, plain_relational(student, teacher, distance, angle))

    @golden
    @pytest.mark.parametrize("shape", [(6,), (3, 4, 2)])
    def test_feature(self, seed, shape):
        student, teacher = normal(seed, IMAGES, *shape), normal(seed + 100, IMAGES, *shape, scale=30.0)
        close(feature(student, teacher), plain_feature(student, teacher))

    @golden
    @each_width
    def test_residual(self, seed, classes):
        student, teacher, _ = three(seed, classes)
        assistant = normal(seed + 100, IMAGES, classes)
        close(residual(assistant, student, teacher), plain_residual(assistant, student, teacher))

    @golden
    @each_width
    @pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, 1.5])
    def test_arcface(self, seed, classes, margin):
        random = np.random.default_rng(seed)
        angles = torch.from_numpy(random.uniform(0.01, math.pi - 0.01, (40, classes)))
        labels = torch.from_numpy(random.integers(classes, size=40))
        if margin:
            labelled = angles[torch.arange(40), labels] + margin
            assert (labelled < math.pi).any(), "no label before π"
            assert (labelled > math.pi).any(), "no label behind π"
        found = arcface_logits(angles.cos(), labels, scale=64.0, margin=margin)
        close(found, plain_arcface(angles, labels, 64.0, margin))

    @golden
    @each_width
    @each_temperature
    def test_combined(self, seed, classes, temperature):
        teachers = [normal(seed + 100 * n, IMAGES, classes) for n in range(3)]
        found = combined(teachers, [0.5, 0.2, 0.3], temperature)
        close(found, plain_combined(teachers, [0.5, 0.2, 0.3], temperature))

    @golden
    @each_width
    @pytest.mark.parametrize("soft", [False, True])
    def test_best_of(self, seed, classes, soft):
        random = np.random.default_rng(seed)
        teachers = [normal(seed + 100 * n, 30, classes) for n in range(3)]
        targets = random.dirichlet(np.ones(classes), 30) if soft else np.eye(classes)[random.integers(classes, size=30)]
        targets = torch.from_numpy(targets)
        found = best_of(teachers, targets)
        close(found, plain_best_of(teachers, targets), 0)
        assert not any(torch.equal(found, logits) for logits in teachers), "one teacher is best at everything"

    def test_float32_is_as_good_as_it_can_be(self):
        student, teacher, labels = three(0, 9)
        for formula in (
            lambda s, t: kd(s, t, 4.0),
            lambda s, t: dkd(s, t, labels, 4.0, target=ALPHA, others=BETA),
            lambda s, t: dist(s, t, 4.0, inter=1.0, intra=1.0),
            lambda s, t: relational(s, t, distance=25.0, angle=50.0),
            feature,
        ):
            found = formula(student.float(), teacher.float())
            assert found.dtype == torch.float32
            close(found.double(), formula(student, teacher).numpy(), 1e-4)


class TestByHand:
    @pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.13081203594113697), (2.0, 0.5232481437645479)])
    def test_kd(self, temperature, expected):
        # Teacher (3/4, 1/4) at its temperature, student (1/2, 1/2):
        # 3/4 ln(3/2) + 1/4 ln(1/2) = 0.3040988 - 0.1732868 = 0.1308120; at T = 2 four times that.
        teacher = torch.tensor([[temperature * math.log(3), 0.0]], dtype=torch.float64)
        close(kd(torch.zeros_like(teacher), teacher, temperature), [expected], 1e-12)

    def test_kd_at_the_same_logits_but_twice_the_temperature(self):
        # ln 9 over 2 is ln 3: the numbers of T = 1 above, times 4. At T = 1 they would be
        # 9/10 ln(9/5) + 1/10 ln(1/5) = 0.5290080 - 0.1609438 = 0.3680642.
        teacher = torch.tensor([[math.log(9), 0.0]], dtype=torch.float64)
        close(kd(torch.zeros_like(teacher), teacher, 2.0), [0.5232481437645479], 1e-12)
        close(kd(torch.zeros_like(teacher), teacher, 1.0), [0.36806420716849377], 1e-12)

    def test_dkd(self):
        # Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), label 0.
        # TCKD of (1/2, 1/2) and (1/4, 3/4): 1/2 ln 2 + 1/2 ln(2/3) = 0.3465736 - 0.2027326 = 0.1438410.
        # NCKD of (1/2, 1/2) and (1/3, 2/3): 1/2 ln(3/2) + 1/2 ln(3/4) = 0.2027326 - 0.1438410 = 0.0588915.
        # 1 TCKD + 8 NCKD = 0.1438410 + 0.4711321 = 0.6149732.
        teacher = torch.tensor([[1 / 2, 1 / 4, 1 / 4]], dtype=torch.float64).log()
        student = torch.tensor([[1 / 4, 1 / 4, 1 / 2]], dtype=torch.float64).log()
        label = torch.tensor([0])
        close(dkd(student, teacher, label, 1.0, target=1.0, others=0.0), [0.14384103622589045], 1e-12)
        close(dkd(student, teacher, label, 1.0, target=0.0, others=1.0), [0.058891517828191436], 1e-12)
        close(dkd(student, teacher, label, 1.0, target=1.0, others=8.0), [0.6149731788514219], 1e-12)

    def test_dist_of_images(self):
        # Deviations from 1/3, in sixths: teacher (1, 0, -1), student (1, -1, 0), so r = 1 / 2 for both images, and
        # 1 - r = 1/2. No class varies over the images: r = 0, 1 - r = 1. At T = 2: 4 (10 * 1/2 + 1) = 24.
        teacher = 2 * torch.tensor([[1 / 2, 1 / 3, 1 / 6]] * 2, dtype=torch.float64).log()
        student = 2 * torch.tensor([[1 / 2, 1 / 6, 1 / 3]] * 2, dtype=torch.float64).log()
        close(dist(student, teacher, 2.0, inter=10.0, intra=1.0), 24.0, 1e-12)

    def test_dist_of_classes(self):
        # Of two numbers r is the sign of (slope times slope). Within the images: both fall, then the teacher rises
        # where the student falls: 1 - r = 0 and 2, mean 1. Over the images both classes of both go the same way: 0.
        teacher = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64).log()
        student = torch.tensor([[0.9, 0.1], [0.6, 0.4]], dtype=torch.float64).log()
        close(dist(student, teacher, 1.0, inter=1.0, intra=0.0), 1.0, 1e-12)
        close(dist(student, teacher, 1.0, inter=0.0, intra=1.0), 0.0, 1e-12)

    def test_relational(self):
        # Student: legs 3 and 4, hypotenuse 5, mean 4: 3/4, 1, 5/4. Teacher: 0, 1, 3 on a line: 1, 3, 2, mean 2:
        # 1/2, 3/2, 1. Apart by 1/4, 1/2, 1/4: halved squares 1/32 + 1/8 + 1/32 = 3/16; twice that over 9 is 1/24.
        # Cosines at the corners: 0, 3/5, 4/5 and 1, -1, 1. Apart by 1, 8/5, 1/5: Huber 1/2 + 11/10 + 1/50 = 81/50;
        # twice that over 27 is 3/25. The triples with two corners the same agree.
        student = torch.tensor([[0, 0], [3, 0], [0, 4]], dtype=torch.float64)
        teacher = torch.tensor([[0], [1], [3]], dtype=torch.float64)
        close(relational(student, teacher, distance=1.0, angle=0.0), 1 / 24, 1e-12)
        close(relational(student, teacher, distance=0.0, angle=1.0), 3 / 25, 1e-12)
        close(relational(student, teacher, distance=24.0, angle=25.0), 4.0, 1e-12)

    def test_feature(self):
        # (3, 4) has a mean square of 25/2; over its root it is (3, 4) √2/5, with mean 7√2/10 and mean square 1.
        # From (1, 1): 1 - 2 * 7√2/10 + 1 = 0.0201010; from (0, 0): 1.
        student = torch.tensor([[1, 1], [0, 0]], dtype=torch.float64)
        teacher = torch.tensor([[3, 4], [3, 4]], dtype=torch.float64)
        close(feature(student, teacher), [0.02010101267766693, 1.0], 1e-12)

    def test_residual(self):
        # Missing is (2, 0, 1), centred (1, -1, 0). From an assistant that says nothing (1 + 1 + 0) / 3; from
        # (6, 4, 5), which is centred the same, 0.
        assistant = torch.tensor([[0, 0, 0], [6, 4, 5]], dtype=torch.float64)
        student, teacher = torch.ones(2, 3, dtype=torch.float64), torch.tensor([[3.0, 1, 2]] * 2, dtype=torch.float64)
        close(residual(assistant, student, teacher), [2 / 3, 0], 1e-12)

    def test_arcface(self):
        # θ with cosine 3/5 and sine 4/5; margin π/6, cosine √3/2 and sine 1/2: 3/5 √3/2 - 4/5 1/2 = 0.1196152.
        # A cosine of -0.95 is below that of π - π/6, -0.8660254: -0.95 - 1/2 π/6 = -1.2117994.
        cosines = torch.tensor([[0.6, 0.1, -0.2], [0.3, -0.95, 0.4]], dtype=torch.float64)
        found = arcface_logits(cosines, torch.tensor([0, 1]), scale=64.0, margin=math.pi / 6)
        close(found, [[7.655375505322443, 6.4, -12.8], [19.2, -77.55516081914556, 25.6]], 1e-12)

    def test_combined(self):
        # 3/4 (3/4, 1/4) + 1/4 (1/4, 3/4) = (5/8, 3/8): at T = 2 the logits are apart by 2 ln(5/3) = 1.0216512.
        first = 2 * torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
        found = combined([first, first.flip(1)], [0.75, 0.25], 2.0)
        close(found[:, 0] - found[:, 1], [1.0216512475319814], 1e-12)

    def test_best_of(self):
        # Of images of class 0 and 1: the first teacher is surer of 0, the second of 1.
        first = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
        second = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        assert best_of([first, second], torch.eye(2)).tolist() == [[3.0, 0.0], [0.0, 1.0]]

    def test_best_of_equals_is_the_first(self):
        # Halves of both classes: as far from (1, 0) as from (0, 1).
        first, halves = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
        assert best_of([first, first.flip(1)], halves).tolist() == [[1.0, 0.0]]
        assert best_of([first.flip(1), first], halves).tolist() == [[0.0, 1.0]]


class TestDivergences:
    @few
    @given(two_of_a_shape(), temperatures)
    def test_kd_is_0_at_the_teacher_and_never_less(self, logits, temperature):
        student, teacher = logits
        assert kd(student, teacher, temperature).min() >= -1e-9
        assert kd(teacher, teacher, temperature).abs().max() <= 1e-9

    @few
    @given(two_of_a_shape(), temperatures, st.data())
    def test_dkd_is_0_at_the_teacher_and_never_less(self, logits, temperature, data):
        student, teacher = logits
        images, classes = student.shape
        labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images)))
        for weights in ({"target": 1.0, "others": 0.0}, {"target": 0.0, "others": 1.0}):
            assert dkd(student, teacher, labels, temperature, **weights).min() >= -1e-9
            assert dkd(teacher, teacher, labels, temperature, **weights).abs().max() <= 1e-9

    @few
    @given(two_of_a_shape(), temperatures)
    def test_dist_is_never_less_than_0_nor_more_than_2_of_each(self, logits, temperature):
        for weights in ({"inter": 1.0, "intra": 0.0}, {"inter": 0.0, "intra": 1.0}):
            assert -1e-9 <= dist(*logits, temperature, **weights) / temperature**2 <= 2 + 1e-9

    @few
    @given(seeds, widths, temperatures)
    def test_dist_is_0_at_the_teacher(self, seed, classes, temperature):
        # An opinion on each image: what does not vary has no correlation, not even with itself.
        noise = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (12, classes)))
        teacher = noise + 3 * torch.eye(classes, dtype=torch.float64)[torch.arange(12) % classes]
        assert abs(dist(teacher, teacher, temperature, inter=1.0, intra=1.0)) <= 1e-9 * temperature**2
        # A linear match is enough, as the paper wants it: halfway to knowing nothing, the relations are the same.
        halfway = temperature * ((teacher / temperature).softmax(1) + 1 / classes).log()
        assert abs(dist(halfway, teacher, temperature, inter=1.0, intra=1.0)) <= 1e-9 * temperature**2
        assert dist(-teacher, teacher, temperature, inter=1.0, intra=1.0) > temperature**2

    @few
    @given(seeds, st.integers(2, 7))
    def test_relational_is_0_at_the_teacher_and_more_elsewhere(self, seed, images):
        student, teacher = normal(seed, images, 4), normal(seed + 1, images, 5)
        for weights in ({"distance": 1.0, "angle": 0.0}, {"distance": 0.0, "angle": 1.0}):
            assert relational(teacher, teacher, **weights) == 0
            # Two points have but one distance and no angle.
            assert images == 2 or relational(student, teacher, **weights) > 0

    @few
    @given(seeds, st.floats(1e-3, 1e3))
    def test_feature_is_0_at_the_teacher_whatever_its_scale(self, seed, scale):
        teacher = normal(seed, IMAGES, 3, 2, 2)
        unit = teacher / teacher.pow(2).mean((1, 2, 3), keepdim=True).sqrt()
        assert feature(unit, scale * teacher).abs().max() <= 1e-12
        assert feature(2 * unit, scale * teacher).numpy() == pytest.approx(1.0)

    def test_feature_of_a_layer_that_is_silent(self):
        """Activations may all be 0, and have no scale."""
        assert feature(torch.full((2, 4), 3.0), torch.zeros(2, 4)).tolist() == [9.0, 9.0]

    @few
    @given(seeds, widths)
    def test_residual_is_0_where_the_assistant_says_what_is_missing(self, seed, classes):
        student, teacher, _ = three(seed, classes)
        shift = normal(seed + 1, IMAGES, 1)
        assert residual(teacher - student + shift, student, teacher).max() <= 1e-12
        assert residual(normal(seed + 2, IMAGES, classes), student, teacher).min() > 0


@few
@given(two_of_a_shape(), temperatures, st.floats(-100, 100))
def test_kd_knows_no_constants(logits, temperature, constant):
    student, teacher = logits
    shifts = constant * torch.arange(1, len(student) + 1, dtype=torch.float64)[:, None]
    expected = kd(student, teacher, temperature).numpy()
    close(kd(student + shifts, teacher, temperature), expected, 1e-8)
    close(kd(student, teacher - shifts, temperature), expected, 1e-8)


@few
@given(seeds, widths)
def test_decoupled_with_the_weights_of_the_teacher_is_kd(seed, classes):
    """The paper's equation 6: KD = TCKD + (1 - p_t) NCKD, at T = 1 for each image with the teacher's own p_t."""
    student, teacher, labels = three(seed, classes)
    expected = kd(student, teacher, 1.0)
    for i in range(IMAGES):
        others = 1 - teacher[i].softmax(0)[labels[i]].item()
        one = slice(i, i + 1)
        close(dkd(student[one], teacher[one], labels[one], 1.0, target=1.0, others=others), expected[one].numpy())


@few
@given(two_of_a_shape(bound=8.0), temperatures, st.data())
def test_dist_knows_no_order_of_images_and_classes(logits, temperature, data):
    images, classes = (data.draw(st.permutations(range(size))) for size in logits[0].shape)
    moved = [tensor[images][:, classes] for tensor in logits]
    # Not exact: what is left of a class that hardly varies is rounding.
    expected = dist(*logits, temperature, inter=1.0, intra=2.0).numpy()
    close(dist(*moved, temperature, inter=1.0, intra=2.0), expected, 1e-7)


def test_dist_knows_the_order_of_classes_of_the_student_alone():
    student, teacher, _ = three(0, 6)
    moved = dist(student.roll(1, 1), teacher, 4.0, inter=1.0, intra=1.0)
    assert abs(moved - dist(student, teacher, 4.0, inter=1.0, intra=1.0)) > 1e-2


@few
@given(seeds, st.floats(1e-2, 1e2), st.floats(-10, 10), st.sampled_from([(1.0, 0.0), (0.0, 1.0)]))
def test_relational_knows_no_place_scale_or_direction(seed, scale, shift, weights):
    student, teacher = normal(seed, 6, 4), normal(seed + 1, 6, 5)
    distance, angle = weights
    rotation = torch.linalg.qr(normal(seed + 2, 4, 4)).Q
    expected = relational(student, teacher, distance=distance, angle=angle).numpy()
    for moved in (student @ rotation, student + shift, scale * student, scale * student @ rotation + shift):
        close(relational(moved, teacher, distance=distance, angle=angle), expected, 1e-8)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("weights", [{"distance": 1.0, "angle": 0.0}, {"distance": 0.0, "angle": 1.0}])
def test_relational_knows_no_extremes(scale, weights):
    """What counts as no distance at all depends on the size of the others."""
    student, teacher = normal(0, 6, 4), normal(1, 6, 5)
    close(relational(scale * student, teacher, **weights), relational(student, teacher, **weights).numpy())
    close(relational(student, scale * teacher, **weights), relational(student, teacher, **weights).numpy())


@pytest.mark.parametrize(("origin", "gap"), [(1e6, 1.0), (0.0, 1e-3)], ids=["far from the origin", "near twins"])
@pytest.mark.parametrize(("distance", "angle"), [(1.0, 0.0), (0.0, 1.0)])
def test_relational_does_not_lose_small_distances(origin, gap, distance, angle):
    """Float32 is exact for these points, and not at all for differences of their squares."""
    student, teacher = ((normal(seed, 6, 4) + origin).float() for seed in range(2))
    student[1] = student[0] + gap
    expected = plain_relational(student, teacher, distance, angle)
    close(relational(student, teacher, distance=distance, angle=angle), expected, 1e-6)


@pytest.mark.parametrize("weights", [{"distance": 1.0, "angle": 0.0}, {"distance": 0.0, "angle": 1.0}])
def test_relational_knows_a_stretched_axis(weights):
    student, teacher = normal(0, 6, 4), normal(1, 6, 5)
    stretched = student * torch.tensor([5.0, 1, 1, 1], dtype=torch.float64)
    assert abs(relational(stretched, teacher, **weights) - relational(student, teacher, **weights)) > 1e-3


def test_residual_moves_the_assistant_and_not_the_student():
    student, teacher, _ = three(0, 6)
    assistant = normal(7, IMAGES, 6).requires_grad_()
    loss = residual(assistant, student.requires_grad_(), teacher).sum()
    to_assistant, to_student = torch.autograd.grad(loss, [assistant, student], allow_unused=True)
    assert to_assistant.abs().min() > 0
    assert to_student is None


class TestArcFace:
    @few
    @given(seeds, widths, st.floats(0.1, 64))
    def test_no_margin_is_a_scale(self, seed, classes, scale):
        random = np.random.default_rng(seed)
        cosines = torch.from_numpy(random.uniform(-0.999, 0.999, (IMAGES, classes)))
        labels = torch.from_numpy(random.integers(classes, size=IMAGES))
        close(arcface_logits(cosines, labels, scale=scale, margin=0.0), scale * cosines.numpy(), 1e-12)

    @few
    @given(st.floats(0, 1.5), st.floats(0.01, 3.12), st.floats(0.01, 3.12))
    def test_a_greater_angle_has_a_smaller_logit(self, margin, one, other):
        assume(abs(one - other) > 1e-3)
        angles = torch.tensor([[min(one, other)], [max(one, other)]], dtype=torch.float64)
        small, large = arcface_logits(angles.cos(), torch.tensor([0, 0]), scale=1.0, margin=margin)[:, 0]
        assert small > large

    @pytest.mark.parametrize("margin", [0.1, 0.5, 1.5])
    def test_it_falls_through_the_seam(self, margin):
        """From just before π to just behind: random angles are seldom so close."""
        angles = torch.linspace(math.pi - margin - 1e-4, math.pi - margin + 1e-4, 200, dtype=torch.float64)[:, None]
        labels = torch.zeros(200, dtype=torch.int64)
        found = arcface_logits(angles.cos(), labels, scale=1.0, margin=margin)
        close(found, plain_arcface(angles, labels, 1.0, margin))
        assert (found[1:, 0] < found[:-1, 0]).all()

    @few
    @given(st.floats(0.01, 1.5), st.floats(0.01, 3.12))
    def test_a_margin_costs(self, margin, angle):
        cosines = torch.tensor([[math.cos(angle)] * 2], dtype=torch.float64)
        label, other = arcface_logits(cosines, torch.tensor([0]), scale=64.0, margin=margin)[0].tolist()
        assert label < other

    @each_precision
    @pytest.mark.parametrize("margin", [0.0, 0.5])
    def test_both_ends_are_finite(self, dtype, margin):
        """The slope of a sine of cosines is infinite at 0 and at π."""
        cosines = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1 - 1e-6, 1.0]], dtype=dtype, requires_grad=True)
        found = arcface_logits(cosines, torch.tensor([0, 0, 0]), scale=64.0, margin=margin)
        (slope,) = torch.autograd.grad(found.sum(), cosines)
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert slope.isfinite().all()
        assert slope[2, 0] > 1  # clamping the cosine must not stop what is only nearly right

    @few
    @given(seeds, widths, st.floats(0, 100))
    def test_no_embedding_is_near_to_all_centres(self, seed, classes, common):
        """Else all could turn the same way, where a margin costs next to nothing, and classes are one."""
        head = CosineHead(5, classes)
        with torch.no_grad():
            head.centres.copy_(normal(seed, classes, 5) + common)
        embeddings = (normal(seed + 1, IMAGES, 5) + common).float()
        found = head(embeddings)
        rows, centres = embeddings.double().numpy(), head.centres.detach().double().numpy()
        centres -= centres.mean(0)
        lengths = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(centres, axis=1)
        close(found, rows @ centres.T / lengths, 1e-4)
        assert (found.min(1).values < 1e-4).all()


class TestCommittees:
    @few
    @given(seeds, widths, temperatures, st.lists(st.floats(0.05, 1), min_size=2, max_size=4))
    def test_at_the_temperature_probabilities_are_averaged(self, seed, classes, temperature, weights):
        weights = [weight / sum(weights) for weight in weights]
        teachers = [normal(seed + n, IMAGES, classes) for n in range(len(weights))]
        expected = sum(
            weight * (logits / temperature).softmax(1) for weight, logits in zip(weights, teachers, strict=True)
        )
        close((combined(teachers, weights, temperature) / temperature).softmax(1), expected.numpy(), 1e-12)

    @few
    @given(two_of_a_shape(), temperatures, st.floats(0.01, 0.99))
    def test_equal_teachers_are_one(self, logits, temperature, weight):
        teacher, _ = logits
        found = combined([teacher, teacher], [weight, 1 - weight], temperature) - teacher
        close(found, (found[:, :1]).expand_as(found).numpy(), 1e-9)

    def test_one_teacher_is_itself(self):
        teacher = normal(0, IMAGES, 6)
        assert combined([teacher], [1.0], 4.0) is teacher

    def test_a_teacher_without_weight_has_no_say(self):
        first, second = normal(0, IMAGES, 6), normal(1, IMAGES, 6)
        close(combined([first, second], [1.0, 0.0], 4.0), (4 * (first / 4).log_softmax(1)).numpy())

    @each_precision
    def test_sure_teachers_that_disagree(self, dtype):
        """Half of the mass on each, and no logarithm of 0."""
        first = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype)
        found = combined([first, first[:, [1, 0, 2]]], [0.5, 0.5], 1.0)
        assert found.isfinite().all()
        close(found.softmax(1), [[0.5, 0.5, 0.0]], 1e-6)

    @few
    @given(seeds, widths, st.integers(1, 4))
    def test_the_best_has_the_least_cross_entropy(self, seed, classes, count):
        teachers = [normal(seed + n, 8, classes) for n in range(count)]
        targets = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(classes), 8))
        losses = [torch.nn.functional.cross_entropy(logits, targets, reduction="none") for logits in teachers]
        found = torch.nn.functional.cross_entropy(best_of(teachers, targets), targets, reduction="none")
        close(found, torch.stack(losses).amin(0).numpy(), 1e-12)


def leaf(tensor):
    return tensor.clone().requires_grad_()


class TestGradients:
    @each_temperature
    @each_width
    def test_kd(self, classes, temperature):
        student, teacher, _ = three(0, classes)
        assert torch.autograd.gradcheck(lambda s: kd(s, teacher, temperature), leaf(student))

    @each_temperature
    @each_width
    def test_dkd(self, classes, temperature):
        student, teacher, labels = three(0, classes)

        def formula(logits):
            return dkd(logits, teacher, labels, temperature, target=ALPHA, others=BETA)

        assert torch.autograd.gradcheck(formula, leaf(student))

    @each_temperature
    @each_width
    def test_dist(self, classes, temperature):
        student, teacher, _ = three(0, classes)
        assert torch.autograd.gradcheck(lambda s: dist(s, teacher, temperature, inter=2.0, intra=3.0), leaf(student))

    @pytest.mark.parametrize(("distance", "angle"), [(25.0, 0.0), (0.0, 50.0)])
    def test_relational(self, distance, angle):
        teacher = normal(1, 6, 5)
        student = leaf(normal(0, 6, 4))
        assert torch.autograd.gradcheck(lambda s: relational(s, teacher, distance=distance, angle=angle), student)

    def test_feature(self):
        teacher = normal(1, IMAGES, 3, 2)
        assert torch.autograd.gradcheck(lambda s: feature(s, teacher), leaf(normal(0, IMAGES, 3, 2)))

    @pytest.mark.parametrize("margin", [0.0, 0.5])
    def test_arcface(self, margin):
        cosines = torch.linspace(-0.97, 0.96, 24, dtype=torch.float64).view(8, 3)
        labels = torch.arange(8) % 3
        assert torch.autograd.gradcheck(lambda c: arcface_logits(c, labels, scale=8.0, margin=margin), leaf(cosines))

    @each_precision
    @pytest.mark.parametrize("embeddings", ["student", "teacher", "both"])
    @pytest.mark.parametrize(("distance", "angle"), [(1.0, 0.0), (0.0, 1.0)])
    def test_relational_of_twins_is_finite(self, dtype, embeddings, distance, angle):
        """The slope of a distance is infinite where there is none, and a twin has no direction."""
        student, teacher = normal(0, 6, 4).to(dtype), normal(1, 6, 5).to(dtype)
        if embeddings in ("student", "both"):
            student[3] = student[1]
        if embeddings in ("teacher", "both"):
            teacher[3] = teacher[1]
        student.requires_grad_()
        loss = relational(student, teacher, distance=distance, angle=angle)
        (slope,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert slope.isfinite().all()
        # Without twins it is 0.02; a direction made of rounding would have a slope of 1e10.
        assert 0 < slope.abs().max() < 1

    @each_precision
    def test_relational_of_a_collapsed_student_is_finite(self, dtype):
        student = torch.ones(4, 3, dtype=dtype, requires_grad=True)
        loss = relational(student, normal(1, 4, 5).to(dtype), distance=1.0, angle=1.0)
        (slope,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert loss > 0
        assert slope.isfinite().all()

    @each_precision
    @each_temperature
    @pytest.mark.parametrize("student", [1.0, 0.0, -1.0], ids=["agrees", "does not know", "contradicts"])
    def test_a_sure_teacher_gives_no_nan(self, dtype, temperature, student):
        """Logits of ±1e4: all other probabilities are 0, and their logarithms must not meet that 0."""
        labels = torch.tensor([0, 2, 1])
        teacher = torch.full((3, 3), -1e4, dtype=dtype).scatter(1, labels[:, None], 1e4)
        for formula in (
            lambda s: kd(s, teacher, temperature).sum(),
            lambda s: dkd(s, teacher, labels, temperature, target=ALPHA, others=BETA).sum(),
            lambda s: dkd(s, teacher, labels.roll(1), temperature, target=ALPHA, others=BETA).sum(),
            lambda s: dist(s, teacher, temperature, inter=1.0, intra=1.0),
        ):
            logits = leaf(student * teacher)
            loss = formula(logits)
            (slope,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite()
            assert slope.isfinite().all()
            assert abs(loss) < 1e-4 if student == 1 else loss > 0.5

    @each_precision
    def test_of_a_sure_teacher_kd_is_the_cross_entropy(self, dtype):
        student, labels = normal(0, 4, 6).to(dtype), torch.tensor([5, 0, 3, 3])
        teacher = torch.full((4, 6), -1e4, dtype=dtype).scatter(1, labels[:, None], 1e4)
        expected = torch.nn.functional.cross_entropy(student, labels, reduction="none").numpy()
        close(kd(student, teacher, 1.0), expected, 1e-6)
        # What it thinks of the other classes is left to NCKD.
        close(dkd(student, teacher, labels, 1.0, target=1.0, others=0.0), expected, 1e-5)

    def test_classes_that_a_teacher_rules_out(self):
        """Logits of -inf, as of a teacher without some classes: 0 ln 0 is 0."""
        student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        teacher = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64)
        loss = kd(student, teacher, 1.0)
        close(loss, [math.log(3 / 2)])  # 2 * 1/2 ln((1/2) / (1/3))
        (slope,) = torch.autograd.grad(loss.sum(), student)
        close(slope, [[-1 / 6, -1 / 6, 1 / 3]])  # 1/3 - p


class TestFewImages:
    """A process may get no image of a batch, or one."""

    def test_dist_of_none(self):
        student = torch.zeros(0, 6, requires_grad=True)
        loss = dist(student, torch.zeros(0, 6), 4.0, inter=1.0, intra=1.0)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, student)[0].shape == (0, 6)

    @pytest.mark.parametrize("images", [0, 1])
    def test_relational_of_none_and_one(self, images):
        student = torch.ones(images, 4, requires_grad=True)
        loss = relational(student, torch.ones(images, 5), distance=25.0, angle=50.0)
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, student)[0].any()

    def test_the_others_of_none(self):
        none, labels = torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)
        assert kd(none, none, 4.0).shape == (0,)
        assert dkd(none, none, labels, 4.0, target=1.0, others=8.0).shape == (0,)
        assert feature(none, none).shape == (0,)
        assert residual(none, none, none).shape == (0,)
        assert arcface_logits(none, labels, scale=64.0, margin=0.5).shape == (0, 6)
        assert combined([none, none], [0.5, 0.5], 4.0).shape == (0, 6)
        assert best_of([none, none], none).shape == (0, 6)


class Processes:
    """Threads that play the processes of a run: `gather` waits for all, as they wait for each other."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count, timeout=30)
        self.slots = [None] * count

    def run(self, work):
        results = [None] * len(self.slots)

        def one(rank):
            try:
                results[rank] = work(Process(self, rank))
            except BaseException as error:
                results[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(self.slots))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, threading.BrokenBarrierError):
                raise result
        return results


class Process:
    """What `gathered` and `share` know of accelerate.Accelerator."""

    def __init__(self, processes, rank):
        self.processes, self.process_index, self.num_processes = processes, rank, len(processes.slots)

    def gather(self, tensor):
        assert tensor.numel(), "not every backend takes nothing"
        self.processes.slots[self.process_index] = tensor.detach().clone()  # collectives carry no gradient
        self.processes.barrier.wait()
        slots = list(self.processes.slots)
        self.processes.barrier.wait()
        assert len({slot.shape for slot in slots}) == 1, "collectives take equal shapes only"
        return torch.cat(slots)


class TestProcesses:
    def test_of_one_process_nothing_is_gathered(self):
        values = normal(0, 3, 4).requires_grad_()
        (found,) = Processes(1).run(lambda process: gathered(process, values))
        assert found is values

    @pytest.mark.parametrize("counts", [(3, 3), (1, 4, 2), (0, 3), (3, 0), (0, 0)])
    def test_all_see_all_rows_in_order(self, counts):
        whole = normal(0, sum(counts), 4, 2)
        parts = whole.split(counts)
        for found in Processes(len(counts)).run(lambda process: gathered(process, parts[process.process_index])):
            assert torch.equal(found, whole)

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_a_share_is_a_part_of_the_value_and_all_of_the_gradient(self, count):
        weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        part = share(Process(Processes(count), 0), weight**2)
        assert part.item() == pytest.approx(9 / count)
        assert torch.autograd.grad(part, weight)[0].item() == 6

    @pytest.mark.parametrize("counts", [(4, 3), (1, 4, 2), (0, 7)])
    @pytest.mark.parametrize("formula", ["dist", "relational"])
    def test_shares_of_a_batch_sum_up_to_it(self, counts, formula):
        """A network of one layer, of which each process sees some images: value and gradient are those of the whole."""
        images, teacher, weights = normal(0, 7, 5), normal(1, 7, 6), normal(2, 5, 6, scale=0.5)

        def loss_of(student, teacher):
            if formula == "dist":
                return dist(student, teacher, 4.0, inter=1.0, intra=2.0)
            return relational(student, teacher, distance=25.0, angle=50.0)

        def work(process):
            layer = leaf(weights)
            mine = images.split(counts)[process.process_index], teacher.split(counts)[process.process_index]
            loss = loss_of(gathered(process, mine[0] @ layer), gathered(process, mine[1]))
            part = share(process, loss)
            return part.detach(), torch.autograd.grad(part, layer)[0]

        layer = leaf(weights)
        whole = loss_of(images @ layer, teacher)
        values, slopes = zip(*Processes(len(counts)).run(work), strict=True)
        close(sum(values), whole.detach().numpy())
        close(sum(slopes), torch.autograd.grad(whole, layer)[0].numpy())
