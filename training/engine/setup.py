"""From options and a network to a run: what train, distill and every fine-tuning have in common."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipelines.console.job import quiet_libraries
from pipelines.console.output import say
from pipelines.console.words import names_in
from pipelines.engines.base import RenderSpec
from pipelines.errors import UsageError
from pipelines.loader import Loader
from pipelines.sources import Source
from pipelines.tensors import TensorFormat
from training.engine.agree import agreeing
from training.engine.config import RunConfig
from training.engine.data import Process, make_loaders, process_of
from training.engine.learner import Learner, Part, deployed
from training.engine.loop import Trainer
from training.engine.losses import Loss, make_loss
from training.engine.objective import Objective, Supervised
from training.engine.optimization import Schedule, freeze, make_optimizer
from training.engine.preemption import StopSignals
from training.engine.run import Run
from training.engine.sparsity import sparsity_of
from training.engine.sync_batchnorm import synchronise
from training.engine.tracking import TENSORBOARD, check_trackers
from training.model.card import ModelCard


@dataclass(frozen=True)
class Machine:
    """What a job runs on.

    Attributes:
        accelerator: accelerate.Accelerator.
        process: The place of this process among the others.
    """

    accelerator: Any
    process: Process


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network before it is trained.

    Attributes:
        model: On the CPU.
        card: What its model files will say.
        freeze: Names of parts that do not learn.
        channels_last: Keep activations in channels-last memory.
        sync_batchnorm: Batch normalisation over all processes.
        compile: With torch.compile.
        parts: What only training uses, by name.
        lone_classifier: See `training.engine.learner.Learner`.
    """

    model: nn.Module
    card: ModelCard
    freeze: tuple[str, ...] = ()
    channels_last: bool = True
    sync_batchnorm: bool = False
    compile: bool = False
    parts: Mapping[str, Part] = field(default_factory=dict)
    lone_classifier: bool = False


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an objective is made from.

    Attributes:
        machine: Devices and processes.
        loss: Of logits and labels.
        source: What is learned from, as it was opened.
        loader: Of that; its own source may hold decoded images of one size.
        format: What the network gets.
    """

    machine: Machine
    loss: Loss
    source: Source
    loader: Loader
    format: TensorFormat


def supervised(setting: Setting) -> Objective:
    """The objective of labels alone."""
    return Supervised(setting.machine.accelerator, setting.loss)


def start(config: RunConfig) -> Machine:
    """Set up devices, processes and threads.

    Raises:
        UsageError: The machine cannot do what the options want.
    """
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("--precision fp16 needs a GPU; use bf16 or no")
    trackers = names_in(config.trackers)
    check_trackers(trackers)
    quiet_libraries()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    AcceleratorState._reset_state()  # of a run before this one in the same process, with another precision
    accelerator = Accelerator(
        mixed_precision=config.precision,
        log_with=[name for name in trackers if name != TENSORBOARD] or None,
        project_dir=str(config.out),
    )
    process = process_of(accelerator)
    wanted = processes_asked_for(_parent_command())
    if process.world == 1 and wanted > 1:
        say(
            f"accelerate launch was asked for {wanted} processes, but started one, as it does with --cpu; say "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {wanted}"
        )
    torch.set_num_threads(process.threads(config.threads))
    return Machine(accelerator, process)


def _check_batch_statistics(model: nn.Module, frozen: Sequence[nn.Module], config: RunConfig, world: int) -> None:
    """Batch normalisation has no statistics of one image.

    Raises:
        UsageError: A process would get one image at a time.
    """
    still = {id(module) for part in frozen for module in part.modules()}
    named, size = model.named_modules(), config.data.batch_size
    norms = [name for name, module in named if isinstance(module, _BatchNorm) and id(module) not in still]
    if norms and size // config.accumulate < 2 * world:
        raise UsageError(
            f"--data.batch_size {size} in --accumulate {config.accumulate} parts for {world} processes is one image at "
            f"a time, of which batch normalisation ({norms[0]}) has no statistics; take a larger batch or fewer parts"
        )


def processes_asked_for(command: Sequence[str]) -> int:
    """How many processes an `accelerate launch` was told to start; 1 if it was told nothing, or is another command."""
    for place, word in enumerate(command):
        name, _, value = word.partition("=")
        if name in ("-m", "--module"):  # what follows belongs to the job
            if not command[place + 1 : place + 2] or not command[place + 1].startswith("accelerate"):
                return 1
        elif name in ("--num_processes", "--num-processes"):
            number = value or "".join(command[place + 1 : place + 2])
            return int(number) if number.isdecimal() else 1
    return 1


def _parent_command() -> list[str]:
    """The command line of the process that started this one; empty where that cannot be known."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def assemble(
    config: RunConfig,
    machine: Machine,
    sources: tuple[Source, Source | None],
    network: Network,
    signals: StopSignals,
    objective: Callable[[Setting], Objective] = supervised,
    name: str = "train",
) -> Run:
    """Put a run together. The engine of its loaders is the caller's to close.

    Args:
        config: Options of the run.
        machine: From `start`.
        sources: From `training.engine.data.training_sources`.
        network: What to train.
        signals: What may stop the run.
        objective: Makes the objective.
        name: Of the job, for messages.

    Raises:
        UsageError: The options cannot be carried out.
    """
    accelerator, card = machine.accelerator, network.card
    stored = getattr(sources[0], "image_size", None)
    if stored and stored < card.size and accelerator.is_main_process:
        say(f"{name}: {config.data.path} holds images of {stored} px, enlarged to {card.size}; build a larger cache")
    wanted = TensorFormat("float32", card.mean, card.std, channels_last=network.channels_last)
    with agreeing(accelerator):  # preparing asks all processes
        labels = sources[0].labels
        met = (
            np.unique(labels) if config.data.order == "balanced" else labels
        )  # there all classes are met equally often
        loss = make_loss(config.loss, met, len(card.classes), accelerator.device)
        model, frozen = _placed(config, machine, network)
        learner = _with_parts(model, network, accelerator.device)
        optimizer = make_optimizer(model, config.optimizer, extra=getattr(learner, "parts", None))
        ema = ModelEmaV3(learner, decay=config.ema.decay, use_warmup=config.ema.warmup) if config.ema.decay else None
        averaged = deployed(ema.module) if ema is not None else None
        sparsity = sparsity_of(model, averaged, card.edits, config.sparsity)
        train_loader, val_loader = make_loaders(
            config, machine.process, sources, RenderSpec(card.size, card.fit), wanted
        )
    try:
        faster = torch.compile(learner) if network.compile else learner
        prepared, prepared_optimizer = accelerator.prepare(faster, optimizer)
        trainer = Trainer(
            accelerator=accelerator,
            model=prepared,
            optimizer=prepared_optimizer,
            schedule=Schedule(optimizer, config.schedule, config.optimizer.lr, len(train_loader) // config.accumulate),
            objective=objective(
                Setting(machine=machine, loss=loss, source=sources[0], loader=train_loader, format=wanted)
            ),
            format=wanted,
            clip_norm=config.optimizer.clip_norm,
            seed=config.seed,
            frozen=frozen,
            ema=ema,
            sparsity=sparsity,
        )
        if sparsity is not None and sparsity.planned is not None:
            card = replace(card, edits=(*card.edits, sparsity.planned))
        kind = Run if sparsity is None else SparseRun
        return kind(config, accelerator, trainer, train_loader, val_loader, card, signals, name)
    except BaseException:
        train_loader.engine.close()
        raise


class SparseRun(Run):
    """A run whose network has zeros that stay: its checkpoints know them, its best epoch has all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sparsity = self.trainer.sparsity
        assert sparsity is not None
        self._sparsity, sparsity.steps = sparsity, self.config.schedule.epochs * self.steps

    def _finish_epoch(self) -> None:
        if self.state.best_epoch * self.steps < self._sparsity.end:  # the best so far is not pruned to the end
            self.state.best_macro_f1 = -math.inf
        super()._finish_epoch()

    def _snapshot(self) -> dict[str, Any]:
        return super()._snapshot() | {"sparsity": self._sparsity.state_dict()}

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        super()._restore(checkpoint)
        self._sparsity.load_state_dict(checkpoint.get("sparsity"))


def _with_parts(model: nn.Module, network: Network, device: torch.device) -> nn.Module:
    """The placed network, together with what only training uses."""
    if not network.parts and not network.lone_classifier:
        return model
    return Learner(model, network.parts, lone_classifier=network.lone_classifier).to(device)


def _placed(config: RunConfig, machine: Machine, network: Network) -> tuple[nn.Module, list[nn.Module]]:
    """The network on its device, in its memory format; and its frozen parts."""
    model, device = network.model, machine.accelerator.device
    if network.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model.to(device)
    synced = network.sync_batchnorm and machine.process.world > 1
    if synced:
        model = synchronise(model, device)
    frozen = freeze(model, network.freeze)  # not before: synchronising may put other modules in their place
    if not synced:
        _check_batch_statistics(model, frozen, config, machine.process.world)
    return model, frozen
