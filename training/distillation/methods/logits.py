"""Methods that hold the student's logits against the teacher's."""

from torch import Tensor

from training.distillation import losses
from training.distillation.methods.base import Card, Method, Seen
from training.engine.objective import LOGITS


class Kd(Method):
    """The student's softened probabilities follow the teacher's."""

    card = Card(
        name="kd",
        title="Knowledge distillation",
        what="The student's softened probabilities follow the teacher's, which say how much a bottle looks like a cup. "
        "With --teacher.only_right it is 'true-label KD': only where the teacher's first choice is the label.",
        formula="alpha · T² · KL(softmax(t/T) ‖ softmax(s/T)) + (1 - alpha) · labels",
        source="Hinton, Vinyals and Dean 2015 (arXiv 1503.02531). The recipe distill_seed is the competition's: T = "
        "20, alpha = 0.3.",
        when="Always the first thing to try: it needs nothing but logits, and a good T beats most of what came "
        "after it. Train the teacher without label smoothing, which takes away what it says of the other classes "
        "(Müller et al. 2019, arXiv 1906.02629), or take T = 1.",
        alpha=0.9,
        temperature=4.0,
    )

    @property
    def size(self) -> float:
        """See `Method`."""
        return self.temperature**2

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`."""
        return seen.mean(losses.kd(seen.logits, seen.teacher[LOGITS], self.temperature))


class Dkd(Method):
    """KD in two parts with weights of their own."""

    card = Card(
        name="dkd",
        title="Decoupled knowledge distillation",
        what="KD taken apart: how sure the teacher is of the label, and how it tells the other classes apart. Each "
        "gets a weight of its own; in plain KD the second fades where the teacher is sure.",
        formula="alpha · T² · (target · TCKD + others · NCKD) + (1 - alpha) · labels",
        source="Zhao et al., CVPR 2022 (arXiv 2203.08679); target = 1, others = 2 to 8 in the paper.",
        when="Where the teacher is almost always right on what it has learned from, so that plain KD says little more "
        "than the labels.",
        temperature=4.0,
    )

    @property
    def size(self) -> float:
        """See `Method`."""
        return self.temperature**2 * (self.options.dkd_target + self.options.dkd_others)

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`. Of a mixed image, the class with the larger share is the label."""
        labels = seen.targets.argmax(1) if seen.mixed else seen.labels
        return seen.mean(
            losses.dkd(
                seen.logits,
                seen.teacher[LOGITS],
                labels,
                self.temperature,
                target=self.options.dkd_target,
                others=self.options.dkd_others,
            )
        )


class Dist(Method):
    """Correlation in the place of divergence."""

    card = Card(
        name="dist",
        title="DIST",
        what="The student need not repeat the teacher's probabilities, only go up and down with them: within each "
        "image and, over the batch, within each class.",
        formula="alpha · T² · (inter · (1 - r over classes) + intra · (1 - r over images)) + (1 - alpha) · labels",
        source="Huang et al., NeurIPS 2022 (arXiv 2205.10536); r is Pearson's correlation.",
        when="Where the teacher is much stronger than the student, which cannot match its probabilities.",
        temperature=4.0,
    )

    weighs_images = False

    @property
    def size(self) -> float:
        """See `Method`."""
        return 2 * self.temperature**2 * (self.options.dist_inter + self.options.dist_intra)

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`."""
        student, teacher = seen.together(seen.logits, seen.teacher[LOGITS])
        loss = losses.dist(
            student, teacher, self.temperature, inter=self.options.dist_inter, intra=self.options.dist_intra
        )
        return seen.share(loss)
