"""List the models that can be named, describe one block by block, and find the image sizes that cost least for more."""

import textwrap
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from pipelines.console.files import write_bytes
from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.output import human_bytes, render_table
from pipelines.console.progress import ProgressMeter
from pipelines.errors import UsageError
from training.model.catalogue import cv_families, families, matching
from training.model.create import check_input_size, create_model
from training.model.cv_models import SEED
from training.model.deploy import strip_training_heads
from training.model.model_file import find_model, load_model
from training.model.names import shipped_names
from training.model.staircase import Step, staircase
from training.model.staircase_plot import draw_staircase
from training.model.trace import trace_blocks
from training.model.zoo.build import ZooModel

EXAMPLE = """
  python -m training.models
  python -m training.models --filter 'mobilenetv3*'
  python -m training.models --model mobilenetv3_small_050 --size 80 --classes 6 --depth 2
  python -m training.models --model training/model/definitions/lenet.yaml
  python -m training.models --model shufflenet_g3_wd4 --classes 9 --sizes --smallest 48 --largest 128 --plot steps.png

Two conventions of counting:
  MACs              exact: the multiply-accumulates of convolutions, matrix products and attention that run for one
                    image, whatever module runs them; biases, normalization, pooling and activations are 0.
  competition MACs  what the scores of the 2021 competition are made of (ptflops of June 2021, activations left out):
                    also biases, 2 for each normalized element, 1 for each element that is pooled. It sees modules
                    only, so a model with functional convolutions, matrix products or attention has none.
Heads that only training uses are counted in neither.
"""

DEFAULT_SIZE, DEFAULT_CLASSES = 224, 6


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """Options of the models job; without any it lists what can be named.

    Args:
        filter: List the names that match this pattern, for example 'mobilenetv3*'.
        model: Describe this model: a name, a YAML file, a model file, or a run folder (its best model).
        size: Side of the images, px; when absent that of the model file, that of the YAML, or 224.
        classes: Outputs; when absent those of the model file, or 6.
        depth: How many levels of modules the description opens; as many as show five blocks when absent.
        sizes: Instead of the blocks show how MACs grow with the image size, and which sizes stand right before a step.
        smallest: First image size of that range, px.
        largest: Last image size of that range, px.
        threshold: What a step is: MACs grow by more than this share from one size to the next.
        plot: With sizes, draw the steps into this PNG file.
    """

    filter: str | None = None
    model: str | None = None
    size: int | None = None
    classes: int | None = None
    depth: int | None = None
    sizes: bool = False
    smallest: int = 32
    largest: int = 224
    threshold: float = 0.1
    plot: Path | None = None

    def __post_init__(self) -> None:
        if self.model is None and (self.sizes or self.plot or self.size or self.classes or self.depth):
            raise UsageError("--size, --classes, --depth, --sizes and --plot describe a model; name it with --model")
        if self.model is not None and self.filter is not None:
            raise UsageError("--filter lists names and --model describes one model; give one of them")
        if self.plot is not None and not self.sizes:
            raise UsageError("--plot draws the image sizes; give --sizes too")
        for name, least in (("size", 1), ("classes", 1), ("depth", 1), ("smallest", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name} must be at least {least}, got {value}")
        if not self.smallest <= self.largest <= 4096:
            raise UsageError(f"--largest must be from --smallest ({self.smallest}) to 4096, got {self.largest}")
        if self.threshold <= 0:
            raise UsageError(f"--threshold must be above 0, got {self.threshold}")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The model that is described.

    Args:
        model: On the CPU, without heads that only training uses.
        name: For people.
        size: Side of its images, px.
        classes: Its outputs.
        bytes: Of its file; None without one.
    """

    model: nn.Module
    name: str
    size: int
    classes: int
    bytes: int | None


def models(config: ModelsConfig) -> dict[str, Any]:
    """List or describe models.

    Returns:
        The report. Keys: `kind`: list, names, blocks or sizes. list: `timm` and `pytorchcv` (families with their
        counts), `yaml` and `seed` (names). names: `pattern` and `names` by origin. blocks: `model`, `input_size`,
        `classes`, `note` (null, or what differs from the definition), `macs`, `competition_macs` (null where that
        convention refuses the model), `competition_note` (null, or why), `parameters`, `float32_bytes` of the weights,
        `file_bytes` (null without a file), `blocks` of `path`, `type_name`, `output` (shape without the batch),
        `macs`, `parameters`, `competition_macs`. Heads that only training uses are left out. sizes: `model`,
        `classes`, `threshold`, `sizes` of `size`, `macs` (null where the model cannot take it), `growth` to the next
        size, `best`; `best_sizes`; `plot`.
    """
    quiet_libraries()
    if config.model is not None:
        subject = _subject(config, config.model)
        return _sizes(config, subject) if config.sizes else _blocks(config, subject)
    if config.filter is not None:
        return {"kind": "names", "pattern": config.filter, "names": matching(config.filter)}
    return {
        "kind": "list",
        "timm": families(),
        "yaml": list(shipped_names()),
        "seed": [SEED],
        "pytorchcv": cv_families(),
    }


def _subject(config: ModelsConfig, name: str) -> _Subject:
    path = Path(name)
    if path.suffix != ".safetensors" and not path.is_dir():
        classes = config.classes or DEFAULT_CLASSES
        model = strip_training_heads(create_model(name, classes))
        size = config.size or getattr(model, "input_size", None) or DEFAULT_SIZE
        return _Subject(model=model, name=name, size=size, classes=classes, bytes=None)
    file = find_model(path)
    model, card = load_model(file)
    if config.classes not in (None, len(card.classes)):
        raise UsageError(f"{file} has {len(card.classes)} classes; leave --classes {config.classes} out")
    return _Subject(
        model=strip_training_heads(model),
        name=f"{file} ({card.architecture})",
        size=config.size or card.size,
        classes=len(card.classes),
        bytes=file.stat().st_size,
    )


def _blocks(config: ModelsConfig, subject: _Subject) -> dict[str, Any]:
    check_input_size(subject.model, subject.name, subject.size)
    trace = trace_blocks(subject.model, subject.size, config.depth)
    return {
        "kind": "blocks",
        "model": subject.name,
        "input_size": subject.size,
        "classes": subject.classes,
        "note": _note(subject),
        "macs": trace.cost.macs,
        "competition_macs": None if trace.competition is None else trace.competition.macs,
        "competition_note": trace.refusal,
        "parameters": trace.cost.parameters,
        "float32_bytes": 4 * trace.cost.parameters,
        "file_bytes": subject.bytes,
        "blocks": [asdict(block) | {"output": block.output and list(block.output)} for block in trace.blocks],
    }


def _note(subject: _Subject) -> str | None:
    model = subject.model
    if not isinstance(model, ZooModel) or model.written_classes == subject.classes:
        return None
    return f"the definition names {model.written_classes} outputs; it was built with {subject.classes}, one per class"


def _sizes(config: ModelsConfig, subject: _Subject) -> dict[str, Any]:
    sizes = range(config.smallest, config.largest + 1)
    with ProgressMeter("sizes", len(sizes) + 1, "sizes") as meter:
        steps = staircase(subject.model, sizes, config.threshold, meter.advance)
    if config.plot is not None:
        title = f"{subject.name}, {subject.classes} classes: sizes before a step of more than {config.threshold:.0%}"
        write_bytes(config.plot, draw_staircase(steps, title))
    return {
        "kind": "sizes",
        "model": subject.name,
        "classes": subject.classes,
        "threshold": config.threshold,
        "sizes": [asdict(step) for step in steps],
        "best_sizes": [step.size for step in steps if step.best],
        "plot": None if config.plot is None else str(config.plot),
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    tables = {"list": _list_table, "names": _names_table, "blocks": _blocks_table, "sizes": _sizes_table}
    return tables[report["kind"]](report)


def _list_table(report: dict[str, Any]) -> str:
    parts = [
        f"timm: {sum(report['timm'].values()):,} models",
        _counted(report["timm"]),
        f"\npytorchcv: {sum(report['pytorchcv'].values()):,} classifiers",
        _counted(report["pytorchcv"]),
        "\nYAML definitions that come with Tacopress",
        "  " + " · ".join(report["yaml"]),
        "\nThe competition's seed network, 4-8-4 units, or others: _2_5_2; _conv: its classifier is a convolution",
        "  " + " · ".join(report["seed"]),
        "\n--filter 'PATTERN' lists names, --model NAME describes one.",
    ]
    return "\n".join(parts)


def _counted(families: dict[str, int]) -> str:
    words = " · ".join(f"{name.replace(' ', '_')} {count}" for name, count in families.items())
    return textwrap.fill(words, 118, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _names_table(report: dict[str, Any]) -> str:
    rows = [[origin, name] for origin, names in report["names"].items() for name in names]
    title = f"{len(rows):,} names match {report['pattern']}"
    return f"{title}\n\n" + render_table(["from", "name"], rows) if rows else f"no name matches {report['pattern']}"


def _blocks_table(report: dict[str, Any]) -> str:
    rows = [
        [block["path"] or "(elsewhere)", block["type_name"], _shape(block), *_numbers(block)]
        for block in report["blocks"]
    ]
    rows.append(["whole model", "", "", *_numbers(report)])
    title = f"{report['model']} at {report['input_size']} px, {report['classes']} classes"
    file = f" · {human_bytes(report['file_bytes'])} on disk" if report["file_bytes"] is not None else ""
    competition = "" if report["competition_macs"] is None else f"{report['competition_macs']:,} competition MACs · "
    total = (
        f"{report['macs']:,} MACs · {competition}{report['parameters']:,} parameters · "
        f"{human_bytes(report['float32_bytes'])} in float32{file}"
    )
    blocks = render_table(["block", "type", ">output", ">MACs", ">competition MACs", ">parameters"], rows)
    return "\n".join((f"{title}\n", blocks, "", total, *_notes(report)))


def _numbers(part: dict[str, Any]) -> list[int | None]:
    return [part["macs"], part["competition_macs"], part["parameters"]]


def _notes(report: dict[str, Any]) -> list[str]:
    notes = [] if report["note"] is None else [report["note"]]
    if report["competition_note"] is not None:
        notes.append(f"no competition MACs: {report['competition_note']}")
    return notes


def _shape(block: dict[str, Any]) -> str:
    return "-" if block["output"] is None else "x".join(map(str, block["output"]))


def _sizes_table(report: dict[str, Any]) -> str:
    steps = [Step(**step) for step in report["sizes"]]
    rows = [
        [step.size, "cannot take it" if step.macs is None else step.macs, _percent(step), "◀ best" if step.best else ""]
        for step in _worth_showing(steps, report["threshold"])
    ]
    title = (
        f"{report['model']}, {report['classes']} classes; best: one px more costs over {report['threshold']:.0%} more"
    )
    best = ", ".join(map(str, report["best_sizes"])) or "none"
    drawn = f"\nDrawn in {report['plot']}" if report["plot"] else ""
    table = render_table([">px", ">MACs", ">one px more", ""], rows)
    return f"{title}\n\n{table}\n\nBest sizes: {best}{drawn}"


def _percent(step: Step) -> str:
    return "" if step.growth is None else f"{step.growth:+.1%}"


def _worth_showing(steps: list[Step], threshold: float) -> list[Step]:
    """The ends, the sizes before steps of a fifth of the threshold or more, and where "can take it" changes.

    `--json` has all.
    """
    notable = [step.growth is not None and step.growth > threshold / 5 for step in steps]
    turns = [(step.macs is None) != (before.macs is None) for before, step in pairwise(steps)]
    ends = {0, len(steps) - 1}
    return [step for i, step in enumerate(steps) if i in ends or notable[i] or turns[i - 1]]


def main() -> None:
    """Run the job."""
    run_job(ModelsConfig, models, name="training.models", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
