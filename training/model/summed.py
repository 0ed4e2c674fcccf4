"""Two networks as one: their logits are added up."""

from torch import Tensor, nn

from training.model.classifier import classifier_names

PREFIX = "sum:"


class SummedModel(nn.Module):
    """A student and its assistant, see `training.distillation.methods.residual`.

    Args:
        student: Logits [n, classes].
        assistant: Likewise, of the same classes.
        mean: What both expect, per channel, for levels in [0, 1].
        std: Likewise.
    """

    def __init__(
        self, student: nn.Module, assistant: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.student = student
        self.assistant = assistant
        self.num_classes: int = student.num_classes  # type: ignore[assignment]  # an attribute, not a tensor
        heads = [f"{part}.{name}" for part, child in self.named_children() for name in classifier_names(child)]
        self.pretrained_cfg = {"classifier": tuple(heads), "mean": mean, "std": std}

    def forward(self, images: Tensor) -> Tensor:
        """Classify: float [n, 3, h, w] to [n, classes]."""
        logits: Tensor = self.student(images) + self.assistant(images)
        return logits
