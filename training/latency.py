"""Measure how long models take per batch, in PyTorch and onnxruntime, side by side on this machine.

Every model runs in every runtime that is named; each round times all of them right after each other, and they are
compared within the round. Believe ratios before milliseconds: machines are not equally fast from minute to minute, and
a time whose spread is too wide is not shown.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from pipelines.console.cores import usable_cores
from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.output import render_table
from pipelines.console.progress import ProgressMeter
from pipelines.console.words import names_in
from pipelines.errors import UsageError
from training.measure.circumstances import circumstances, load_average
from training.measure.latency import Latency, measure_latency, noise_images
from training.model.card import ModelCard
from training.model.create import check_input_size, create_model, definition_of, preprocessing
from training.model.model_file import find_model, load_model
from training.model.onnx_file import export_onnx
from training.runtimes.base import Runtime
from training.runtimes.int8 import quantize_file
from training.runtimes.onnx_runtime import OnnxRuntime
from training.runtimes.torch_runtime import TorchRuntime

RuntimeName = Literal["torch-eager", "torch-compile", "onnxruntime", "onnxruntime-int8"]
DeviceName = Literal["cpu", "cuda"]
Weights = Literal["file", "random"]

PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "onnx", "timm", "pytorchcv", "numpy")
CALIBRATION_IMAGES = 16
EXAMPLE = """
  python -m training.latency --models mobilenetv3_small_050
  python -m training.latency --models mobilenetv3_small_050,shufflenet_g3_wd4 --runtimes torch-eager,onnxruntime
  python -m training.latency --models runs/train,resnet18 --reference resnet18 --batch_size 8 --rounds 500 --json
  python -m training.latency --models model.onnx,runs/train --threads 2
"""


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """Options of the latency job.

    Args:
        models: Names, YAML files, model files, run folders (their best models) or .onnx files, with commas between. A
            name gets random weights: what a network takes does not depend on them.
        runtimes: torch-eager, torch-compile, onnxruntime or onnxruntime-int8, with commas between. An .onnx file runs
            in onnxruntime only, as it is; every other model is exported for it. onnxruntime-int8 quantizes on noise,
            which is good for times and useless for accuracy.
        reference: What the others are compared with: a model, a runtime, or MODEL@RUNTIME; the first when absent.
        batch_size: Images per pass.
        threads: CPU threads that a pass may use.
        device: Where it runs. On a GPU the way of the images there and of the logits back counts.
        rounds: How often each is timed.
        warmup: Passes of each before that.
        size: Side of the images in px, for models that are given by name; that of a YAML file, or 64, when absent.
        classes: Outputs, likewise.
        seed: Of the order within rounds, the images and the random weights.
    """

    models: str
    runtimes: str = "torch-eager,onnxruntime"
    reference: str | None = None
    batch_size: int = 1
    threads: int = 1
    device: DeviceName = "cpu"
    rounds: int = 200
    warmup: int = 20
    size: int | None = None
    classes: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "rounds", "warmup", "classes"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.size is not None and not 4 <= self.size <= 4096:
            raise UsageError(f"--size must be from 4 to 4096, got {self.size}")
        if self.seed < 0:
            raise UsageError(f"--seed must be at least 0, got {self.seed}")
        if self.threads > usable_cores():
            raise UsageError(
                f"--threads {self.threads} is more than the {usable_cores()} cores that this process may use: they "
                "would wait for each other; give fewer threads, or the process more cores"
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: PyTorch sees no GPU here; leave --device at cpu")
        words(self.models, "models")
        for name in words(self.runtimes, "runtimes"):
            if name not in get_args(RuntimeName):
                raise UsageError(f"unknown runtime {name!r}; --runtimes are {', '.join(get_args(RuntimeName))}")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model in one runtime.

    Args:
        model: As it was given.
        wanted: The runtime, as it was given.
        weights: Where they come from.
        runtime: Runs it.
    """

    model: str
    wanted: str
    weights: Weights
    runtime: Runtime

    @property
    def label(self) -> str:
        """What --reference may call it."""
        return f"{self.model}@{self.wanted}"


def words(text: str, option: str) -> list[str]:
    """What stands between commas, each once.

    Raises:
        UsageError: Nothing does.
    """
    found = list(dict.fromkeys(names_in(text)))
    if not found:
        raise UsageError(f"--{option} is empty; name one, or several with commas between")
    return found


def latency(config: LatencyConfig) -> dict[str, Any]:
    """Measure.

    Returns:
        The report. Keys: `reference` (MODEL@RUNTIME); `batch_size`, `threads`, `device`, `rounds`, `warmup`, `seed`;
        `subjects`, the reference first: `model`, `runtime`, `label` (MODEL@RUNTIME, as --reference takes it), `weights`
        (file or random), `size`, `classes` (their number), `median_ms` and `p95_ms` of a pass of `batch_size` images,
        `spread` (interquartile range over median), `ratio_median`, `ratio_low`, `ratio_high` (time over that of the
        reference in the same round: median, 10th and 90th percentile), `cpu_ms` (processor time of a pass, all
        threads), `rounds`, `repeats` (passes in one timing), `trusted` (false where `spread` is over 0.25 or there are
        fewer than 20 rounds), `ratio_trusted`, `complaint` (why not, or empty); `left_out`: `model`, `runtime` and
        `why` of pairs that cannot be; `circumstances`: `cpu`, `gpu`, `cores`, `load` before and `load_after` (1-minute
        averages), `system`, `python`, `versions`.
    """
    quiet_libraries()
    torch.manual_seed(config.seed)
    names, runtimes = words(config.models, "models"), words(config.runtimes, "runtimes")
    if config.size is not None and all(map(_is_file, names)):
        raise UsageError("--size is for models given by name; a file has its own: leave --size out")
    around = circumstances(PACKAGES) | {"gpu": torch.cuda.get_device_name() if config.device == "cuda" else None}
    with ProgressMeter("prepare", len(names) * len(runtimes), "networks") as meter:
        subjects = [subject for name in names for subject in _subjects(config, name, runtimes, meter)]
    subjects = _reference_first(subjects, config.reference)
    with ProgressMeter("latency", config.rounds + len(subjects), "rounds") as meter:
        found = measure_latency(
            [subject.runtime for subject in subjects],
            batch_size=config.batch_size,
            warmup=config.warmup,
            rounds=config.rounds,
            seed=config.seed,
            done=meter.advance,
        )
    return {
        "reference": subjects[0].label,
        "batch_size": config.batch_size,
        "threads": config.threads,
        "device": config.device,
        "rounds": config.rounds,
        "warmup": config.warmup,
        "seed": config.seed,
        "subjects": [_entry(subject, result) for subject, result in zip(subjects, found, strict=True)],
        "left_out": [
            {"model": name, "runtime": runtime, "why": "an .onnx file runs in onnxruntime as it is"}
            for name in names
            for runtime in runtimes
            if not _possible(name, runtime)
        ],
        "circumstances": around | {"load_after": load_average()},
    }


def _entry(subject: Subject, found: Latency) -> dict[str, Any]:
    figures = found.figures()
    for key in ("name", "batch_size", "threads"):
        del figures[key]
    return {
        "model": subject.model,
        "runtime": found.name,
        "label": subject.label,
        "weights": subject.weights,
        "size": subject.runtime.size,
        "classes": len(subject.runtime.classes),
        **figures,
    }


def _reference_first(subjects: Sequence[Subject], wanted: str | None) -> list[Subject]:
    if not subjects:
        raise UsageError(".onnx files run in onnxruntime only; add onnxruntime to --runtimes")
    first = next((s for s in subjects if wanted in (None, s.label, s.model, s.wanted)), None)
    if first is None:
        known = ", ".join(subject.label for subject in subjects)
        raise UsageError(f"--reference {wanted} is not among what is measured; name one of {known}")
    return [first, *(subject for subject in subjects if subject is not first)]


def _is_file(name: str) -> bool:
    return name.endswith((".onnx", ".safetensors")) or Path(name).is_dir()


def _possible(name: str, runtime: str) -> bool:
    return not name.endswith(".onnx") or runtime == "onnxruntime"


def _subjects(config: LatencyConfig, name: str, runtimes: Sequence[str], meter: ProgressMeter) -> list[Subject]:
    """A model in all runtimes that can run it."""
    weights: Weights = "file"
    if name.endswith(".onnx"):
        make: Callable[[str], Runtime] = lambda _: _onnx(config, Path(name))  # noqa: E731
    else:
        model, card, weights = _network(config, name)
        check_input_size(model, name, card.size)
        make = _Maker(config, name, model, card)
    subjects = []
    for runtime in runtimes:
        if _possible(name, runtime):
            subjects.append(Subject(model=name, wanted=runtime, weights=weights, runtime=make(runtime)))
        meter.advance()
    return subjects


def _network(config: LatencyConfig, name: str) -> tuple[nn.Module, ModelCard, Weights]:
    """A model on the CPU, what it takes, and where its weights come from."""
    if _is_file(name):
        return *load_model(find_model(Path(name))), "file"
    model = create_model(name, config.classes)
    mean, std = preprocessing(model)
    card = ModelCard(
        architecture=name,
        classes=tuple(f"class {number}" for number in range(config.classes)),
        size=config.size or getattr(model, "input_size", None) or 64,
        fit="stretch",
        mean=mean,
        std=std,
        definition=definition_of(name),
    )
    return model.eval(), card, "random"


def _onnx(config: LatencyConfig, path: Path) -> OnnxRuntime:
    return OnnxRuntime(path, threads=config.threads, device=config.device)


class _Maker:
    """Puts one model into runtimes; it is exported once."""

    def __init__(self, config: LatencyConfig, name: str, model: nn.Module, card: ModelCard) -> None:
        self._config, self._name, self._model, self._card = config, name, model, card
        self._exported: bytes | None = None

    def __call__(self, runtime: str) -> Runtime:
        if runtime.startswith("torch"):
            return self._torch(compile=runtime == "torch-compile")
        with tempfile.TemporaryDirectory() as folder:
            path, quantized = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
            if self._exported is None:
                export_onnx(path, self._model, self._card)
                self._exported = path.read_bytes()
            if runtime == "onnxruntime":
                return self._onnx(self._exported)
            path.write_bytes(self._exported)
            images = noise_images(CALIBRATION_IMAGES, self._card.size, self._config.seed)
            quantize_file(path, quantized, [images])
            return self._onnx(quantized.read_bytes())

    def _onnx(self, data: bytes) -> OnnxRuntime:
        return OnnxRuntime(data, threads=self._config.threads, device=self._config.device, name=self._name)

    def _torch(self, *, compile: bool) -> TorchRuntime:
        config = self._config
        runtime = TorchRuntime(self._model, self._card, device=config.device, compile=compile, threads=config.threads)
        try:
            runtime.logits(noise_images(config.batch_size, self._card.size, config.seed))
        except Exception as error:  # the compiler's own kinds, and those of what it calls
            if not compile:
                raise
            reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
            raise UsageError(
                f"torch.compile cannot compile {self._name} ({reason}); is there a C++ compiler? Leave torch-compile "
                "out of --runtimes otherwise"
            ) from error
        return runtime


def table(report: dict[str, Any]) -> str:
    """The report for people: times that may be told, ratios, and what stands against the rest."""
    around = report["circumstances"]
    rows = [_row(report, entry) for entry in report["subjects"]]
    header = ["model", "runtime", ">px", ">batch", ">threads", ">median ms", ">p95 ms", ">x reference", ">CPU ms"]
    notes = [f"{entry['label']}: {entry['complaint']}" for entry in report["subjects"] if entry["complaint"]]
    notes += [f"{entry['model']} not in {entry['runtime']}: {entry['why']}" for entry in report["left_out"]]
    versions = ", ".join(f"{name} {number}" for name, number in around["versions"].items())
    lines = [
        render_table(header, rows),
        "",
        *notes,
        f"Reference {report['reference']}; x is the time over its time in the same round: median [10th-90th "
        f"percentile] of {report['rounds']} rounds.",
        f"{around['gpu'] or around['cpu']}, {around['cores']} cores, load {around['load']} before and "
        f"{around['load_after']} after; Python {around['python']}, {versions}.",
    ]
    return "\n".join(lines)


def _row(report: dict[str, Any], entry: dict[str, Any]) -> list[object]:
    told, why = entry["trusted"], entry["complaint"].partition(":")[0] or "too noisy"
    ratio = f"{entry['ratio_median']:.3f} [{entry['ratio_low']:.3f}-{entry['ratio_high']:.3f}]"
    return [
        _short(entry["model"]),
        entry["runtime"],
        entry["size"],
        report["batch_size"],
        report["threads"],
        f"{entry['median_ms']:.3f}" if told else why,
        f"{entry['p95_ms']:.3f}" if told else "-",
        ratio if entry["ratio_trusted"] else why,
        f"{entry['cpu_ms']:.3f}" if told else "-",
    ]


def _short(name: str) -> str:
    """The end of a long path, which fits into a table."""
    return name if len(name) <= 30 else "/".join(Path(name).parts[-2:])


def main() -> None:
    """Run the job."""
    run_job(LatencyConfig, latency, name="training.latency", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
