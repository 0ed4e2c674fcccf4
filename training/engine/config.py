"""The options of a training run, as one frozen dataclass per topic."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.engines.choose import EngineName
from pipelines.errors import UsageError
from pipelines.resident import ResidentMode

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the samples come from and what happens to them on the way.

    Args:
        path: A cache (from augment_cache.build), a folder of crops, a folder of class folders, or photos with their
            annotations.json.
        size: Side of the model's input in px; the cache's own size when absent, 64 for a folder.
        batch_size: Images per step, over all processes together.
        copies: Use only so many augmented copies of each sample in the cache; all when absent.
        flip: Mirror half of the training images left to right.
        min_area: Smallest share of the image that a random resized crop shows; 1 switches it off.
        augment: Policy for online augmentation, by name or path, drawn anew in each epoch; none when absent.
        order: shuffled sees each training row once per epoch; balanced draws every class equally often, rows of rare
            classes several times, each time with another flip, crop and augmentation.
        check: rows holds every row of a cache against its checksum when it is read; off trusts the disk.
        damaged: raise stops at a sample that cannot be read; skip leaves it out and says so.
        resident: Keep all decoded images in memory, so that an epoch reads and decodes nothing. auto does where that
            changes no pixel and the memory is there.
        resident_share: Of the free memory that auto may take.
        engine: Renders the images. auto is DALI on a GPU, the cpu engine otherwise.
        threads: CPU threads of the loader per process; 0 divides the cores among the processes.
        val: Share for validation, where path holds class folders without splits.
        test: Share for the test, likewise.
        split_seed: Which of the possible splits, likewise.
        allow_empty_classes: Accept classes without images.
    """

    path: Path
    size: int | None = None
    batch_size: int = 64
    copies: int | None = None
    flip: bool = True
    min_area: float = 1.0
    augment: str | None = None
    order: Literal["shuffled", "balanced"] = "shuffled"
    check: Literal["rows", "off"] = "rows"
    damaged: Literal["raise", "skip"] = "raise"
    resident: ResidentMode = "auto"
    resident_share: float = 0.3
    engine: EngineName = "auto"
    threads: int = 0
    val: float = 0.15
    test: float = 0.15
    split_seed: int = 0
    allow_empty_classes: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network.

    Args:
        name: A timm name.
        weights: State dict to start from (.safetensors or .pth); random weights when absent.
        drop_rate: Dropout before the classifier.
        channels_last: Keep activations in channels-last memory.
    """

    name: str = "mobilenetv3_small_050"
    weights: Path | None = None
    drop_rate: float = 0.0
    channels_last: bool = True


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights move.

    Args:
        name: A timm optimizer name: adamw, sgd, lamb, …
        lr: Peak learning rate.
        weight_decay: Not applied to biases and normalisation.
        momentum: Of sgd; first beta of others stays the library's default.
        clip_norm: Largest norm of the gradient; 0 switches clipping off.
    """

    name: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    clip_norm: float = 5.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the learning rate goes: a linear warm-up, then half a cosine down to `min_lr`.

    Args:
        epochs: Passes over the training rows.
        warmup_epochs: Length of the warm-up; may be a fraction.
        min_lr: Last learning rate, as a share of the peak.
    """

    epochs: int = 30
    warmup_epochs: float = 2.0
    min_lr: float = 0.01


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised.

    Args:
        label_smoothing: Share of the target that is spread over all classes.
        class_balance: How much rare classes count more: 0 not at all, 1 so that all classes weigh the same in total.
    """

    label_smoothing: float = 0.1
    class_balance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of the train job.

    Args:
        data: Where the samples come from.
        model: Which network.
        optimizer: How weights move.
        schedule: How long.
        loss: What is minimised.
        out: Folder of the run: config.yaml, metrics.jsonl, best.safetensors, last.safetensors, resume.pt.
        seed: Of weights, order, flips and crops.
        precision: no is float32; fp16 needs a GPU.
        threads: CPU threads of the network per process; 0 divides the cores among the processes, whatever
            OMP_NUM_THREADS says (accelerate launch sets it to 1). On a CPU, other threads give other last bits.
        resume: auto goes on where a run in the same folder stopped; never refuses a folder that has a run.
        overwrite: Replace a run in the same folder.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    out: Path = Path("runs/train")
    seed: int = 0
    precision: Precision = "no"
    threads: int = 0
    resume: Literal["auto", "never"] = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        positive = {
            "--data.batch_size": self.data.batch_size,
            "--schedule.epochs": self.schedule.epochs,
            "--optimizer.lr": self.optimizer.lr,
            "--data.min_area": self.data.min_area,
        }
        for name, value in positive.items():
            if not value > 0:
                raise UsageError(f"{name} must be above 0, got {value}")
        ranges = {
            "--data.min_area": (self.data.min_area, 0, 1),
            "--data.size": (self.data.size, 4, 4096),
            "--data.copies": (self.data.copies, 0, 1000),
            "--data.threads": (self.data.threads, 0, 4096),
            "--model.drop_rate": (self.model.drop_rate, 0, 0.99),
            "--loss.label_smoothing": (self.loss.label_smoothing, 0, 0.99),
            "--loss.class_balance": (self.loss.class_balance, 0, 1),
            "--optimizer.clip_norm": (self.optimizer.clip_norm, 0, 1e9),
            "--schedule.min_lr": (self.schedule.min_lr, 0, 1),
            "--seed": (self.seed, 0, 2**32 - 1),
            "--threads": (self.threads, 0, 4096),
        }
        for name, (number, least, most) in ranges.items():
            if number is not None and not least <= number <= most:
                raise UsageError(f"{name} must be {least} to {most}, got {number}")
        if not 0 <= self.schedule.warmup_epochs < self.schedule.epochs:
            raise UsageError(
                f"--schedule.warmup_epochs {self.schedule.warmup_epochs} must be shorter than "
                f"--schedule.epochs {self.schedule.epochs}"
            )
