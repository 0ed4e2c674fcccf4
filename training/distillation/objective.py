"""What a distilled student minimises: a share for the labels, the rest for the methods."""

from collections.abc import Callable, Sequence
from hashlib import sha256

import torch
from torch import Tensor

from pipelines.console.output import say
from training.distillation.answers import KeptAnswers, OnlineAnswers, keeps
from training.distillation.losses import best_of, combined
from training.distillation.methods.base import Method, Seen
from training.distillation.methods.catalogue import alpha_of, temperature_of
from training.distillation.options import DistillConfig
from training.distillation.teachers import Teacher
from training.engine.losses import soft_targets
from training.engine.objective import LOGITS, Forward, Supervised
from training.engine.setup import Setting


class Distilled:
    """(1 - alpha) · labels + alpha · scale · sum of the methods; see `training.engine.objective.Objective`.

    Args:
        config: Options of the run.
        methods: At least one.
        teachers: May be none, if no method asks any.
        setting: Of the run.

    Raises:
        UsageError: The teacher's answers cannot be had in the way that the options want.
    """

    def __init__(
        self, config: DistillConfig, methods: Sequence[Method], teachers: Sequence[Teacher], setting: Setting
    ) -> None:
        self._accelerator = setting.machine.accelerator
        self._labels = Supervised(self._accelerator, setting.loss)
        self._methods, self._options, self._shares = methods, config.teacher, config.teacher.shares()
        self._alpha = alpha_of(config.method, methods)
        self._scale = config.method.scale
        self._temperature = temperature_of(methods)
        self._weights = setting.loss.class_weights if config.method.balanced else None
        kept = bool(teachers) and keeps(config.teacher.outputs, setting.loader.options)
        self._answers: list[KeptAnswers | OnlineAnswers] = [
            KeptAnswers(teacher, setting, config.teacher, config.data) if kept else OnlineAnswers(teacher, setting)
            for teacher in teachers
        ]
        if teachers and self._accelerator.is_main_process:
            say(f"distill: {', '.join(_described(teacher) for teacher in teachers)}; answers {_how(kept=kept)}")
        learned = config.method.scale * sum(method.size for method in methods)
        self.size = (1 - self._alpha) + self._alpha * max(learned, 1.0)
        self.classifies = self._alpha < 1 or any(method.asks_logits for method in methods)
        prints = [teacher.fingerprint for teacher in teachers]
        self.fingerprint = sha256("/".join(prints).encode()).hexdigest() if prints else ""

    def begin(self, epoch: int, between: Callable[[], None]) -> None:
        """See `Objective`: have the teachers' answers ready."""
        for answers in self._answers:
            answers.begin(epoch, between)

    def __call__(self, forward: Forward) -> Tensor:
        """See `Objective`."""
        seen = self._seen(forward)
        learned = torch.stack([method(seen) for method in self._methods]).sum()
        return (1 - self._alpha) * self._labels(forward) + self._alpha * self._scale * learned

    def _seen(self, forward: Forward) -> Seen:
        targets = soft_targets(forward.labels, forward.mix, forward.logits)
        said = [answers(forward) for answers in self._answers]
        right = torch.ones(len(targets), dtype=torch.bool, device=targets.device)
        for one in said:
            for name, values in one.items():
                right &= values.flatten(1).isfinite().all(1)
                # What counts nothing must be a number all the same: 0 times nan is no gradient.
                one[name] = values.nan_to_num(0.0, 0.0, 0.0)
        answers = dict(said[0]) if said else {}
        if LOGITS in answers:
            answers[LOGITS] = self._together([one[LOGITS] for one in said], targets)
            if self._options.only_right:
                right &= answers[LOGITS].argmax(1) == targets.argmax(1)
        return Seen(
            accelerator=self._accelerator,
            images=forward.images,
            outputs=forward.outputs,
            teacher=answers,
            labels=forward.labels,
            targets=targets,
            right=right,
            weights=None if self._weights is None else targets.float() @ self._weights,
            mixed=forward.mix is not None and forward.mix.share < 1,
            total=forward.total,
        )

    def _together(self, logits: list[Tensor], targets: Tensor) -> Tensor:
        if self._options.combine == "best":
            return best_of(logits, targets)
        return combined(logits, self._shares, self._temperature)


def _described(teacher: Teacher) -> str:
    return f"{teacher.name} at {teacher.spec.size} px"


def _how(*, kept: bool) -> str:
    return "are kept beside the data" if kept else "are asked for in every step"
