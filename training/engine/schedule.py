"""The learning rate of each step, as a function of the step.

A schedule is never prepared by Accelerate: that would advance it once per process for each step, so the rates would
depend on the number of processes. It is told the step instead.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, TanhLRScheduler
from torch import nn

from pipelines.errors import UsageError

ScheduleName = Literal["cosine", "onecycle", "plateau", "step", "multistep", "poly", "tanh", "constant"]

WARMUP_START = 0.01
"""Where the warm-up begins, as a share of the peak."""
ONECYCLE_START = 1 / 25
"""Where the one cycle begins, as a share of the peak."""
FAR = 1_000_000
"""No run has so many epochs, and no cycle is so much longer than another."""
PLATEAU_GAIN = 1e-4
"""What counts as better for the plateau schedule, as a share of the best score."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the learning rate goes: a linear warm-up, then one of several ways down to `min_lr`.

    Args:
        name: cosine, poly and tanh fall along a curve; step and multistep by a factor at stated epochs; plateau by a
            factor when validation macro F1 stops rising; constant never; onecycle rises from a 25th of the peak and
            falls, both along half a cosine.
        epochs: Passes over the training rows.
        warmup_epochs: Length of the warm-up, and of the rise of onecycle; may be a fraction.
        min_lr: Last learning rate, as a share of the peak; no schedule falls below it after the warm-up.
        cycles: Of cosine, poly and tanh: how often the curve is gone through in the run.
        cycle_mul: Length of a cycle, as a multiple of the one before.
        cycle_decay: Peak of a cycle, as a share of the one before.
        decay_epochs: Of step: epochs from one fall to the next, counted from the start of the run; may be a fraction.
        milestones: Of multistep: epochs after which the rate falls, ascending, counted from the start of the run.
        decay_rate: Of step, multistep and plateau: what the rate is multiplied by when it falls.
        patience: Of plateau: epochs without a better score that are tolerated before the rate falls.
        power: Of poly: 1 is a straight line, above that the rate falls early.
    """

    name: ScheduleName = "cosine"
    epochs: int = 30
    warmup_epochs: float = 2.0
    min_lr: float = 0.01
    cycles: int = 1
    cycle_mul: float = 1.0
    cycle_decay: float = 1.0
    decay_epochs: float = 10.0
    milestones: tuple[float, ...] = ()
    decay_rate: float = 0.1
    patience: int = 5
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in get_args(ScheduleName):
            raise UsageError(f"--schedule.name must be one of {', '.join(get_args(ScheduleName))}, got {self.name}")
        rising = all(a < b <= FAR for a, b in zip((0.0, *self.milestones), self.milestones, strict=False))
        checks = {
            "epochs": (self.epochs > 0, "above 0"),
            "min_lr": (0 <= self.min_lr <= 1, "0 to 1"),
            "cycles": (1 <= self.cycles <= 1000, "1 to 1000"),
            "cycle_mul": (0.1 <= self.cycle_mul <= 10, "0.1 to 10"),
            "cycle_decay": (0 < self.cycle_decay <= 1, "above 0 and at most 1"),
            "decay_epochs": (0 < self.decay_epochs <= FAR, f"above 0 and at most {FAR:,}"),
            "milestones": (rising, f"above 0, ascending, and at most {FAR:,}"),
            "decay_rate": (0 < self.decay_rate <= 1, "above 0 and at most 1"),
            "patience": (self.patience >= 0, "at least 0"),
            "power": (0 < self.power <= 10, "above 0 and at most 10"),
        }
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise UsageError(f"--schedule.{name} must be {wanted}, got {getattr(self, name)}")
        self._check_together()

    def _check_together(self) -> None:
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UsageError(
                f"--schedule.warmup_epochs {self.warmup_epochs} must be shorter than --schedule.epochs {self.epochs}"
            )
        if self.name == "multistep" and not self.milestones:
            raise UsageError("--schedule.name multistep needs --schedule.milestones, for example [10, 20]")
        if (self.cycles - 1) * abs(math.log(self.cycle_mul)) > math.log(FAR):
            raise UsageError(
                f"--schedule.cycle_mul {self.cycle_mul} makes one of {self.cycles} cycles more than {FAR:,} times as "
                "long as another; bring it nearer to 1, or take fewer --schedule.cycles"
            )
        if self.cycle_decay ** (self.cycles - 1) < self.min_lr:
            raise UsageError(
                f"--schedule.cycle_decay {self.cycle_decay} puts the peak of cycle {self.cycles} below "
                f"--schedule.min_lr {self.min_lr}; raise the one or lower the other"
            )


@dataclass
class _Watch:
    """What the plateau schedule has seen: the best score, epochs since then, and how often the rate has fallen."""

    best: float = -float(torch.finfo(torch.float64).max)  # JSON has no infinity
    bad_epochs: int = 0
    drops: int = 0


class Schedule:
    """Puts the learning rate of a step into the optimizer, whatever was there before.

    The rate is a pure function of (config, peak, steps per epoch, step), and for plateau of the scores observed. All
    groups get it, times their `lr_scale` if they have one.

    Args:
        optimizer: Prepared or not.
        config: Which schedule.
        peak: Highest rate.
        steps_per_epoch: Optimizer steps, the same on all processes. Never multiply by their number.
    """

    def __init__(self, optimizer: Any, config: ScheduleConfig, peak: float, steps_per_epoch: int) -> None:  # noqa: ANN401
        self.optimizer = optimizer
        self.config = config
        self._watch = _Watch()
        self._curve = _curve(config, peak, steps_per_epoch, self._watch)
        self.set(0)

    def set(self, step: int) -> None:
        """Make the next optimizer step the one with this number, counted from 0 over the whole run."""
        self._rate = self._curve(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * group.get("lr_scale", 1.0)

    def observe(self, score: float) -> None:
        """Tell the score of the epoch that has just ended, the higher the better; only plateau listens."""
        watch = self._watch
        if self.config.name != "plateau":
            return
        if score > watch.best * (1 + PLATEAU_GAIN):
            watch.best, watch.bad_epochs = score, 0
            return
        watch.bad_epochs += 1
        if watch.bad_epochs > self.config.patience:
            watch.drops, watch.bad_epochs = watch.drops + 1, 0

    @property
    def rate(self) -> float:
        """The rate that was set last, before any `lr_scale`."""
        return self._rate

    def state_dict(self) -> dict[str, float]:
        """What is not a function of the step; numbers only."""
        return asdict(self._watch)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict`.

        Raises:
            UsageError: It is no state of a schedule.
        """
        if set(state) != set(asdict(self._watch)):
            raise UsageError(f"the stored schedule has {sorted(state)}; resume with the version that wrote it")
        self._watch.best = float(state["best"])
        self._watch.bad_epochs, self._watch.drops = int(state["bad_epochs"]), int(state["drops"])


def _curve(config: ScheduleConfig, peak: float, steps: int, watch: _Watch) -> Callable[[int], float]:
    """The rate as a function of the step."""
    if config.name == "onecycle":
        return lambda step: onecycle(config, peak, steps, step)
    if config.name in ("cosine", "poly", "tanh"):
        return _timm_curve(config, peak, steps)
    warmup = round(config.warmup_epochs * steps)
    return lambda step: _after_warmup(
        peak * max(config.decay_rate ** falls(config, steps, step, watch.drops), config.min_lr), peak, step, warmup
    )


def _after_warmup(rate: float, peak: float, step: int, warmup: int) -> float:
    start = peak * WARMUP_START
    return start + step * ((peak - start) / warmup) if step < warmup else rate


def falls(config: ScheduleConfig, steps: int, step: int, drops: int) -> int:
    """How often the rate of step, multistep and plateau has fallen.

    Args:
        config: Which schedule; constant never falls.
        steps: Per epoch.
        step: Counted from 0 over the run.
        drops: Of plateau.
    """
    if config.name == "step":
        return step // max(round(config.decay_epochs * steps), 1)
    if config.name == "multistep":
        # Not timm's MultiStepLRScheduler, which falls one step before each milestone.
        return sum(step >= round(milestone * steps) for milestone in config.milestones)
    return drops if config.name == "plateau" else 0


def onecycle(config: ScheduleConfig, peak: float, steps: int, step: int) -> float:
    """The rate of torch's OneCycleLR with two halves of a cosine (Smith and Topin 2018); momentum stays as it is."""
    last = config.epochs * steps - 1
    top = config.warmup_epochs / config.epochs * (last + 1) - 1  # the step of the peak; may be a fraction
    if step <= top:
        return _half_cosine(peak * ONECYCLE_START, peak, step / top if top > 0 else 1.0)
    return _half_cosine(peak, peak * config.min_lr, (min(step, last) - top) / (last - top))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _timm_curve(config: ScheduleConfig, peak: float, steps: int) -> Callable[[int], float]:
    """Cosine, poly or tanh of timm; its scheduler gets an optimizer of its own, from which the rate is read."""
    total, warmup = config.epochs * steps, round(config.warmup_epochs * steps)
    cycle = max(total - warmup, 1) / sum(config.cycle_mul**number for number in range(config.cycles))
    scratch = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    kinds = {"cosine": CosineLRScheduler, "poly": PolyLRScheduler, "tanh": TanhLRScheduler}
    scheduler = kinds[config.name](
        scratch,
        t_initial=cycle,
        lr_min=peak * config.min_lr,
        cycle_mul=config.cycle_mul,
        cycle_decay=config.cycle_decay,
        cycle_limit=config.cycles,
        warmup_t=warmup,
        warmup_lr_init=peak * WARMUP_START,
        warmup_prefix=True,
        t_in_epochs=False,
        **({"power": config.power} if config.name == "poly" else {}),
    )

    def rate(step: int) -> float:
        scheduler.step_update(min(step, total))
        return float(scratch.param_groups[0]["lr"])

    return rate
