"""The options of a training run, as one frozen dataclass per topic."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.console.ranges import check_ranges
from pipelines.engines.choose import EngineName
from pipelines.errors import UsageError
from pipelines.mix import MixOptions
from pipelines.resident import ResidentMode
from training.engine.losses import LossConfig
from training.engine.optimization import OptimizerConfig, ScheduleConfig
from training.engine.sparsity import SparsityConfig

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the samples come from and what happens to them on the way.

    Args:
        path: A cache (from augment_cache.build), a folder of crops, a folder of class folders, or photos with their
            annotations.json.
        size: Side of the model's input in px; when absent that of the model file that --model.name names, else of the
            cache, 64 for a folder.
        batch_size: Images per step, over all processes together.
        train_on: train leaves the validation split for choosing the best epoch; train+val and all learn from more, so
            that there is nothing to choose by: the last epoch counts.
        folds: Cross-validation: cut train and val into so many parts; 0 for none.
        fold: Which part to validate on, counted from 0; all in turn when absent.
        groups: The crops.json of the crops that a cache was built from, so that crops of one photo stay in one fold.
        copies: Use only so many augmented copies of each sample in the cache; all when absent.
        flip: Mirror half of the training images left to right.
        min_area: Smallest share of the image that a random resized crop shows; 1 switches it off.
        augment: Policy for online augmentation, by name or path, drawn anew in each epoch; none when absent.
        views: Let flips, crops and online augmentation of an image come again after so many epochs; 0 draws new ones in
            each epoch. A teacher then has to look at each of them only once.
        order: shuffled sees each training row once per epoch; balanced draws every class equally often, rows of rare
            classes several times, each time with another flip, crop and augmentation.
        check: rows holds every row of a cache against its checksum when it is read; off trusts the disk.
        damaged: raise stops at a sample that cannot be read; skip leaves it out and says so: its share of the loss of
            its batch is missing.
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
    train_on: Literal["train", "train+val", "all"] = "train"
    folds: int = 0
    fold: int | None = None
    groups: Path | None = None
    copies: int | None = None
    flip: bool = True
    min_area: float = 1.0
    augment: str | None = None
    views: int = 0
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
        name: Of timm or pytorchcv, or a YAML file; python -m training.models lists them. Or a model file or run folder,
            pressed or not: its architecture and its weights.
        weights: Where to start from: a state dict (.safetensors or .pth), a run folder or a model file, or `pretrained`
            for what timm's hub has; `random` draws them, also where name is a model file. When absent, a model file has
            its own, and an architecture random ones.
        freeze: Parts that do not learn, by the first components of their names: conv_stem,bn1,blocks.0 for example; or
            all-but-classifier.
        drop_rate: Dropout before the classifier.
        drop_path: Stochastic depth, where the network has it.
        channels_last: Keep activations in channels-last memory.
        sync_batchnorm: Batch normalisation over the images of all processes, so that their number changes nothing.
        compile: Compile the network with torch.compile. Pays off for large networks only.
    """

    name: str = "mobilenetv3_small_050"
    weights: str | None = None
    freeze: str = ""
    drop_rate: float = 0.0
    drop_path: float = 0.0
    channels_last: bool = True
    sync_batchnorm: bool = False
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class MixConfig(MixOptions):
    """Mixup and CutMix, of pairs of images within a batch.

    Args:
        mixup: Mixup's alpha: shares are drawn from Beta(alpha, alpha); 0 for no mixup. 0.2 to 0.8 are usual.
        cutmix: CutMix' alpha, likewise; 1 is usual.
        probability: Share of the batches that are mixed.
        switch: Share of those that get CutMix, where both are on.
    """

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise UsageError(f"--mix.{error}") from error


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of the weights (timm's ModelEmaV3). If on, it is what is evaluated and kept.

    Args:
        decay: Share of the old average that stays at each step, for example 0.999; 0 switches the average off.
        warmup: Begin with a smaller decay, so that the first weights are forgotten soon.
    """

    decay: float = 0.0
    warmup: bool = True


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """When to stop before the last epoch.

    Args:
        patience: Epochs without a better macro F1 on the validation split; 0 never stops early.
        min_delta: How much better counts.
    """

    patience: int = 0
    min_delta: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """When checkpoints are written. Whenever that is, a resumed run ends with the same weights.

    Args:
        minutes: A checkpoint after so many minutes, in the middle of an epoch too. Besides, one is written when the run
            ends, and when it is told to stop.
        steps: One after so many optimizer steps, too; 0 for none of these.
        keep: How many checkpoints to keep: if the newest is damaged, the one before is used.
    """

    minutes: float = 1.0
    steps: int = 0
    keep: int = 2


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What all jobs that train have in common.

    Args:
        data: Where the samples come from.
        optimizer: How weights move.
        schedule: How long.
        loss: What is minimised.
        mix: Mixup and CutMix.
        ema: Average of the weights.
        sparsity: Pruning of weights while they learn.
        stop: Stopping early.
        save: Checkpoints.
        out: Folder of the run: config.yaml, run.json, metrics.jsonl, tensorboard/, checkpoints/, best.safetensors,
            last.safetensors.
        seed: Of weights, order, flips and crops.
        accumulate: Cut each batch into so many parts whose gradients are added up: less memory, the same steps.
        precision: no is float32; fp16 needs a GPU.
        threads: CPU threads of the network per process; 0 divides the cores among the processes, whatever
            OMP_NUM_THREADS says (accelerate launch sets it to 1). On a CPU, other threads give other last bits.
        deterministic: Take deterministic kernels on GPUs where there are any, and warn of others: slower.
        loss_limit: Stop when the loss of a step is more than so many times that of guessing; 0 for any.
        trackers: Where to log besides metrics.jsonl, with commas between: tensorboard, and any that Accelerate knows
            (wandb, mlflow, …); empty for none.
        resume: auto goes on where a run in the same folder stopped; never refuses a folder that has a run.
        overwrite: Replace a run in the same folder.
        max_requeues: Under Slurm, ask for no restart after so many.
    """

    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    out: Path = Path("runs/train")
    seed: int = 0
    accumulate: int = 1
    precision: Precision = "no"
    threads: int = 0
    deterministic: bool = False
    loss_limit: float = 20.0
    trackers: str = "tensorboard"
    resume: Literal["auto", "never"] = "auto"
    overwrite: bool = False
    max_requeues: int = 20

    def __post_init__(self) -> None:
        positive = {
            "--data.batch_size": self.data.batch_size,
            "--data.min_area": self.data.min_area,
            "--accumulate": self.accumulate,
            "--save.keep": self.save.keep,
            "--save.minutes": self.save.minutes,
        }
        for name, value in positive.items():
            if not value > 0:
                raise UsageError(f"{name} must be above 0, got {value}")
        check_ranges(self._ranges())
        self._check_together()

    def _ranges(self) -> dict[str, tuple[float | None, float, float]]:
        return {
            "--data.min_area": (self.data.min_area, 0, 1),
            "--data.size": (self.data.size, 4, 4096),
            "--data.copies": (self.data.copies, 0, 1000),
            "--data.threads": (self.data.threads, 0, 4096),
            "--data.folds": (self.data.folds, 0, 1000),
            "--data.views": (self.data.views, 0, 1e6),
            "--data.resident_share": (self.data.resident_share, 1e-6, 1),
            "--ema.decay": (self.ema.decay, 0, 0.999999),
            "--stop.patience": (self.stop.patience, 0, 1e6),
            "--stop.min_delta": (self.stop.min_delta, 0, 1),
            "--save.steps": (self.save.steps, 0, 1e9),
            "--loss_limit": (self.loss_limit, 0, 1e9),
            "--seed": (self.seed, 0, 2**32 - 1),
            "--threads": (self.threads, 0, 4096),
            "--max_requeues": (self.max_requeues, 0, 1e6),
        }

    def _check_together(self) -> None:
        data = self.data
        if data.batch_size % self.accumulate:
            raise UsageError(
                f"--data.batch_size {data.batch_size} cannot be cut into --accumulate {self.accumulate} equal parts"
            )
        if data.folds == 1 or (data.fold is not None and not 0 <= data.fold < data.folds):
            raise UsageError(
                f"--data.fold {data.fold} of --data.folds {data.folds} does not exist; folds are counted from 0, and "
                "there are at least 2"
            )
        if data.groups is not None and not data.folds:
            raise UsageError(f"--data.groups {data.groups} is for cross-validation; give --data.folds, or leave it out")
        if data.train_on == "train":
            return
        choices = {"--data.folds": data.folds, "--stop.patience": self.stop.patience}
        for name, value in choices.items():
            if value:
                raise UsageError(f"{name} needs a validation split, but --data.train_on {data.train_on} learns from it")
        if self.schedule.name == "plateau":
            raise UsageError(f"--schedule.name plateau needs a validation split; --data.train_on is {data.train_on}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Options of the train job.

    Args:
        model: Which network.
    """

    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, share in (("drop_rate", self.model.drop_rate), ("drop_path", self.model.drop_path)):
            if not 0 <= share <= 0.99:
                raise UsageError(f"--model.{name} must be 0 to 0.99, got {share}")
