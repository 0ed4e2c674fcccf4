"""Methods that look inside: features of a layer, and how the embeddings of images lie to each other."""

from torch import Tensor, nn
from torch.nn import functional

from training.distillation import losses
from training.distillation.methods.base import Card, Method, Seen, Student, map_of
from training.distillation.teachers import FEATURES, Teacher
from training.engine.learner import EMBEDDING, Part, last_map

ADAPTED, RELATED = "adapted", "related"


class Adaptor(nn.Module):
    """Brings a map to the size and the channels of another one: averages, then a 1x1 convolution.

    Args:
        channels: That come in.
        shape: (channels, height, width) that go out.
    """

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.side = (shape[1], shape[2])
        self.convolution = nn.Conv2d(channels, shape[0], 1)

    def forward(self, features: Tensor) -> Tensor:
        """Float [n, channels, h, w] to [n, *shape]."""
        adapted: Tensor = self.convolution(functional.adaptive_avg_pool2d(features, self.side))
        return adapted


class Feature(Method):
    """Features of a layer follow those of a layer of the teacher."""

    card = Card(
        name="feature",
        title="Feature distillation",
        what="A layer of the student, through a 1x1 convolution that only training has, follows a layer of the "
        "teacher; maps of different sizes are averaged to the smaller one. With several teachers, the first.",
        formula="alpha · mean (A(s) - t / rms(t))² + (1 - alpha) · labels",
        source="FitNets: Romero et al., ICLR 2015 (arXiv 1412.6550).",
        when="Together with kd (--method.name kd,feature), where teacher and student see the same at the same place. "
        "The teacher may be a network that knows other classes: --teacher.paths tf_efficientnet_lite0.",
    )
    asks_logits = False
    asks_features = True

    def _path(self, student: Student) -> str:
        return self.options.layer or last_map(student.shapes)

    def side(self, student: Student) -> tuple[int, int]:
        """See `Method`."""
        _, height, width = map_of(student, self._path(student), "--method.layer")
        return height, width

    def parts(self, student: Student, teacher: Teacher | None) -> dict[str, Part]:
        """See `Method`."""
        assert teacher is not None
        channels, *_ = map_of(student, self._path(student), "--method.layer")
        return {ADAPTED: Part(self._path(student), Adaptor(channels, teacher.columns[FEATURES]))}

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`."""
        return seen.mean(losses.feature(seen.outputs[ADAPTED], seen.teacher[FEATURES]))


class Relational(Method):
    """Images lie to each other as the teacher sees them."""

    card = Card(
        name="relational",
        title="Relational knowledge distillation",
        what="What goes into the student's classifier is arranged as in the teacher: distances of all pairs of images "
        "of a batch, angles of all triples. Embeddings may have different lengths. With several teachers, the first.",
        formula="alpha · (25 · Huber(distances) + 50 · Huber(angles)) + (1 - alpha) · labels",
        source="Park et al., CVPR 2019 (arXiv 1904.05068).",
        when="With batches of 32 or more, for embeddings that are compared; for classification rather together "
        "with kd.",
        alpha=0.3,
    )
    asks_logits = False
    asks_embedding = True

    def parts(self, student: Student, teacher: Teacher | None) -> dict[str, Part]:
        """See `Method`."""
        return {RELATED: Part(EMBEDDING, nn.Identity())}

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`."""
        student, teacher = seen.together(seen.outputs[RELATED], seen.teacher[EMBEDDING])
        loss = losses.relational(student, teacher, distance=self.options.distances, angle=self.options.angles)
        return seen.share(loss)
