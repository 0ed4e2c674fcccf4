"""A run: epochs of training and validation from a fresh model or a checkpoint to the last epoch.

Whatever stops it (a signal, kill -9, a full disk), the same command goes on and ends with the same weights: order, plan
and noise are functions of the step, and a checkpoint holds everything else.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NoReturn

import numpy as np
import torch

from pipelines.console.output import say
from pipelines.console.progress import ProgressMeter
from pipelines.console.words import names_in
from pipelines.errors import ProblemFoundError, UsageError
from pipelines.loader import Batch, Loader
from training.engine.agree import agreeing
from training.engine.checkpoint import Checkpoints
from training.engine.config import RunConfig
from training.engine.fingerprints import data_fingerprint, network_fingerprint
from training.engine.folder import BEST_NAME, LAST_NAME, begin, hold, let_go, plain
from training.engine.loop import Trainer
from training.engine.messages import epoch_line, epoch_text, memory, progress_text, trouble_text, where
from training.engine.metrics import Scores
from training.engine.preemption import Council, StopSignals, Wish, preempted
from training.engine.snapshot import restore, snapshot
from training.engine.state import RunState
from training.engine.tracking import RunLog
from training.engine.watch import LossWatch, Trouble
from training.model.card import ModelCard, ancestry
from training.model.model_file import save_state

LOOK_EVERY_ON_GPU = 50
"""Steps between two looks at the loss: each makes the GPU wait."""


class _Stopped(Exception):
    """All processes have agreed to stop."""


@dataclass
class Run:
    """One run; every attribute is there on every process.

    Attributes:
        config: Its options.
        accelerator: accelerate.Accelerator.
        trainer: Makes the steps.
        train_loader: What is learned from.
        val_loader: What the best epoch is chosen by; None where the last one counts.
        card: What its model files say, but for scores and provenance of the run.
        signals: What may stop it.
        name: Of the job, for messages.
    """

    config: RunConfig
    accelerator: Any
    trainer: Trainer
    train_loader: Loader
    val_loader: Loader | None
    card: ModelCard
    signals: StopSignals
    name: str = "train"

    def __post_init__(self) -> None:
        config, world = self.config, self.accelerator.num_processes
        self.state = RunState()
        self.main = bool(self.accelerator.is_main_process)
        self.steps = len(self.train_loader) // config.accumulate
        self.checkpoints = Checkpoints(config.out, config.save.keep)
        self.data = data_fingerprint(self.card, self.train_loader, self.val_loader)
        self.network = network_fingerprint(self.card)
        guessing = math.log(max(len(self.card.classes), 2)) * self.trainer.objective.size
        limit = config.loss_limit * guessing if config.loss_limit else math.inf
        on_gpu = self.accelerator.device.type == "cuda"
        self._watch = LossWatch(min(limit, sys.float_info.max), LOOK_EVERY_ON_GPU if on_gpu else 1)
        self._trouble: Trouble | None = None
        self._council = Council(world)
        self._loss = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        self._log = RunLog(config.out, names_in(config.trackers), plain(config), self.accelerator)
        self._best: dict[str, torch.Tensor] | None = None
        self._best_card = self.card
        self._saved_at = time.monotonic()

    def fit(self, checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
        """Run all epochs that are left.

        Args:
            checkpoint: From `claim`.

        Returns:
            The report, on the first process; elsewhere it is empty.

        Raises:
            PreemptedError: It was told to stop; everything is saved.
            ProblemFoundError: The loss cannot be right.
            OSError: The end of the run could not be saved.
        """
        with agreeing(self.accelerator):
            if checkpoint is not None:
                self._restore(checkpoint)
        lock = None
        try:
            with agreeing(self.accelerator):
                if self.main:
                    lock = hold(self.config.out)
                    self._begin(fresh=checkpoint is None)
            return self._fit()
        except RuntimeError as error:
            if self.accelerator.num_processes == 1:
                raise
            raise ProblemFoundError(
                f"a process of this run has ended ({error}); see its own message, then run the same command again"
            ) from error
        finally:
            if lock is not None:
                self._log.close()
                let_go(self.config.out, lock)

    def _begin(self, *, fresh: bool) -> None:
        """Prepare the folder, and say what begins. First process only."""
        config, state = self.config, self.state
        begin(config, state.step, fresh=fresh)
        self._log.begin(state.log, state.step, fresh=fresh)
        world, samples = self.accelerator.num_processes, len(self.train_loader.source.labels)
        say(
            f"{self.name}: {samples:,} samples, {self.steps:,} steps an epoch, {world} process{'es' * (world > 1)} on "
            f"{self.accelerator.device.type}"
        )
        if fresh:  # shows at once whether there is room, and a run that is killed soon can go on
            self.checkpoints.save(0, self._snapshot())
        else:
            say(f"{self.name}: resuming {config.out} {where(state, self.steps, config.schedule.epochs)}")

    def _fit(self) -> dict[str, Any]:
        state, began_at, began = self.state, self.state.step, time.monotonic()
        left = 0 if state.stopped else self.config.schedule.epochs * self.steps - state.step
        try:
            with ProgressMeter(self.name, left, "steps", enabled=self.main) as progress:
                while state.epoch < self.config.schedule.epochs and not state.stopped:
                    if not state.trained:
                        self._train_epoch(progress)
                    self._finish_epoch()
                self._save(final=True)
        except _Stopped:
            self._stop()
        self.accelerator.wait_for_everyone()
        images = (state.step - began_at) * self.config.data.batch_size
        return self._report(began_at, images, time.monotonic() - began) if self.main else {}

    @property
    def _images(self) -> int:
        """Images of the epoch under way that have been learned from."""
        done = self.state.step - self.state.epoch * self.steps
        return done * self.config.data.batch_size

    def _train_epoch(self, progress: ProgressMeter) -> None:
        """Train what is left of the epoch under way."""
        state, loader = self.state, self.train_loader
        loader.set_epoch(state.epoch)
        self.trainer.objective.begin(state.epoch, self._pause)
        self.trainer.train_mode()
        began = time.monotonic() - state.seconds
        steps = self.steps - (state.step - state.epoch * self.steps)
        for parts in self._batches(steps):
            self._council.ask(self._wish())
            share = self.trainer.step(parts, state.step, loader.options.batch_size)
            self._loss += share
            state.step += 1
            state.seconds = time.monotonic() - began
            self._look(share, parts)
            progress.advance(1, progress_text(state, self._watch.latest, self._images, self.accelerator.device))
            heard = self._council.hear()
            # Alone there is nobody to wait for: what came during the step is heard at once.
            self._obey(max(heard, self.signals.wish) if self.accelerator.num_processes == 1 else heard)
        state.loss, state.trained = self._total_loss(), True
        state.seconds = time.monotonic() - began  # a GPU has done the steps only once it has told their loss

    def _batches(self, steps: int) -> Iterator[list[Batch]]:
        """The batches of so many steps, each in as many parts as gradients are accumulated over."""
        batches = iter(self.train_loader)
        for _ in range(steps):
            asked = time.monotonic()
            parts = list(islice(batches, self.config.accumulate))
            self.state.data_wait += time.monotonic() - asked
            yield parts

    def _look(self, share: torch.Tensor, parts: list[Batch]) -> None:
        """Keep an eye on the loss, of which this process knows its own part."""
        rows = np.concatenate([part.rows for part in parts])
        step, watch = self.state.step, self._watch
        trouble = watch.add(step, share * self.accelerator.num_processes, rows)
        self._trouble = self._trouble or trouble
        if self.main and step % LOOK_EVERY_ON_GPU == 0 and not math.isnan(watch.latest):
            self._log.numbers({"train/loss": watch.latest, "train/lr": self.trainer.schedule.rate}, step)

    def _wish(self) -> Wish:
        """What this process wants before a step."""
        if self._trouble is not None:
            return Wish.GIVE_UP
        if self.signals.wish is Wish.STOP:
            return Wish.STOP
        every = self.config.save.steps
        due = time.monotonic() - self._saved_at > 60 * self.config.save.minutes
        # The step that is about to begin is the one after which the wish is granted.
        return Wish.SAVE if self.main and (due or (every and (self.state.step + 1) % every == 0)) else Wish.GO_ON

    def _obey(self, wish: Wish) -> None:
        if wish is Wish.GIVE_UP:
            self._give_up()
        if wish is Wish.STOP:
            raise _Stopped
        if wish is Wish.SAVE:
            self._save()

    def _pause(self) -> None:
        """Between two batches of an evaluation."""
        self._council.ask(self.signals.wish)
        if self._council.hear() is Wish.STOP:
            raise _Stopped

    def _finish_epoch(self) -> None:
        """Validate, choose the best, note everything."""
        state = self.state
        scores, val_loss = None, None
        if self.val_loader is not None:
            scores, val_loss = self.trainer.evaluate(self.val_loader, len(self.card.classes), self._pause)
            if not math.isfinite(val_loss):
                self._give_up()
        chosen = scores is not None and self.trainer.objective.classifies
        better = not chosen or (scores is not None and scores.macro_f1 > state.best_macro_f1 + self._min_delta())
        line = epoch_line(state, self.steps, self._images, self.trainer.schedule.rate, scores, val_loss)
        line["memory_bytes"] = memory(self.accelerator.device)
        state.epoch, state.trained = state.epoch + 1, False
        state.log.append(line)
        if better:
            state.best_epoch = state.epoch
            if scores is not None:
                state.best_macro_f1, state.best_accuracy = scores.macro_f1, scores.accuracy
            self._keep_best(scores)
        if scores is not None:
            self.trainer.schedule.observe(scores.macro_f1)
        patience = self.config.stop.patience
        state.stopped = patience > 0 and state.epoch - state.best_epoch >= patience
        if self.main:
            self._log.epoch(state.log, state.step)
            say(epoch_text(line, self.config.schedule.epochs, better=better and chosen))
            if state.stopped:
                say(f"{self.name}: no better macro F1 for {patience} epochs; stopping")
        self._say_skipped()
        state.loss = state.seconds = state.data_wait = 0.0
        self._loss.zero_()

    def _min_delta(self) -> float:
        return self.config.stop.min_delta if self.state.best_epoch else 0.0

    def _say_skipped(self) -> None:
        """Say which samples were left out since this was last called, if any were."""
        for loader in (self.train_loader, self.val_loader):
            if loader is not None and loader.skipped:
                first = loader.skipped[0]
                say(f"{self.name}: left out {len(loader.skipped)} damaged samples, first {first.where}: {first.reason}")
                loader.skipped.clear()

    def _keep_best(self, scores: Scores | None) -> None:
        """Hold the weights until the next checkpoint: a file an epoch would be too many where epochs are short."""
        if self.main:
            self._best = {name: value.detach().cpu().clone() for name, value in self._evaluated_state().items()}
            self._best_card = self._dated_card(scores)

    def _evaluated_state(self) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.trainer.evaluated.state_dict()
        return state

    def _dated_card(self, scores: Scores | None) -> ModelCard:
        score = {} if scores is None else {"val_macro_f1": scores.macro_f1}
        return replace(self.card, provenance={"epoch": self.state.epoch, **score, **self.card.provenance})

    def _total_loss(self) -> float:
        """Sum of the losses of the epoch under way, over all processes.

        Raises:
            ProblemFoundError: It is no number, or that of a step was too high on any process.
        """
        self._trouble = self._trouble or self._watch.look()
        own = torch.stack([self._loss, torch.full_like(self._loss, float(self._trouble is not None))])
        total, troubles = self.accelerator.reduce(own, "sum").tolist()
        if troubles or not math.isfinite(total) or not self._is_finite():
            self._give_up()
        return float(total)

    def _is_finite(self) -> bool:
        """Whether every weight is a number; the same on all processes."""
        tensors = [value for value in self.trainer.plain.state_dict().values() if value.is_floating_point()]
        return bool(torch.stack([value.isfinite().all() for value in tensors]).all())

    def _save(self, *, final: bool = False) -> None:
        """Write model files and a checkpoint. Only at the end of the run is a failure an error."""
        if not self.state.trained:
            self.state.loss = self._total_loss()
        error: OSError | None = None
        if self.main:
            try:
                self._write(final=final)
            except OSError as found:
                error = found
        self._saved_at = time.monotonic()
        if not final:
            if error is not None:
                say(f"{self.name}: {self._failed(error)}; training goes on")
            return
        self._council.ask(Wish.GIVE_UP if error else Wish.GO_ON)
        if error is not None:
            raise OSError(error.errno, f"{error.strerror}: {self._failed(error)}", error.filename)
        if self._council.hear() is Wish.GIVE_UP:
            raise ProblemFoundError("the first process could not save the end of the run")

    def _failed(self, error: OSError) -> str:
        last = self.checkpoints.paths()
        return (
            f"the checkpoint could not be written ({error.strerror or error}); free space. "
            f"The last complete one is {last[-1] if last else 'none'}"
        )

    def _write(self, *, final: bool) -> None:
        # Model files first: whatever of them is newer than the checkpoint will be made again, the same.
        if self._best is not None:
            save_state(self.config.out / BEST_NAME, self._best, self._best_card)
            self._best = None
        if final:
            card = replace(self.card, provenance={"epoch": self.state.epoch, **self.card.provenance})
            save_state(self.config.out / LAST_NAME, self._evaluated_state(), card)
        self.checkpoints.save(self.state.step, self._snapshot())

    def _snapshot(self) -> dict[str, Any]:
        begun = {"data": self.data, "network": self.network, "objective": self.trainer.objective.fingerprint}
        return begun | {"ancestry": ancestry(self.card)} | snapshot(self.state, self.trainer, self.train_loader)

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        out = self.config.out
        cure = "choose another --out, or give --overwrite true to start anew"
        if checkpoint["data"] != self.data:
            raise UsageError(f"{self.config.data.path} is not the data that {out} was begun with; {cure}")
        if checkpoint["network"] != self.network:
            name = self.card.architecture
            raise UsageError(f"{name} is not what it was when {out} was begun: its definition has changed; {cure}")
        if checkpoint.get("objective", "") != self.trainer.objective.fingerprint:
            raise UsageError(f"the teacher is not the one that {out} was begun with; {cure}")
        # What it started from may be gone by now, or may have learned more.
        known = {key: value for key, value in checkpoint.get("ancestry", {}).items() if key != "architecture"}
        self.card = replace(self.card, provenance={**self.card.provenance, **known})
        try:
            self.state = restore(checkpoint, self.trainer, self.train_loader)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"the checkpoint of {out} does not fit the network ({error}); was timm or torch updated? {cure}"
            ) from error
        if self.main:  # the others' shares are in it
            self._loss.fill_(self.state.loss)

    def _stop(self) -> NoReturn:
        """Save, wait until it is saved, and say how to go on. A failure to save does not hide the signal."""
        self._save()
        self.accelerator.wait_for_everyone()
        raise preempted(self.signals.received, self.config.out, self.config.max_requeues)

    def _give_up(self) -> NoReturn:
        """Weights or losses cannot be right: say of which samples, and what is still good."""
        if self.main and self._best is not None:  # with other options it cannot be made again
            with suppress(OSError):
                save_state(self.config.out / BEST_NAME, self._best, self._best_card)
        trouble, describe = self._trouble, self.train_loader.source.describe
        names = [] if trouble is None else [describe(int(row)) for row in trouble.rows]
        best = self.config.out / BEST_NAME if self.state.best_epoch else None
        raise ProblemFoundError(trouble_text(trouble, names, self.state, self.checkpoints.paths(), best))

    def _report(self, began_at: int, images: int, seconds: float) -> dict[str, Any]:
        state, validated = self.state, self.val_loader is not None
        return {
            "run": str(self.config.out),
            "best_epoch": state.best_epoch,
            "epochs": state.epoch,
            "steps": state.step,
            "val_macro_f1": state.best_macro_f1 if validated else None,
            "val_accuracy": state.best_accuracy if validated else None,
            "stopped_early": state.stopped,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 1) if images else None,
            "resumed_at": began_at,
        }
