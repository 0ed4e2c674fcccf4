"""Help that needs no teacher: heads and a decoder that only training has."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.console.words import names_in
from pipelines.errors import UsageError
from training.distillation import losses
from training.distillation.methods.base import Card, Method, Seen, Student, embedding_of, map_of
from training.distillation.teachers import Teacher
from training.engine.learner import EMBEDDING, Part, as_vectors, last_map

COSINES, REBUILT, HEAD = "cosines", "rebuilt", "head_"


class CosineHead(nn.Module):
    """Cosines between embeddings and a learned centre of each class.

    The centres are seen from their mean. Else all of them, and all embeddings, can turn the same way: a margin costs
    least at an angle of 0, and where classes are hard to tell apart, or nothing is learned yet, networks stay there.

    Args:
        length: Of an embedding.
        classes: Number of classes.
    """

    def __init__(self, length: int, classes: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.empty(classes, length))
        nn.init.xavier_uniform_(self.centres)

    def forward(self, embedding: Tensor) -> Tensor:
        """Float [n, length] to [n, classes]."""
        with torch.autocast(embedding.device.type, enabled=False):  # half precision cannot tell small angles apart
            centres = self.centres - self.centres.mean(0)
            return functional.normalize(embedding.float()) @ functional.normalize(centres).T


class ArcFace(Method):
    """Classes are kept apart by an angle."""

    card = Card(
        name="arcface",
        title="ArcFace head",
        what="The layers before the classifier learn from a head of cosines with a margin, which is gone after "
        "training; centres of classes are seen from their mean, so that they cannot all turn the same way. The "
        "classifier itself learns all the time from what they give, without moving them. To refit it alone: "
        "training.train --model.weights RUN --model.freeze all-but-classifier.",
        formula="alpha · CE(scale · cos(θ_label + margin), scale · cos θ) + (1 - alpha) · labels(classifier)",
        source="Deng et al., CVPR 2019 (arXiv 1801.07698). The competition's team tried it: no gain on the board.",
        when="With many classes and few images of each. With six classes cross-entropy is hard to beat.",
    )
    asks_logits = False
    lone_classifier = True

    def parts(self, student: Student, teacher: Teacher | None) -> dict[str, Part]:
        """See `Method`."""
        return {COSINES: Part(EMBEDDING, CosineHead(embedding_of(student, self.card.name), student.classes))}

    @property
    def size(self) -> float:
        """See `Method`."""
        return max(self.options.arc_scale, 1.0)

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`."""
        options = self.options
        logits = losses.arcface_logits(
            seen.outputs[COSINES], seen.labels, scale=options.arc_scale, margin=options.margin
        )
        return seen.mean(functional.cross_entropy(logits, seen.labels, reduction="none"))


class PooledHead(nn.Module):
    """A classifier on a layer's averages.

    Args:
        channels: Of the layer.
        classes: Number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Float [n, channels, …] to [n, classes]."""
        logits: Tensor = self.classifier(as_vectors(features))
        return logits


class Auxiliary(Method):
    """Layers in the middle learn to classify, too."""

    card = Card(
        name="auxiliary",
        title="Auxiliary heads",
        what="Layers in the middle get a classifier of their own, which is gone after training, so that they hear of "
        "the labels directly.",
        formula="alpha · mean over heads of CE(head, labels) + (1 - alpha) · labels",
        source="Lee et al., Deeply-Supervised Nets, AISTATS 2015; the competition's team, whose F1 fell, after arXiv "
        "2004.11757.",
        when="In deep networks trained from scratch. Small ones need their early layers for something else.",
        alpha=0.3,
    )
    asks_logits = False

    def _paths(self, student: Student) -> list[str]:
        return names_in(self.options.layers) or middle_layers(student)

    def parts(self, student: Student, teacher: Teacher | None) -> dict[str, Part]:
        """See `Method`."""
        found = {}
        for number, path in enumerate(self._paths(student)):
            channels, *_ = map_of(student, path, "--method.layers")
            found[f"{HEAD}{number}"] = Part(path, PooledHead(channels, student.classes))
        return found

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`."""
        heads = [logits for name, logits in seen.outputs.items() if name.startswith(HEAD)]
        each = [functional.cross_entropy(logits, seen.targets, reduction="none") for logits in heads]
        return seen.mean(torch.stack(each).mean(0))


def middle_layers(student: Student) -> list[str]:
    """The last layer of each size of map, but for the largest two and the last.

    Raises:
        UsageError: There are none.
    """
    last: dict[tuple[int, ...], str] = {}
    for path, shape in student.shapes.items():
        if len(shape) == 3 and shape[1] * shape[2] > 1:
            last[shape[1:]] = path
    paths = [last[side] for side in sorted(last, key=math.prod, reverse=True)][2:-1]
    if not paths:
        raise UsageError("--method.name auxiliary: the network has no layers in the middle; name some: --method.layers")
    return paths


class Decoder(nn.Module):
    """Builds images from features: doublings, each with a 3x3 convolution, up to the size of the image.

    Args:
        shape: (channels, height, width) of the features.
        size: Side of the images in px.
        width: Channels in between.
    """

    def __init__(self, shape: tuple[int, int, int], size: int, width: int = 64) -> None:
        super().__init__()
        self.size = size
        layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 1), nn.ReLU()]
        for _ in range(max(round(math.log2(size / shape[1])), 0)):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, max(width // 2, 16), 3, padding=1), nn.ReLU()]
            width = max(width // 2, 16)
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        """Float [n, channels, h, w] to images [n, 3, size, size]."""
        images: Tensor = self.layers(features)
        if images.shape[-1] == self.size == images.shape[-2]:
            return images
        return functional.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False)


class Autoencoder(Method):
    """The network learns to describe crops so that they can be rebuilt."""

    card = Card(
        name="autoencoder",
        title="Autoencoder pre-training",
        what="A decoder that is gone after training rebuilds the crop from the student's last map: labels are not "
        "looked at. Take the run as --model.weights of the next one; its macro F1 is that of guessing.",
        formula="alpha · mean (D(features) - image)², with alpha = 1",
        source="Hinton and Salakhutdinov, Science 2006; the competition's team used the encoder as backbone.",
        when="With many crops without labels. Where all have labels it rarely pays for its epochs.",
        alpha=1.0,
    )
    asks_logits = False

    def parts(self, student: Student, teacher: Teacher | None) -> dict[str, Part]:
        """See `Method`."""
        path = self.options.layer or last_map(student.shapes)
        return {REBUILT: Part(path, Decoder(map_of(student, path, "--method.layer"), student.size))}

    def __call__(self, seen: Seen) -> Tensor:
        """See `Method`."""
        return seen.mean((seen.outputs[REBUILT] - seen.images).pow(2).mean((1, 2, 3)))
