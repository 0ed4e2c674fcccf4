"""Residual distillation: an assistant says what the student leaves out, and stays."""

from torch import Tensor, nn

from pipelines.errors import UsageError
from training.distillation import losses
from training.distillation.methods.base import Card, Method, Seen, Student
from training.distillation.teachers import Teacher
from training.engine.learner import Part
from training.engine.objective import LOGITS
from training.model.summed import SummedModel

STUDENT, ASSISTANT = "student_alone", "assistant_alone"


class Residual(Method):
    """A student follows the teacher, and an assistant what is missing."""

    card = Card(
        name="residual",
        title="Residual knowledge distillation",
        what="Two networks are carved from the budget of one: the student follows the teacher as in kd, the assistant "
        "learns teacher - student, and the deployed network is their sum, whose MACs are counted whole. Name it "
        "--model.name sum:STUDENT+ASSISTANT.",
        formula="alpha · (T² · KL(t/T ‖ s/T) + mean (a - (t - s))²) + (1 - alpha) · labels(s + a); the second term "
        "does not move s",
        source="Gao et al. 2020 (arXiv 2002.09168), with logits in the place of features, as the competition's "
        "team did.",
        when="Hardly below a million MACs: the stem is paid twice. shufflenet_g3_x025_2_5_2 + shufflenet_g3_x025_1_1_1 "
        "fit into the budget of the seed network.",
        temperature=4.0,
    )

    def parts(self, student: Student, teacher: Teacher | None) -> dict[str, Part]:
        """See `Method`."""
        if not isinstance(student.network, SummedModel):
            raise UsageError(
                "--method.name residual trains a student and an assistant: name both, "
                "--model.name sum:shufflenet_g3_x025_2_5_2+shufflenet_g3_x025_1_1_1 for example"
            )
        return {STUDENT: Part("student", nn.Identity()), ASSISTANT: Part("assistant", nn.Identity())}

    @property
    def size(self) -> float:
        """See `Method`."""
        return self.temperature**2 + 10

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`."""
        student, assistant, teacher = seen.outputs[STUDENT], seen.outputs[ASSISTANT], seen.teacher[LOGITS]
        followed = losses.kd(student, teacher, self.temperature)
        return seen.mean(followed + losses.residual(assistant, student, teacher))
