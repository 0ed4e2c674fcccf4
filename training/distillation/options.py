"""The options of distillation, as one frozen dataclass per topic."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipelines.console.ranges import check_ranges
from pipelines.console.words import names_in
from pipelines.errors import UsageError
from training.engine.config import TrainConfig
from training.engine.sparsity import SparsityConfig

Combine = Literal["mean", "weighted", "best"]
Outputs = Literal["auto", "cached", "online"]


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Who teaches.

    Args:
        paths: One teacher, or several with commas between: a run folder, a model file, an .onnx file, NAME=FILE (a
            network and its weights), or NAME (a network of timm, with the weights of timm's hub). Each sees the images
            at the size that it was trained for.
        combine: How several become one: mean of their probabilities; weighted mean; or best, for each image the one
            whose loss on the true label is the smallest.
        weights: Of weighted, with commas between.
        only_right: Learn from a teacher only where its first choice is the true label.
        outputs: cached keeps what a teacher says in Arrow files and reads it from there; online asks it in every step.
            auto keeps it where flips, crops and augmentation come again (--data.views, or none of them) and batches are
            neither mixed nor balanced. An online teacher sees the student's images, enlarged or made smaller.
        cache: Folder for those files; beside --data.path when absent.
        batch_size: Images per question.
    """

    paths: str = ""
    combine: Combine = "mean"
    weights: str = ""
    only_right: bool = False
    outputs: Outputs = "auto"
    cache: Path | None = None
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_ranges({"--teacher.batch_size": (self.batch_size, 1, 65536)})
        given = names_in(self.weights)
        if (self.combine == "weighted") != bool(given):
            raise UsageError("--teacher.weights belongs to --teacher.combine weighted; give both or none")
        if given and len(given) != len(names_in(self.paths)):
            raise UsageError(f"--teacher.weights names {len(given)} weights for {len(names_in(self.paths))} teachers")
        self.shares()

    def shares(self) -> list[float]:
        """Weight of each teacher; they sum to 1.

        Raises:
            UsageError: They are not numbers above 0.
        """
        if not self.weights:
            teachers = names_in(self.paths)
            return [1 / len(teachers) for _ in teachers]
        try:
            values = [float(word) for word in names_in(self.weights)]
        except ValueError as error:
            raise UsageError(f"--teacher.weights {self.weights}: {error}; write for example 2,1") from error
        if not all(0 < value < math.inf for value in values):
            raise UsageError(f"--teacher.weights {self.weights}: each must be above 0")
        return [value / sum(values) for value in values]


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How the student learns besides from labels. python -m training.distill --methods explains each method.

    Args:
        name: One method, or several with commas between, whose losses are added up: kd, dkd, dist, feature, relational,
            residual, arcface, auxiliary, autoencoder.
        alpha: Share of the method in the loss, the rest is --loss; the method's own choice when absent. 0 is plain
            training, bit for bit.
        temperature: Of kd, dkd, dist and residual; the method's own choice when absent.
        scale: Multiplies the loss of the method.
        balanced: Each image counts in the method as --loss.class_balance lets its class count in the labels' share;
            without, rare classes fade as alpha grows. Not for dist and relational, which compare images.
        dkd_target: Of dkd: weight of the label's own probability (the paper's alpha).
        dkd_others: Of dkd: weight of the other classes (the paper's beta).
        dist_inter: Of dist: weight of the correlation within images (the paper's beta).
        dist_intra: Of dist: weight of the correlation within classes (the paper's gamma).
        distances: Of relational: weight of distances between images.
        angles: Of relational: weight of angles between images.
        layer: Of feature (several with commas between) and autoencoder: path of the student's layer; its last map when
            absent.
        teacher_layer: Of feature: path of the teacher's layer for each of those; its last map when absent.
        layers: Of auxiliary: paths of the student's layers that get a head, with commas between; when absent, the last
            layer of each size of map but the largest two and the last.
        margin: Of arcface: angle between a class and the others, in radians.
        arc_scale: Of arcface: what cosines are multiplied by.
    """

    name: str = "kd"
    alpha: float | None = None
    temperature: float | None = None
    scale: float = 1.0
    balanced: bool = False
    dkd_target: float = 1.0
    dkd_others: float = 2.0
    dist_inter: float = 1.0
    dist_intra: float = 1.0
    distances: float = 25.0
    angles: float = 50.0
    layer: str = ""
    teacher_layer: str = ""
    layers: str = ""
    margin: float = 0.3
    arc_scale: float = 16.0

    def __post_init__(self) -> None:
        ranges = {
            "alpha": (self.alpha, 0, 1),
            "temperature": (self.temperature, 1e-3, 1e3),
            "scale": (self.scale, 0, 1e6),
            "dkd_target": (self.dkd_target, 0, 1e3),
            "dkd_others": (self.dkd_others, 0, 1e3),
            "dist_inter": (self.dist_inter, 0, 1e3),
            "dist_intra": (self.dist_intra, 0, 1e3),
            "distances": (self.distances, 0, 1e6),
            "angles": (self.angles, 0, 1e6),
            "margin": (self.margin, 0, 1.57),
            "arc_scale": (self.arc_scale, 1e-3, 1e3),
        }
        check_ranges({f"--method.{name}": limits for name, limits in ranges.items()})


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Options of the distill job: those of training.train, and these.

    Args:
        teacher: Who teaches.
        method: How the student learns besides from labels.
        chain: Networks between the teacher and the student, with commas between: each learns from the one before it, in
            a folder of its own below --out, and teaches the next. Layers, frozen parts and starting weights are those
            of the last; the others, and all their teachers, are looked at in their last map.
    """

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    chain: str = ""
    out: Path = Path("runs/distill")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.folds:
            raise UsageError(
                "--data.folds: a teacher that has learned from all folds knows the ones that are held out; train one "
                "teacher a fold, and distill with --data.train_on train"
            )
        if self.chain and not self.teacher.paths:
            raise UsageError("--chain needs a first teacher; name it with --teacher.paths")
        if self.chain and (self.method.teacher_layer or "," in self.method.layer):
            raise UsageError(
                "--chain: links are held against the last map of their teacher; leave out --method.teacher_layer, and "
                "name one --method.layer of the student at most"
            )
        if self.chain and "residual" in names_in(self.method.name):
            raise UsageError(
                "--chain trains one network after the other, --method.name residual a student and its assistant as "
                "one; leave out one of the two"
            )
        if self.chain and "," in str(self.out):
            raise UsageError(f"--out {self.out}: with --chain it is named as a teacher, so it may hold no comma")


def links(config: DistillConfig) -> list[DistillConfig]:
    """The runs of a chain, in turn; one without a chain."""
    runs, teacher = [], config.teacher
    for number, name in enumerate(names_in(config.chain)):
        out = config.out / f"chain-{number}"
        model = replace(config.model, name=name, weights=None, freeze="")
        link = replace(config.method, layer="", layers="")
        plain = replace(config, sparsity=SparsityConfig())  # zeros are for the last network
        runs.append(replace(plain, teacher=teacher, model=model, method=link, out=out, chain=""))
        teacher = replace(teacher, paths=str(out), combine="mean", weights="")
    return [*runs, replace(config, teacher=teacher)]
