"""Export a model to ONNX: scaling inside, checked against the model it came from, small and quick to run anywhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.output import human_bytes
from pipelines.errors import UsageError
from training.model.model_file import find_model, load_model
from training.model.onnx_file import OPSET, export_onnx

EXAMPLE = """
  python -m compress.export --model runs/train
  python -m compress.export --model runs/train/best.safetensors --out model.onnx --json
"""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of the export job.

    Args:
        model: A model file, or a run folder (its best model).
        out: The ONNX file; beside the model file, with its name, when absent.
    """

    model: Path
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix != ".onnx":
            raise UsageError(f"--out {self.out} must end in .onnx")


def export(config: ExportConfig) -> dict[str, Any]:
    """Export.

    Returns:
        The report. Keys: `model`, `out`, `architecture`, `classes`, `input_size`, `opset`, `bytes` of the ONNX file,
        `error`: how far its answers on noise are from the model's, as a share of the largest logit.
    """
    quiet_libraries()
    path = find_model(config.model)
    model, card = load_model(path)
    out = config.out or path.with_suffix(".onnx")
    error = export_onnx(out, model, card)
    return {
        "model": str(path),
        "out": str(out),
        "architecture": card.architecture,
        "classes": list(card.classes),
        "input_size": card.size,
        "opset": OPSET,
        "bytes": out.stat().st_size,
        "error": error,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    return (
        f"{report['architecture']}, {report['input_size']} px, {len(report['classes'])} classes → {report['out']} "
        f"({human_bytes(report['bytes'])}); answers like the model to {report['error']:.0e} of the largest logit"
    )


def main() -> None:
    """Run the job."""
    run_job(ExportConfig, export, name="compress.export", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
