"""Train a classifier on a cache or a folder of crops, on one process or many (accelerate launch)."""

import json
import time
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from pipelines.console.files import write_text
from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.output import human_seconds, render_table, say
from pipelines.console.progress import ProgressMeter
from pipelines.errors import UsageError
from pipelines.loader import Loader
from pipelines.tensors import TensorFormat
from training.engine.checkpoint import RESUME_NAME, load_checkpoint, save_checkpoint
from training.engine.config import TrainConfig
from training.engine.data import Process, make_loaders, process_of
from training.engine.loop import EpochResult, Trainer, TrainState, balanced_weights, make_optimizer, make_schedule
from training.engine.metrics import Scores
from training.model.create import check_input_size, create_model, preprocessing
from training.model.model_file import ModelCard, save_model

EXAMPLE = """
  accelerate launch -m training.train --config training/recipes/demo.yaml --data.path out/cache
  accelerate launch -m training.train --data.path out/cache --model.name resnet18 --out runs/resnet18
  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m training.train --data.path out/cache
"""
CONFIG_NAME, METRICS_NAME = "config.yaml", "metrics.jsonl"
BEST_NAME, LAST_NAME = "best.safetensors", "last.safetensors"
FREE_OPTIONS = ("out", "resume", "overwrite", "data.check", "data.resident", "data.resident_share")
"""Options that a resumed run may change."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, or go on training.

    Returns:
        The report, on the first process only. Keys: `run`, `best_epoch`, `epochs`, `val_macro_f1` and `val_accuracy`
        (of the best epoch), `seconds`, `images_per_second`, `resumed_at` (epoch, 0 for a fresh run).
    """
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("--precision fp16 needs a GPU; use bf16 or no")
    quiet_libraries()
    accelerator = Accelerator(mixed_precision=config.precision)
    process = process_of(accelerator)
    torch.set_num_threads(process.threads(config.threads))
    checkpoint = _claim_run(config, accelerator)
    set_seed(config.seed)
    train_loader, val_loader, engine = make_loaders(config.data, process, config.seed)
    try:
        return _Run(config, accelerator, process, train_loader, val_loader).go(checkpoint)
    finally:
        engine.close()


def _claim_run(config: TrainConfig, accelerator: Accelerator) -> dict[str, Any] | None:
    """Decide between a fresh run and resuming; the checkpoint in the latter case. Equal on all processes."""
    checkpoint, error = None, None
    try:
        checkpoint = _find_checkpoint(config)
    except UsageError as found:
        error = found
    # A process that raised alone would leave the others waiting for it for ever.
    epoch = -2 if error else -1 if checkpoint is None else checkpoint["state"]["epoch"]
    epochs = accelerator.gather(torch.tensor([epoch], device=accelerator.device)).tolist()
    if error:
        raise error
    if len(set(epochs)) > 1:
        raise UsageError(f"the processes see different states of {config.out}; --out must lie on a disk that all share")
    return checkpoint


def _begin(config: TrainConfig, *, fresh: bool) -> None:
    """Prepare the folder of the run: not before all that can be wrong with the options has been looked at."""
    config.out.mkdir(parents=True, exist_ok=True)
    old = [".*.partial-*"]  # of a process that was killed while it wrote
    if fresh:
        old += [RESUME_NAME, BEST_NAME, LAST_NAME, METRICS_NAME, "evaluation_*.json", "confusion_*.png"]
    for pattern in old:
        for path in config.out.glob(pattern):
            path.unlink()
    if fresh:
        write_text(config.out / CONFIG_NAME, yaml.safe_dump(_plain(config), sort_keys=False))


def _find_checkpoint(config: TrainConfig) -> dict[str, Any] | None:
    """The checkpoint to go on from, None for a fresh run.

    Raises:
        UsageError: The folder holds a run that is not to be resumed or cannot be.
    """
    if config.out.exists() and not config.out.is_dir():
        raise UsageError(f"--out {config.out} is a file; choose another")
    if config.overwrite:
        return None
    checkpoint = load_checkpoint(config.out)
    if checkpoint is None:
        if (config.out / METRICS_NAME).exists():
            raise UsageError(
                f"{config.out} holds a run, but no {RESUME_NAME} to go on from; choose another --out, or give "
                "--overwrite true to replace it"
            )
        return None
    if config.resume == "never":
        raise UsageError(f"{config.out} holds a run already; choose another --out or give --overwrite true")
    try:
        saved = yaml.safe_load((config.out / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"{config.out / CONFIG_NAME} cannot be read ({error}); choose another --out, or give --overwrite true"
        ) from error
    difference = _difference(saved, _plain(config))
    if difference:
        raise UsageError(
            f"{config.out} holds a run with other options ({difference}); choose another --out, or give "
            "--overwrite true to start anew"
        )
    return checkpoint


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The options as YAML holds them: what `--config` reads back to go on with the run."""
    config = replace(config, overwrite=False, resume="auto")
    return json.loads(json.dumps(asdict(config), default=str))


def _difference(old: Any, new: Any, name: str = "") -> str:  # noqa: ANN401 - any YAML value
    """The first option in which two runs differ, in words; empty if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            dotted = f"{name}.{key}".lstrip(".")
            if dotted not in FREE_OPTIONS and (found := _difference(old.get(key), new.get(key), dotted)):
                return found
        return ""
    return "" if old == new else f"{name} was {old}, now {new}"


class _Run:
    """One run of the loop, from a fresh model or a checkpoint to the last epoch."""

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, process: Process, train_loader: Loader, val_loader: Loader
    ) -> None:
        self.config, self.accelerator, self.process = config, accelerator, process
        self.train_loader, self.val_loader = train_loader, val_loader
        self.classes = train_loader.source.classes
        if val_loader.source.classes != self.classes:
            raise UsageError(f"{config.data.path}: train and val have different classes; build the cache again")
        spec = train_loader.engine.spec
        self.size, self.fit = spec.size, spec.fit
        model = create_model(
            config.model.name, len(self.classes), drop_rate=config.model.drop_rate, weights=config.model.weights
        )
        check_input_size(model, config.model.name, self.size)
        self.mean, self.std = preprocessing(model)
        if config.model.channels_last:
            model = model.to(memory_format=torch.channels_last)
        model.to(accelerator.device)
        self.plain_model: nn.Module = model
        optimizer = make_optimizer(model, config.optimizer)
        prepared, self.optimizer = accelerator.prepare(model, optimizer)
        self.trainer = Trainer(
            accelerator=accelerator,
            model=prepared,
            optimizer=self.optimizer,
            schedule=make_schedule(optimizer, config.schedule, config.optimizer.lr, len(train_loader)),
            format=TensorFormat("float32", self.mean, self.std, channels_last=config.model.channels_last),
            label_smoothing=config.loss.label_smoothing,
            class_weights=balanced_weights(train_loader.source.labels, len(self.classes), config.loss.class_balance).to(
                accelerator.device
            ),
            clip_norm=config.optimizer.clip_norm,
        )
        self.state = TrainState()
        self.data_fingerprint = self._data_fingerprint()

    def go(self, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
        """Run all epochs that are left; the report."""
        if checkpoint is not None:
            self._restore(checkpoint)
        if self.accelerator.is_main_process:
            _begin(self.config, fresh=checkpoint is None)
            self._write_log()
        resumed_at, start, images = self.state.epoch, time.monotonic(), 0
        main, epochs, steps = self.accelerator.is_main_process, self.config.schedule.epochs, len(self.train_loader)
        if main and resumed_at:
            say(f"train: resuming {self.config.out} after epoch {resumed_at} of {epochs}")
        with ProgressMeter("train", (epochs - resumed_at) * steps, "steps", enabled=main) as progress:
            for epoch in range(resumed_at, epochs):
                result = self.trainer.train_epoch(self.train_loader, epoch, self.config.seed, progress)
                scores, val_loss = self.trainer.evaluate(self.val_loader, len(self.classes))
                self._record(epoch, result, scores, val_loss)
                self._say_skipped()
                images += result.images
        self.accelerator.wait_for_everyone()
        seconds = time.monotonic() - start
        return self._report(resumed_at, images, seconds) if main else {}

    def _record(self, epoch: int, result: EpochResult, scores: Scores, val_loss: float) -> None:
        """Note an epoch: state, metrics.jsonl, model files, checkpoint."""
        state = self.state
        state.epoch = epoch + 1
        better = scores.macro_f1 > state.best_macro_f1
        if better:
            state.best_epoch, state.best_macro_f1, state.best_accuracy = epoch + 1, scores.macro_f1, scores.accuracy
        if not self.accelerator.is_main_process:
            return
        rate = result.images / result.seconds
        line = {
            "epoch": epoch + 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": result.loss,
            "val_loss": val_loss,
            "val_macro_f1": scores.macro_f1,
            "val_accuracy": scores.accuracy,
            "seconds": round(result.seconds, 3),
            "data_wait": round(result.data_wait, 3),
            "images_per_second": round(rate, 1),
        }
        state.log.append(line)
        card = self._card(scores)
        save_model(self.config.out / LAST_NAME, self.plain_model, card)
        if better:
            save_model(self.config.out / BEST_NAME, self.plain_model, card)
        save_checkpoint(self.config.out, self._snapshot())
        self._write_log()
        say(
            f"epoch {epoch + 1}/{self.config.schedule.epochs} · loss {result.loss:.3f} · val loss {val_loss:.3f} · "
            f"val macro F1 {scores.macro_f1:.4f}{' (best)' if better else ''} · "
            f"{rate:,.0f} images/s · waited for data {100 * result.data_wait / result.seconds:.0f} %"
        )

    def _write_log(self) -> None:
        """metrics.jsonl, whole: after a kill it holds exactly the epochs that the checkpoint holds."""
        write_text(self.config.out / METRICS_NAME, "".join(json.dumps(line) + "\n" for line in self.state.log))

    def _card(self, scores: Scores) -> ModelCard:
        return ModelCard(
            architecture=self.config.model.name,
            classes=self.classes,
            size=self.size,
            fit=self.fit,
            mean=self.mean,
            std=self.std,
            provenance={
                "epoch": self.state.epoch,
                "val_macro_f1": scores.macro_f1,
                "seed": self.config.seed,
                "precision": self.config.precision,
                "split": {name: getattr(self.config.data, name) for name in ("val", "test", "split_seed")},
                "weights": str(self.config.model.weights) if self.config.model.weights else None,
                "timm": version("timm"),
                "torch": version("torch"),
            },
        )

    def _say_skipped(self) -> None:
        """Say which samples were left out since this was last called, if any were."""
        for loader in (self.train_loader, self.val_loader):
            if loader.skipped:
                first = loader.skipped[0]
                say(f"train: left out {len(loader.skipped)} damaged samples, first {first.where}: {first.reason}")
                loader.skipped.clear()

    def _data_fingerprint(self) -> str:
        """What the run sees: resuming on other images, labels or augmentations would not be the same run."""
        digest = sha256(json.dumps([self.classes, self.size, self.fit]).encode())
        for loader in (self.train_loader, self.val_loader):
            digest.update(loader.source.fingerprint.encode())
            digest.update(repr(loader.options.policy).encode())
        return digest.hexdigest()

    def _snapshot(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "state": asdict(self.state),
            "data": self.data_fingerprint,
            "model": self.plain_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["data"] != self.data_fingerprint:
            raise UsageError(
                f"{self.config.data.path} is not the data that {self.config.out} was begun with; choose another "
                "--out, or give --overwrite true to start anew"
            )
        self.state = TrainState(**checkpoint["state"])
        self.plain_model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint["scaler"])

    def _report(self, resumed_at: int, images: int, seconds: float) -> dict[str, Any]:
        return {
            "run": str(self.config.out),
            "best_epoch": self.state.best_epoch,
            "epochs": self.state.epoch,
            "val_macro_f1": self.state.best_macro_f1,
            "val_accuracy": self.state.best_accuracy,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 1) if images else None,
            "resumed_at": resumed_at,
        }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    rows = [
        ["best epoch", f"{report['best_epoch']} of {report['epochs']}"],
        ["macro F1 (validation)", report["val_macro_f1"]],
        ["images/s, evaluation included", report["images_per_second"]],
        ["time", human_seconds(report["seconds"])],
    ]
    text = render_table(["training", f">{report['run']}"], rows)
    return f"{text}\nmodel: {Path(report['run']) / BEST_NAME}"


def main() -> None:
    """Run the job."""
    run_job(TrainConfig, train, name="training.train", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
