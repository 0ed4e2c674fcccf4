"""A teacher's answers to the images of a step: read from files that a pass over the data wrote, or asked for there."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipelines.console.output import say
from pipelines.console.progress import ProgressMeter
from pipelines.engines.choose import EngineName, make_engine
from pipelines.errors import UsageError
from pipelines.loader import Loader, LoaderOptions
from pipelines.plan import Stage, draw
from pipelines.sources import Source
from pipelines.tensors import on_device, scale_and_offset
from training.distillation.options import TeacherConfig
from training.distillation.outputs import Identity, plan_digests, read_outputs, write_outputs
from training.distillation.teachers import Teacher
from training.engine.config import DataConfig
from training.engine.objective import Forward
from training.engine.setup import Setting

KEPT_BYTES = 1 << 28
"""So much is kept in memory of rounds that will come again; more is read from disk each time."""


def is_fixed(options: LoaderOptions) -> bool:
    """Whether nothing that is done to an image on the way changes with the epoch."""
    return not options.view.flip and options.view.min_area == 1.0 and options.policy is None


def obstacle(options: LoaderOptions) -> str:
    """Why answers cannot be kept; empty if they can."""
    if options.mix.active:
        return "mixed images are new in each batch (--mix)"
    if options.order_name == "balanced":
        return "--data.order balanced shows an image in several ways in one epoch"
    return ""


def keeps(mode: str, options: LoaderOptions) -> bool:
    """Whether answers are kept in files.

    Args:
        mode: `auto`, `cached` or `online`.
        options: Of the loader of what is learned from.

    Raises:
        UsageError: They cannot be, but are to be.
    """
    why_not = obstacle(options)
    if mode == "cached" and why_not:
        raise UsageError(f"--teacher.outputs cached: {why_not}; take online")
    return mode == "cached" or (mode == "auto" and not why_not and (is_fixed(options) or options.repeat > 0))


class OnlineAnswers:
    """Asks in every step; the teacher sees the student's own images.

    Args:
        teacher: Whom.
        setting: Of the run.
    """

    def __init__(self, teacher: Teacher, setting: Setting) -> None:
        self.teacher = teacher
        device = setting.machine.accelerator.device
        scale, offset = scale_and_offset(setting.format.mean, setting.format.std)
        self._scale, self._offset = scale.to(device), offset.to(device)

    def begin(self, epoch: int, between: Callable[[], None]) -> None:
        """Nothing."""

    def __call__(self, forward: Forward) -> dict[str, Tensor]:
        """Answers to the images of a step: name → float32 [k, …]."""
        size = self.teacher.spec.size
        levels = (forward.images - self._offset) / self._scale
        if not len(levels):
            return {name: levels.new_zeros((0, *shape)) for name, shape in self.teacher.columns.items()}
        if levels.shape[-1] != size:
            levels = functional.interpolate(levels, size=(size, size), mode="bilinear", antialias=True)
        return self.teacher.ask(levels)


class KeptAnswers:
    """Reads answers from files, and writes those that are not there yet: a pass over all samples of the data.

    A file holds one round: one way in which flips, crops and augmentation fall. Its rows say which sample they are
    about, and what was done to it, and are held against the data each time.

    Args:
        teacher: Whom.
        setting: Of the run.
        options: How.
        data: Of the run: answers are kept beside its path.
    """

    def __init__(self, teacher: Teacher, setting: Setting, options: TeacherConfig, data: DataConfig) -> None:
        self.teacher, self._setting = teacher, setting
        self._batch, self._threads = options.batch_size, data.threads
        base = options.cache or Path(f"{data.path.resolve()}.teachers")
        self._folder = base / f"{teacher.name}-{teacher.fingerprint[:12]}"
        self._rounds: dict[int, dict[str, Tensor]] = {}
        self._round = -1

    @property
    def _source(self) -> Source:
        """Where the images come from: as the student's loader has them, unless the teacher wants other sizes."""
        setting = self._setting
        return setting.loader.source if self.teacher.spec == setting.loader.engine.spec else setting.source

    def begin(self, epoch: int, between: Callable[[], None]) -> None:
        """Have the answers of an epoch ready, see `training.engine.objective.Objective`."""
        options = self._setting.loader.options
        self._round = 0 if is_fixed(options) else options.round_of(epoch)
        if self._round in self._rounds:
            return
        if not (options.repeat or is_fixed(options)) or self._bytes() > KEPT_BYTES:
            self._rounds.clear()
        device = self._setting.machine.accelerator.device
        answers = self._have(between)
        self._rounds[self._round] = {name: torch.from_numpy(values).to(device) for name, values in answers.items()}

    def __call__(self, forward: Forward) -> dict[str, Tensor]:
        """Answers to the images of a step: name → float32 [k, …]."""
        answers = self._rounds[self._round]
        return {name: values[on_device(forward.rows, values.device)] for name, values in answers.items()}

    def _bytes(self) -> int:
        """What is in memory, and one round more."""
        numbers = sum(int(np.prod(shape)) for shape in self.teacher.columns.values())
        return (len(self._rounds) + 1) * len(self._source.labels) * numbers * 4

    def _have(self, between: Callable[[], None]) -> dict[str, NDArray[np.float32]]:
        accelerator, options = self._setting.machine.accelerator, self._setting.loader.options
        key = self._key()
        path = self._folder / f"{key[:16]}-{self._round:05d}.arrow"
        plan = draw(
            options.policy,
            self._source.ids,
            seed=options.seed,
            stage=Stage.LOAD,
            rounds=(self._round,),
            view=options.view,
        )
        identity = Identity(self._source.ids, plan_digests(plan))
        found = read_outputs(path, key, identity)
        if not isinstance(found, str) and not all(np.isfinite(values).all() for values in found.values()):
            found = "it lacks samples that could not be read"
        missing = torch.tensor([int(isinstance(found, str))], device=accelerator.device)
        if not int(accelerator.reduce(missing, "sum")) and not isinstance(found, str):
            return found
        if isinstance(found, str) and found and accelerator.is_main_process:
            say(f"{path}: {found}; asking the teacher again")
        answers, heard = self._ask_all(between)
        whole = [np.isfinite(values.reshape(len(heard), -1)).all(1) for values in answers.values()]
        finite = np.logical_and.reduce(whole)
        if heard.any() and not finite.any():
            raise UsageError(f"the teacher {self.teacher.name} gives no answer that is a finite number; take another")
        if accelerator.is_main_process:
            for which, what in ((~heard, "cannot be read"), (heard & ~finite, "get no finite numbers for an answer")):
                if which.any():
                    say(f"{which.sum()} samples {what}: there the student hears no teacher")
            try:
                write_outputs(path, key, identity, answers)
            except OSError as error:
                say(
                    f"the answers of the teacher cannot be kept in {self._folder} ({error.strerror or error}): it will "
                    "be asked again; free space, or name another --teacher.cache"
                )
        return answers

    def _key(self) -> str:
        """Changes with anything that changes an answer."""
        options, engine = self._setting.loader.options, self._setting.loader.engine
        seed = 0 if is_fixed(options) else options.seed
        parts = [self.teacher.fingerprint, self.teacher.spec, self._source.fingerprint, engine.name, engine.device.type]
        return sha256(repr([*parts, options.view, options.policy, seed, self._round]).encode()).hexdigest()

    def _ask_all(self, between: Callable[[], None]) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
        """Ask for every sample, over all processes together: answers, NaN without an image, and where there was one."""
        setting, accelerator = self._setting, self._setting.machine.accelerator
        options, process = setting.loader.options, setting.machine.process
        source = self._source
        name = cast(EngineName, setting.loader.engine.name)
        engine = make_engine(name, self.teacher.spec, device=process.device, threads=process.threads(self._threads))
        try:
            asked = replace(options, batch_size=self._batch * process.world, train=False, order=None, repeat=0)
            loader = Loader(source, engine, asked)
            loader.set_epoch(self._round)
            parts, title = [], f"teacher {self.teacher.name}"
            with ProgressMeter(title, len(source.labels), "images", enabled=accelerator.is_main_process) as progress:
                for batch in loader:
                    between()
                    said = self.teacher.ask(batch.images.to(accelerator.device))
                    kept = {name: _as_stored(values[: batch.real].cpu().numpy()) for name, values in said.items()}
                    parts.append((batch.rows[: batch.real], kept))
                    progress.advance(batch.real * process.world)
        finally:
            engine.close()
        everything = {
            name: np.full((len(source.labels), *shape), np.nan, np.float32)
            for name, shape in self.teacher.columns.items()
        }
        heard = np.zeros(len(source.labels), np.bool_)
        for rows, kept in gather_object(parts):
            heard[rows] = True
            for name, values in kept.items():
                everything[name][rows] = values
        return everything, heard


def _as_stored(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers as they will be read from disk: a run that goes on must not see others."""
    most = float(np.finfo(np.float16).max)
    return values.clip(-most, most).astype(np.float16).astype(np.float32) if values.ndim > 2 else values
