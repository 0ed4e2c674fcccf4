"""Prune single weights: the smallest become zero and stay zero, for a file that is smaller once it is compressed.

Depthwise convolutions and the classifier are left alone unless asked for. Training that starts from the pruned file
(--model.name pruned.safetensors) keeps the zeros. To prune step by step while a network learns, which costs less
accuracy, give --sparsity.final to training.train instead.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.press import contract
from compress.press.contract import open_subject, write_pressed
from compress.sparse.magnitude import compressed_bytes, prune_weights, sparsity_facts, zero_weights
from pipelines.console.job import quiet_libraries, run_job
from pipelines.errors import UsageError
from training.model.edits.sparse import GROUP, ZEROS, Pattern, Rule, Scope, check_rule

HALF = ZEROS / GROUP
NOTE = "zeros save no multiply-accumulates, parameters or time; they shrink the file only once it is compressed"
NOTE_2_4 = f"{NOTE}. Time is saved only by runtimes that use 2:4 (TensorRT on NVIDIA GPUs since Ampere)"
EXAMPLE = """
  python -m compress.weights --model runs/train --out pruned.safetensors --sparsity 0.8
  python -m compress.weights --model runs/train --out half.safetensors --sparsity 0.5 --layers 'blocks.*'
  python -m compress.weights --model runs/train --out two.safetensors --pattern 2:4
  accelerate launch -m training.train --data.path out/cache --model.name pruned.safetensors --out runs/recovered
"""


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Options of the weights job.

    Args:
        model: A model file, or a run folder (its best model).
        out: The pruned model file, .safetensors.
        sparsity: Share of the weights of the pruned layers that are zero afterwards, for example 0.8; zeros that are
            there already count. The pattern 2:4 is always 0.5.
        scope: global lets the smallest weights of all layers go, so that layers end with different shares; layer takes
            the same share of each.
        pattern: unstructured takes weights wherever they are; 2:4 the two smallest of every four neighbouring input
            channels (at one output and one place of the kernel), as sparse tensor cores want it. Layers whose number of
            inputs is no multiple of 4 are left alone.
        layers: Prune only layers whose path matches one of these patterns, with commas between: blocks.*,conv_head for
            example; all when empty.
        depthwise: Prune depthwise convolutions too: they have few weights, and need most of them.
        classifier: Prune the classifier too.
    """

    model: Path
    out: Path
    sparsity: float | None = None
    scope: Scope = "global"
    pattern: Pattern = "unstructured"
    layers: str = ""
    depthwise: bool = False
    classifier: bool = False

    def __post_init__(self) -> None:
        check_rule(self.rule, "--")
        if self.sparsity is None and self.pattern != "2:4":
            raise UsageError("--sparsity is missing: which share of the weights is to be zero, for example 0.8")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise UsageError(f"--sparsity must be at least 0 and below 1, got {self.sparsity}")
        if self.pattern == "2:4" and self.sparsity not in (None, HALF):
            raise UsageError(f"--pattern 2:4 is half of the weights; leave out --sparsity {self.sparsity}")

    @property
    def rule(self) -> Rule:
        """Which weights may go."""
        names = ("pattern", "scope", "layers", "depthwise", "classifier")
        return Rule(**{name: getattr(self, name) for name in names})


def weights(config: WeightsConfig) -> dict[str, Any]:
    """Prune weights.

    Returns:
        The report. Keys: those of every press (`model`, `out`, `press`, `architecture`, `before`, `after`, `changed`,
        `skipped`, `proof`); in `before` and `after` also `zeros` and `compressed_bytes` (all tensors, zlib level 6);
        `pattern`, `scope`, `asked` (the share), `sparsity` (of the layers that may be pruned, together), `layers` (of
        each), `whole_sparsity` (of all parameters), `emptied` (layers with nothing but zeros), `note`.

    Raises:
        NoEffectError: No weight becomes zero.
    """
    quiet_libraries()
    subject = open_subject(config.model)
    asked = HALF if config.sparsity is None else config.sparsity
    pressed = prune_weights(subject, asked, config.rule)
    told = {"pattern": config.pattern, "scope": config.scope, "asked": asked}
    report = write_pressed(subject, pressed, config.out, "weights", told)
    for side, model in (("before", subject.model), ("after", pressed.model)):
        report[side] |= {"zeros": zero_weights(model), "compressed_bytes": compressed_bytes(model)}
    note = NOTE_2_4 if config.pattern == "2:4" else NOTE
    return report | sparsity_facts(pressed.model, config.rule) | {"note": note}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        contract.table(report),
        f"zeros: {report['sparsity']:.1%} of the weights of {len(report['layers'])} layers, "
        f"{report['whole_sparsity']:.1%} of all parameters",
        f"note: {report['note']}",
    ]
    if report["emptied"]:
        lines.append(f"nothing but zeros is left of {', '.join(report['emptied'])}: prune less, or --scope layer")
    return "\n".join(lines)


def main() -> None:
    """Run the job."""
    run_job(WeightsConfig, weights, name="compress.weights", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
