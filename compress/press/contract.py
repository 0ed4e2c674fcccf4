"""The contract of every press: a model goes in, edits and a report come out, and a proof that they are right."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.console.output import human_bytes, render_table
from pipelines.errors import TacopressError, UsageError
from training.measure.competition_macs import count_competition_macs
from training.measure.macs import UncountableError, count_macs
from training.model.card import ModelCard
from training.model.deploy import strip_training_heads
from training.model.edits.apply import apply_edits
from training.model.edits.base import Edit
from training.model.model_file import find_model, load_model, save_model

PROOF_IMAGES = 4
PROOF_LIMIT = 1e-5
"""Of the largest answer: how far the pressed network's may be from what they have to equal."""


class NoEffectError(TacopressError):
    """A press would change nothing. Exit status 1."""


class OutOfReachError(UsageError):
    """A press cannot bring a network to so few multiply-accumulates. Exit status 2.

    Args:
        message: What to say.
        least: What it can bring it to.
    """

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least


class ProofError(TacopressError):
    """A pressed network does not answer as it must: nothing is written. Exit status 1."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to press.

    Attributes:
        model: On the CPU, in evaluation mode, without what only training used.
        card: Its card.
        path: Its file.
    """

    model: nn.Module
    card: ModelCard
    path: Path


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was held against what.

    Attributes:
        claim: For example `pruned == masked`.
        error: Largest difference of the answers, as a share of the largest answer.
        limit: What it may be.
    """

    claim: str
    error: float
    limit: float = PROOF_LIMIT


@dataclass(frozen=True, kw_only=True)
class Pressed:
    """What a press made of a model.

    Attributes:
        model: The pressed network.
        edits: What was done, see `training.model.edits.apply`; at least one.
        proof: That it was done right.
        changed: Module path → what became of it, in words.
        skipped: Module path → why it was left alone.
    """

    model: nn.Module
    edits: tuple[Edit, ...]
    proof: Proof
    changed: Mapping[str, str]
    skipped: Mapping[str, str] = field(default_factory=dict)


def open_subject(path: Path) -> Subject:
    """Open the model that is to be pressed.

    Args:
        path: A model file, or a run folder (its best model).

    Raises:
        UsageError: It is none.
    """
    file = find_model(path)
    if file.suffix == ".onnx":
        raise UsageError(f"--model {path} is an ONNX file, which cannot be pressed; give the model file it came from")
    model, card = load_model(file)
    return Subject(model=strip_training_heads(model).eval(), card=card, path=file)


def edited(model: nn.Module, edits: tuple[Edit, ...], name: str) -> nn.Module:
    """A copy of a network with edits carried out."""
    twin = copy.deepcopy(model)
    apply_edits(twin, edits, name)
    return twin.eval()


def largest_difference(pressed: nn.Module, truth: nn.Module, size: int, *, seed: int = 0) -> float:
    """How far the answers of two networks are apart, as a share of the largest answer; computed in float64.

    Args:
        pressed: On the CPU; left as it is.
        truth: Likewise: what `pressed` has to equal.
        size: Side of the images, px.
        seed: Of the images, which are noise.

    Raises:
        ProofError: The pressed network cannot be run.
    """
    images = torch.randn(PROOF_IMAGES, 3, size, size, generator=torch.Generator().manual_seed(seed)).double()
    expected = _answers(truth, images)
    try:
        found = _answers(pressed, images)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise ProofError(
            f"the pressed network does not run ({error}); leave out what was changed, or leave it to another press"
        ) from error
    if found.shape != expected.shape:
        raise ProofError(f"the pressed network gives {tuple(found.shape)} where {tuple(expected.shape)} is expected")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        answers: Tensor = copy.deepcopy(model).double().eval()(images)
    return answers


def check(proof: Proof, name: str) -> Proof:
    """Return the proof.

    Raises:
        ProofError: It fails; also for answers that are no numbers.
    """
    if not proof.error <= proof.limit:
        raise ProofError(
            f"{name}: {proof.claim} does not hold: answers differ by {proof.error:.1e} of the largest, "
            f"{proof.limit:.0e} is allowed; this architecture cannot be pressed in this way"
        )
    return proof


def facts(model: nn.Module, card: ModelCard, path: Path) -> dict[str, Any]:
    """What a model costs: `macs`, `competition_macs` (None where that convention refuses), `parameters`, `bytes`."""
    cost = count_macs(model, card.size)
    try:
        competition: int | None = count_competition_macs(model, card.size).macs
    except UncountableError:
        competition = None
    return {
        "macs": cost.macs,
        "competition_macs": competition,
        "parameters": cost.parameters,
        "bytes": path.stat().st_size,
    }


def write_pressed(subject: Subject, pressed: Pressed, out: Path, press: str, details: dict[str, Any]) -> dict[str, Any]:
    """Write the model file, atomically, once the proof holds.

    Args:
        subject: What was pressed.
        pressed: What came of it.
        out: The model file.
        press: Name of the press.
        details: What the press has to say besides, for the report and for the card.

    Returns:
        The report: `model`, `out`, `press`, `before` and `after` (see `facts`), `changed`, `skipped`, `proof`, details.

    Raises:
        ProofError: The proof fails.
        NoEffectError: Nothing was changed.
        UsageError: `out` is the file that was pressed, or no `.safetensors`.
    """
    check_out(out, subject)
    if not pressed.edits or not pressed.changed:
        raise NoEffectError(no_effect(press, subject, pressed.skipped))
    proof = check(pressed.proof, subject.card.architecture)
    card = pressed_card(
        subject.card, pressed.edits, {"press": press, "from": str(subject.path), "proof": asdict(proof), **details}
    )
    before = facts(subject.model, subject.card, subject.path)
    save_model(out, pressed.model, card)
    return {
        "model": str(subject.path),
        "out": str(out),
        "press": press,
        "architecture": card.architecture,
        "before": before,
        "after": facts(pressed.model, card, out),
        "changed": dict(pressed.changed),
        "skipped": dict(pressed.skipped),
        "proof": asdict(proof),
        **details,
    }


def check_out(out: Path, subject: Subject) -> None:
    """See whether a press may write there; jobs that work for long ask before they begin.

    Raises:
        UsageError: `out` is the file that is pressed, or no `.safetensors`.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} must end in .safetensors")
    if out.resolve() == subject.path.resolve():
        raise UsageError(f"--out {out} is the model that is pressed; choose another file")


def pressed_card(card: ModelCard, edits: tuple[Edit, ...], told: dict[str, Any]) -> ModelCard:
    """The card of a pressed model.

    Args:
        card: Of the model before.
        edits: What was done to it.
        told: What the provenance says of the press, on top of what it said before.
    """
    presses = [*card.provenance.get("presses", []), told]
    return replace(card, edits=(*card.edits, *edits), provenance={**card.provenance, "presses": presses})


def before_presses(first: Subject, last: Subject) -> Subject:
    """The model that presses with training in between began with, for one report over all of them.

    Returns:
        It, but its card says how the last model was trained.
    """
    told = {key: value for key, value in last.card.provenance.items() if key != "presses"}
    presses = {key: value for key, value in first.card.provenance.items() if key == "presses"}
    return replace(first, card=replace(first.card, provenance=told | presses))


def no_effect(press: str, subject: Subject, skipped: Mapping[str, str]) -> str:
    """What to say where a press changes nothing."""
    reasons = sorted(set(skipped.values()))
    why = f" ({'; '.join(reasons[:3])})" if reasons else ""
    return f"{press} changes nothing in {subject.path} ({subject.card.architecture}){why}; choose another press"


def table(report: dict[str, Any]) -> str:
    """The report of a press for people."""
    before, after = report["before"], report["after"]
    rows = [
        [name, _shown(name, before[name]), _shown(name, after[name]), _share(before[name], after[name])]
        for name in before
    ]
    proof, scores = report["proof"], report.get("macro_f1")
    lines = [
        render_table([report["press"], ">before", ">after", ">change"], rows, title=report["architecture"]),
        f"{len(report['changed'])} modules changed, {len(report['skipped'])} left alone · {proof['claim']} to "
        f"{proof['error']:.0e} of the largest answer",
        f"model: {report['out']}",
    ]
    if scores:
        lines.append(f"macro F1 ({scores['split']}): {scores['before']:.4f} before, {scores['after']:.4f} after")
    return "\n".join(lines)


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return human_bytes(int(value)) if name == "bytes" else f"{value:,}"


def _share(before: float | None, after: float | None) -> str:
    return f"{after / before - 1:+.1%}" if before and after is not None else ""
