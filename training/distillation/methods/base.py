"""What a method of distillation is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipelines.errors import UsageError
from training.distillation.options import MethodConfig
from training.distillation.teachers import Features, Teacher
from training.engine.learner import EMBEDDING, Part
from training.engine.objective import LOGITS, gathered, share


@dataclass(frozen=True, kw_only=True)
class Card:
    """A method in a paragraph.

    Attributes:
        name: As options have it.
        title: As papers have it.
        what: What it does.
        formula: What it adds to the loss.
        source: Where it comes from.
        when: When to take it, and when not.
        alpha: Share of the loss that it gets unless told otherwise.
        temperature: Likewise; 1 where there is none.
    """

    name: str
    title: str
    what: str
    formula: str
    source: str
    when: str
    alpha: float = 0.5
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Student:
    """The network that learns, as methods look at it.

    Attributes:
        network: On the CPU.
        shapes: See `training.engine.learner.tap_shapes`.
        classes: Number of classes.
        size: Side of its images in px.
    """

    network: nn.Module
    shapes: Mapping[str, tuple[int, ...]]
    classes: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a method looks at in a step. k images, of this process.

    Attributes:
        accelerator: accelerate.Accelerator.
        images: Float [k, 3, size, size], as the network got them.
        outputs: Of the student, see `training.engine.objective.Forward`.
        teacher: Answers, float32, by name; empty without a teacher.
        labels: int64 [k].
        targets: Float [k, classes]; the labels, mixed as the images are.
        right: bool [k]; where the teacher may be listened to.
        weights: Float [k]; how much each image counts, 1 on average; None for all alike.
        mixed: The images are mixed.
        total: Images of the batch, of all processes together.
    """

    accelerator: Any
    images: Tensor
    outputs: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    labels: Tensor
    targets: Tensor
    right: Tensor
    weights: Tensor | None
    mixed: bool
    total: int

    @property
    def logits(self) -> Tensor:
        """The student's, float32 [k, classes]."""
        return self.outputs[LOGITS]

    def mean(self, losses: Tensor) -> Tensor:
        """This process's share of the mean over all images of the batch, those without a right teacher counting 0.

        Args:
            losses: Float [k].
        """
        if self.weights is not None:
            losses = losses * self.weights
        return torch.where(self.right, losses, 0.0).sum() / self.total

    def together(self, *tensors: Tensor) -> list[Tensor]:
        """The rows of all processes with a right teacher, of several tensors [k, …]."""
        right = gathered(self.accelerator, self.right.float()) > 0
        return [gathered(self.accelerator, tensor)[right] for tensor in tensors]

    def share(self, loss: Tensor) -> Tensor:
        """See `training.engine.objective.share`."""
        return share(self.accelerator, loss)


class Method:
    """A method; the base class asks a teacher for logits and adds no parts.

    Args:
        options: Of the run.
    """

    card: ClassVar[Card]
    asks_logits: ClassVar[bool] = True
    asks_embedding: ClassVar[bool] = False
    asks_features: ClassVar[bool] = False
    weighs_images: ClassVar[bool] = True
    """Images count one by one, so that some can count more."""
    most_images: ClassVar[int] = 0
    """Of a batch; 0 for any number."""
    lone_classifier: ClassVar[bool] = False
    """See `training.engine.learner.Learner`."""

    def __init__(self, options: MethodConfig) -> None:
        self.options = options
        self.temperature = options.temperature or self.card.temperature

    @property
    def needs_teacher(self) -> bool:
        """Whether it asks a teacher anything."""
        return self.asks_logits or self.asks_embedding or self.asks_features

    @property
    def size(self) -> float:
        """How large its loss may be before anything is learned, compared with that of the labels."""
        return 1.0

    def features(self, student: Student) -> tuple[Features, ...]:
        """Maps of the teacher that it wants.

        Raises:
            UsageError: The student has no layers to hold them against.
        """
        return ()

    def parts(self, student: Student, teacher: Teacher | None) -> dict[str, Part]:
        """What the student gets for the time of training.

        Raises:
            UsageError: The student or the teacher has not what it takes.
        """
        return {}

    def __call__(self, seen: Seen) -> Tensor:
        """This process's share of what the method adds to the loss of a batch."""
        raise NotImplementedError


def embedding_of(student: Student, name: str) -> int:
    """Length of what goes into the student's classifier.

    Args:
        student: Whose.
        name: Of the method, for messages.

    Raises:
        UsageError: No one vector goes into it.
    """
    if EMBEDDING not in student.shapes:
        raise UsageError(
            f"--method.name {name} looks at what goes into the classifier, but the network has none that can be found, "
            "or several; take another network, or another method"
        )
    return student.shapes[EMBEDDING][0]


def map_of(student: Student, path: str, option: str) -> tuple[int, int, int]:
    """(channels, height, width) of what a layer of the student puts out.

    Raises:
        UsageError: It puts out no map.
    """
    shape = student.shapes.get(path, ())
    if len(shape) != 3:
        near = ", ".join([name for name, found in student.shapes.items() if len(found) == 3][-4:])
        raise UsageError(f"{option} {path}: the network has no such layer, or it puts out no map; its last are {near}")
    return shape[0], shape[1], shape[2]
