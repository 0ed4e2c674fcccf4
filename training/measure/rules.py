"""The competition's rules of 2021, as far as a model and its card can show whether they are kept."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from training.measure.competition_macs import count_competition_macs
from training.measure.macs import UncountableError, count_watched
from training.model.card import ModelCard
from training.model.start import HUB

RECORDED = ("seed", "timm", "torch")
"""What a card must name for a training to be run again."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is known about one rule.

    Args:
        rule: `macs_seen`, `one_pass`, `test_unused`, `allowed_weights` or `reproducible`.
        ok: Whether it is kept; None if that cannot be told, and then somebody has to look.
        detail: What was found, in words.
    """

    rule: str
    ok: bool | None
    detail: str


def check_rules(model: nn.Module, card: ModelCard) -> tuple[Finding, ...]:
    """Hold a model against the rules.

    - `macs_seen`: no arithmetic that the competition's MACs do not see.
    - `one_pass`: one network, once per image. Weights that the image meets first must be used once; several networks
      with weights of their own whose outputs are averaged look like any network with branches and are not found.
    - `test_unused`: nothing was learned from the test split, by the model or by its teachers.
    - `allowed_weights`: their training started from random weights or from torchvision's.
    - `reproducible`: the card names what is needed to train again.

    Args:
        model: Takes float [n, 3, card.size, card.size]; it is left as it is.
        card: Of the model.

    Returns:
        A finding per rule, in this order.
    """
    return (
        _macs_seen(model, card),
        _one_pass(model, card),
        _with_ancestors(_test_unused, card),
        _with_ancestors(_weights, card),
        _reproducible(card.provenance),
    )


def _macs_seen(model: nn.Module, card: ModelCard) -> Finding:
    try:
        macs = count_competition_macs(model, card.size).macs
    except UncountableError as error:
        return Finding(rule="macs_seen", ok=False, detail=str(error))
    return Finding(rule="macs_seen", ok=True, detail=f"all of {macs:,} MACs are seen")


class _Runs:
    """Counts how often weights are used while one image passes."""

    def __init__(self) -> None:
        self.uses: Counter[int] = Counter()
        self.paths: dict[int, str] = {}
        self.stem: int | None = None
        self.images = 0

    def note(self, path: str, module: nn.Module, inputs: tuple[object, ...], _output: object) -> None:
        """Count one call of a module of the copy that runs; its weights live as long as the count lasts."""
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        weights = [*module.parameters(recurse=False), *_parametrized(module)]
        if not tensors or not weights:
            return
        if self.stem is None:
            self.stem, self.images = id(weights[0]), len(tensors[0])
        for weight in weights:
            self.uses[id(weight)] += 1
            self.paths.setdefault(id(weight), path)

    def repeated(self) -> dict[str, int]:
        """Modules whose weights are used more than once, and how often."""
        return {self.paths[weight]: count for weight, count in self.uses.items() if count > 1}


def _parametrized(module: nn.Module) -> list[nn.Parameter]:
    """Weights that a parametrization, such as weight norm, has moved one level down."""
    parts = getattr(module, "parametrizations", None)
    return list(parts.parameters()) if isinstance(parts, nn.Module) else []


def _one_pass(model: nn.Module, card: ModelCard) -> Finding:
    runs = _Runs()
    try:
        count_watched(model, card.size, runs.note)
    except UncountableError as error:
        return Finding(rule="one_pass", ok=None, detail=f"it cannot be watched: {error}")
    if runs.stem is None:
        return Finding(rule="one_pass", ok=None, detail="no module with weights runs, so there is nothing to count")
    stem, repeated = runs.paths[runs.stem], runs.repeated()
    if runs.uses[runs.stem] > 1:
        detail = f"{stem or 'the model itself'} runs {runs.uses[runs.stem]} times for one image: views or an ensemble"
        return Finding(rule="one_pass", ok=False, detail=detail)
    if runs.images > 1:
        detail = f"{stem} gets {runs.images} images for one: views, or pieces of the image in the batch dimension"
        return Finding(rule="one_pass", ok=None, detail=detail)
    if repeated:
        path, count = next(iter(repeated.items()))
        detail = f"{path} runs {count} times for one image: layers that share weights, or views of features"
        return Finding(rule="one_pass", ok=None, detail=detail)
    return Finding(rule="one_pass", ok=True, detail="all weights are used once for one image")


def _with_ancestors(check: Callable[[str, dict[str, Any]], Finding], card: ModelCard) -> Finding:
    """The worst of what holds for a model, for its teachers and what it started from, and theirs: it knows that too."""
    waiting = [("", card.architecture, card.provenance)]
    findings = []
    while waiting:
        who, architecture, known = waiting.pop(0)
        finding = check(architecture, known)
        findings.append(replace(finding, detail=f"{who}{finding.detail}"))
        for kind, what in (("teachers", "its teacher"), ("starts", "started from")):
            for one in [found for found in known.get(kind, []) if isinstance(found, dict)]:
                waiting.append((f"{what} {one.get('name', '')}: ", str(one.get("architecture", "")), one))
    return min(findings, key=lambda finding: (False, None, True).index(finding.ok))


def _test_unused(_architecture: str, known: dict[str, Any]) -> Finding:
    learned = known.get("learned_from")
    if learned == "all":
        return Finding(rule="test_unused", ok=False, detail="learned from all splits, the test split among them")
    if learned in ("train", "train+val") or str(learned).startswith("fold "):
        return Finding(rule="test_unused", ok=True, detail=f"learned from {learned}")
    detail = "the card does not say what was learned from" if learned is None else f"learned from {learned!r}"
    return Finding(rule="test_unused", ok=None, detail=detail)


def _weights(architecture: str, known: dict[str, Any]) -> Finding:
    if "weights" not in known:
        return Finding(rule="allowed_weights", ok=None, detail="the card does not say what training started from")
    weights = known["weights"]
    if weights is None:
        return Finding(rule="allowed_weights", ok=True, detail="started from random weights")
    if weights != HUB:
        detail = f"started from {weights}: look where these come from, and whether they have seen the test split"
        return Finding(rule="allowed_weights", ok=None, detail=detail)
    tag = _hub_tag(architecture)
    if tag.startswith("tv"):
        return Finding(rule="allowed_weights", ok=True, detail=f"started from torchvision's weights ({tag})")
    detail = f"started from weights of timm's hub ({tag or 'unknown'}); allowed were torchvision's"
    return Finding(rule="allowed_weights", ok=None, detail=detail)


def _hub_tag(architecture: str) -> str:
    """What timm calls the weights behind a name: `tv_in1k` are torchvision's; empty if it knows none."""
    try:
        found = timm.models.get_pretrained_cfg(architecture.removeprefix("timm:"), allow_unregistered=True)
    except RuntimeError:  # an architecture of timm, but no weights of that name
        return ""
    return str(getattr(found, "tag", "") or "")


def _reproducible(known: dict[str, Any]) -> Finding:
    missing = [key for key in RECORDED if known.get(key) is None]
    if missing:
        detail = f"the card does not name {', '.join(missing)}; config.yaml of the run may"
        return Finding(rule="reproducible", ok=None, detail=detail)
    versions = ", ".join(f"{key} {known[key]}" for key in RECORDED)
    return Finding(rule="reproducible", ok=True, detail=f"the card names {versions}")
