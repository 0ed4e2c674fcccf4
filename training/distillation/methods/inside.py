"""Methods that look inside: features of a layer, and how the embeddings of images lie to each other."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.console.words import names_in
from pipelines.errors import UsageError
from training.distillation import losses
from training.distillation.methods.base import Card, Method, Seen, Student, embedding_of, map_of
from training.distillation.teachers import Features, Teacher
from training.engine.learner import EMBEDDING, Part, last_map

ADAPTED, RELATED, MAP = "adapted", "related", "map"


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
        what="Layers of the student (--method.layer), each through a 1x1 convolution that only training has, follow as "
        "many layers of the teacher (--method.teacher_layer); maps of different sizes are averaged to the smaller one. "
        "With several teachers, the first.",
        formula="alpha · mean (A(s) - t / rms(t))² + (1 - alpha) · labels",
        source="FitNets: Romero et al., ICLR 2015 (arXiv 1412.6550).",
        when="Together with kd (--method.name kd,feature), where teacher and student see the same at the same place. "
        "The teacher may be a network that knows other classes: --teacher.paths tf_efficientnet_lite0. A layer with "
        "few channels costs less (--method.teacher_layer blocks.6: a quarter of its 1,280).",
    )
    asks_logits = False
    asks_features = True

    def _pairs(self, student: Student) -> list[tuple[str, str]]:
        """(layer of the student, layer of the teacher); of the latter, empty for the last map."""
        own = names_in(self.options.layer) or [last_map(student.shapes)]
        theirs = names_in(self.options.teacher_layer) or [""]
        if len(own) != len(theirs):
            raise UsageError(
                f"--method.layer names {len(own)} layers of the student, --method.teacher_layer {len(theirs)} of the "
                "teacher; name as many of each"
            )
        return list(zip(own, theirs, strict=True))

    def features(self, student: Student) -> tuple[Features, ...]:
        """See `Method`."""
        wanted = []
        for number, (own, theirs) in enumerate(self._pairs(student)):
            _, height, width = map_of(student, own, "--method.layer")
            wanted.append(Features(f"{MAP}{number}", theirs, (height, width)))
        return tuple(wanted)

    def parts(self, student: Student, teacher: Teacher | None) -> dict[str, Part]:
        """See `Method`."""
        found = {}
        for number, (own, _) in enumerate(self._pairs(student)):
            channels, *_ = map_of(student, own, "--method.layer")
            shape = teacher.columns[f"{MAP}{number}"] if teacher is not None else ()
            found[f"{ADAPTED}{number}"] = Part(own, Adaptor(channels, shape))
        return found

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`."""
        maps = [name for name in seen.teacher if name.startswith(MAP)]
        each = [losses.feature(seen.outputs[name.replace(MAP, ADAPTED)], seen.teacher[name]) for name in maps]
        return seen.mean(torch.stack(each).mean(0))


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
    weighs_images = False
    most_images = 256

    def parts(self, student: Student, teacher: Teacher | None) -> dict[str, Part]:
        """See `Method`."""
        embedding_of(student, self.card.name)
        return {RELATED: Part(EMBEDDING, nn.Identity())}

    @property
    def size(self) -> float:
        """See `Method`."""
        return max(self.options.distances + self.options.angles, 1.0)

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`."""
        student, teacher = seen.together(seen.outputs[RELATED], seen.teacher[EMBEDDING])
        loss = losses.relational(student, teacher, distance=self.options.distances, angle=self.options.angles)
        return seen.share(loss)
