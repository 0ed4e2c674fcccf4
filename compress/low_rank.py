"""Factorize layers: thin ones in the place of thick ones, ranks by energy, ratio, EVBMF or a target of MACs."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from compress.factor.kernels import factors_difference, fill_factors, rebuilt_weight, weight_of
from compress.factor.layers import Choice, check_patterns, choose_layers
from compress.factor.plan import (
    Candidate,
    Plan,
    Planned,
    by_energy,
    by_ratio,
    described,
    make_candidates,
    make_plan,
    plan_for_macs,
    planned_macs,
)
from compress.factor.spectra import ranks_by_evbmf
from compress.factor.work import measure_work, own_macs
from compress.press.contract import (
    NoEffectError,
    OutOfReachError,
    Pressed,
    Proof,
    ProofError,
    Subject,
    edited,
    largest_difference,
    open_subject,
    table,
    write_pressed,
)
from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.words import names_in
from pipelines.errors import UsageError
from training.measure.macs import count_macs
from training.model.edits.factor import FORMS, Layer, factored

EXAMPLE = """
  python -m compress.low_rank --model runs/train --out thin.safetensors --energy 0.95
  python -m compress.low_rank --model runs/train --out thin.safetensors --rank_by macs --target_macs 2000000
  python -m compress.low_rank --model runs/train --out thin.safetensors --forms spatial,tucker2 --layers 'blocks.*'
  python -m training.train --model.name thin.safetensors --data.path out/cache --out runs/thin
"""

CLAIM = "factorized == original with multiplied-out kernels"
DEFAULT_ENERGY, DEFAULT_RATIO = 0.9, 0.25


@dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """Options of the low-rank press.

    A layer's weight is told by the product of thinner ones, as closely as their ranks allow. It answers a little
    differently from then on: train the file again (--model.name) or distill into it. A layer is left alone, with the
    reason in the report, where its factors would not save multiply-accumulates.

    Args:
        model: A model file, or a run folder (its best model).
        out: The pressed model file, .safetensors.
        rank_by: Who chooses the ranks. energy: the least that keep a share of the squared singular values of each
            layer. ratio: a share of the full rank. evbmf: as many singular values as are more than noise, by empirical
            variational Bayes; needs no number. macs: the highest common energy with which the whole model costs at most
            --target_macs.
        energy: For energy: the share to keep, above 0 and up to 1; 0.9 when absent. Tucker-2 may lose half of the rest
            on each side.
        ratio: For ratio: the share, above 0 and up to 1; 0.25 when absent. Of cp it is a share of the smaller number
            of channels, of groups of the weights; spatial has rank 1 at any ratio.
        target_macs: For macs: what the model may cost for one image of its size.
        forms: What a layer may become; of several, the one with the fewest MACs is taken. svd: 1x1 convolutions and
            fully connected layers as two. tucker2: k x k as 1x1, smaller k x k, 1x1. cp: k x k as 1x1, k x 1, 1 x k,
            1x1. spatial: depthwise k x k as k x 1 and 1 x k. separable: k x k as k x 1 and 1 x k. groups: more
            groups.
        layers: Which layers: globs over their paths, layer1.*,*.conv2 for example.
        classifier: Factorize the classifier too.
        stem: Factorize the first convolution too.
    """

    model: Path
    out: Path
    rank_by: Literal["energy", "ratio", "evbmf", "macs"] = "energy"
    energy: float | None = None
    ratio: float | None = None
    target_macs: int | None = None
    forms: str = "svd,tucker2"
    layers: str = "*"
    classifier: bool = False
    stem: bool = False

    def __post_init__(self) -> None:
        _check_forms(self)
        if not names_in(self.layers):
            raise UsageError("--layers is empty; give globs over module paths, or * for all")
        own = {"energy": self.energy, "ratio": self.ratio, "macs": self.target_macs}
        for rule, value in own.items():
            option = "target_macs" if rule == "macs" else rule
            if value is not None and rule != self.rank_by:
                raise UsageError(f"--{option} needs --rank_by {rule}; it is {self.rank_by}")
        for name in ("energy", "ratio"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise UsageError(f"--{name} {share} must be above 0 and at most 1")
        if self.rank_by == "macs" and (self.target_macs is None or self.target_macs < 1):
            raise UsageError("--rank_by macs needs --target_macs, at least 1")


def _check_forms(config: LowRankConfig) -> None:
    forms = names_in(config.forms)
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not forms:
        raise UsageError(f"--forms {config.forms!r}: forms are {', '.join(FORMS)}")
    rankless = [form for form in forms if form in ("spatial", "groups")]
    if config.rank_by == "evbmf" and rankless:
        raise UsageError(f"--rank_by evbmf finds ranks, and {', '.join(rankless)} has none; take it out of --forms")


def low_rank(config: LowRankConfig) -> dict[str, Any]:
    """Factorize.

    Returns:
        The report. Keys: those of every press, see `compress.press.contract.write_pressed`; `rank_by`; `energy`,
        `ratio` or `target_macs`, whichever decided (with `macs` also the common `energy` that was found); `layers`: of
        each layer that was factorized `path`, `form`, `ranks`, `kept` (share of the squared weights), `error` (of the
        kernel, relative), `macs_before`, `macs_after`.

    Raises:
        NoEffectError: Nothing was factorized.
        UsageError: The model or the target cannot be.
    """
    quiet_libraries()
    subject = open_subject(config.model)
    plan, settings = decide(subject, config)
    if not plan[0]:
        reasons = plan[1]
        return write_pressed(subject, _unchanged(subject, reasons), config.out, "low_rank", settings)
    pressed, layers = carry_out(subject, plan)
    return write_pressed(subject, pressed, config.out, "low_rank", settings) | {"layers": layers}


def decide(subject: Subject, config: LowRankConfig) -> tuple[Plan, dict[str, Any]]:
    """Form and ranks of each layer, and what decided them.

    Raises:
        NoEffectError: The model costs no more than the target.
        UsageError: The target is out of reach, or no layer is called as `layers` says.
    """
    model, size, patterns = subject.model, subject.card.size, tuple(names_in(config.layers))
    check_patterns(model, patterns, subject.card.architecture)
    report, positions = measure_work(model, size)
    choice = Choice(patterns=patterns, classifier=config.classifier, stem=config.stem)
    layers, skipped = choose_layers(model, choice, positions, size)
    candidates, unsuitable = make_candidates(layers, own_macs(report), positions, names_in(config.forms))
    (planned, wasteful), settings = _ranked(candidates, config, report.macs, subject)
    return (planned, skipped | unsuitable | wasteful), settings


def _ranked(
    candidates: Sequence[Candidate], config: LowRankConfig, total: int, subject: Subject
) -> tuple[Plan, dict[str, Any]]:
    """The plan by the rule that is asked for, and the settings that made it."""
    rule: dict[str, Any] = {"rank_by": config.rank_by}
    if config.target_macs is not None:
        plan, energy = _within(candidates, config.target_macs, total, subject)
        return plan, rule | {"target_macs": config.target_macs, "energy": energy}
    if config.rank_by == "energy":
        energy = DEFAULT_ENERGY if config.energy is None else config.energy
        return make_plan(candidates, by_energy(energy)), rule | {"energy": energy}
    if config.rank_by == "ratio":
        ratio = DEFAULT_RATIO if config.ratio is None else config.ratio
        return make_plan(candidates, by_ratio(ratio)), rule | {"ratio": ratio}
    return make_plan(candidates, ranks_by_evbmf), rule


def _within(candidates: Sequence[Candidate], target: int, total: int, subject: Subject) -> tuple[Plan, float]:
    if total <= target:
        raise NoEffectError(
            f"{subject.path} costs {total} MACs, no more than --target_macs {target}; choose a lower one"
        )
    plan, energy = plan_for_macs(candidates, total, target)
    least = planned_macs(plan, total)
    if least > target:
        raise OutOfReachError(
            f"--target_macs {target} is out of reach: rank 1 everywhere costs {least}; allow more layers "
            "(--classifier, --stem, --layers) or more --forms",
            least,
        )
    return plan, energy


def _unchanged(subject: Subject, skipped: Mapping[str, str]) -> Pressed:
    proof = Proof(claim=CLAIM, error=0.0)
    return Pressed(model=subject.model, edits=(), proof=proof, changed={}, skipped=skipped)


def carry_out(subject: Subject, plan: Plan) -> tuple[Pressed, list[dict[str, Any]]]:
    """Edit a copy, compute its weights, and prove it.

    Args:
        subject: Is left as it is.
        plan: What is to be done; at least one layer.

    Returns:
        The pressed model, and `layers` of the report.

    Raises:
        ProofError: The pressed network does not run, or does not cost what was planned.
    """
    planned, skipped = plan
    edits = tuple(factored(one.path, one.form, one.ranks) for one in planned)
    model = edited(subject.model, edits, subject.card.architecture)
    twin = copy.deepcopy(subject.model)
    layers, errors = [], []
    for one in planned:
        layer, factors = subject.model.get_submodule(one.path), model.get_submodule(one.path)
        assert isinstance(layer, Layer)
        fill_factors(factors, layer, one.form, one.ranks)
        rebuilt = rebuilt_weight(factors, layer, one.form)
        twin.get_submodule(one.path).register_parameter("weight", nn.Parameter(rebuilt))
        layers.append(_told(one, layer, rebuilt))
        errors.append(factors_difference(factors, layer, rebuilt))
    error = float(torch.tensor([largest_difference(model, twin, subject.card.size), *errors]).max())  # a NaN stays one
    _check_cost(model, subject, plan)
    changed = {one.path: _in_words(one, told) for one, told in zip(planned, layers, strict=True)}
    proof = Proof(claim=CLAIM, error=error)
    return Pressed(model=model, edits=edits, proof=proof, changed=changed, skipped=skipped), layers


def _check_cost(model: nn.Module, subject: Subject, plan: Plan) -> None:
    expected = planned_macs(plan, count_macs(subject.model, subject.card.size).macs)
    found = count_macs(model, subject.card.size).macs
    if found != expected:
        raise ProofError(f"the factorized network costs {found} MACs where {expected} were planned")


def _told(one: Planned, layer: Layer, rebuilt: torch.Tensor) -> dict[str, Any]:
    weight = weight_of(layer)
    lost = float((weight - rebuilt).square().sum() / weight.square().sum())
    return {
        "path": one.path,
        "form": one.form,
        "ranks": list(one.ranks),
        "kept": 1 - lost,
        "error": lost**0.5,
        "macs_before": one.before,
        "macs_after": one.after,
    }


def _in_words(one: Planned, told: Mapping[str, Any]) -> str:
    return (
        f"{described(one)}: keeps {told['kept']:.1%} of its energy, kernel off by {told['error']:.3f}, "
        f"{one.before:,} → {one.after:,} MACs"
    )


def main() -> None:
    """Run the job."""
    run_job(LowRankConfig, low_rank, name="compress.low_rank", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
