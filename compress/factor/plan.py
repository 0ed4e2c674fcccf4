"""Decide form and ranks of every layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compress.factor.spectra import Spectrum, ranks_by_energy, ranks_by_ratio
from compress.factor.work import Positions, factored_macs
from training.model.edits.factor import Layer, unsuitable

Ranks = Callable[[Spectrum], tuple[int, ...] | None]
BISECTIONS = 48


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is to become of a layer.

    Attributes:
        path: Of the layer.
        form: See `training.model.edits.factor`.
        ranks: Of the form.
        before: Multiply-accumulates of the layer.
        after: Of its factors; fewer.
    """

    path: str
    form: str
    ranks: tuple[int, ...]
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layer that may be factorized.

    Attributes:
        path: Of the layer.
        layer: Itself.
        macs: What it costs.
        at: Where it is applied.
        spectra: Of the forms that suit it and are allowed.
    """

    path: str
    layer: Layer
    macs: int
    at: Positions
    spectra: tuple[Spectrum, ...]


Plan = tuple[tuple[Planned, ...], dict[str, str]]
"""What is factorized, and module path → why not."""


def make_candidates(
    layers: Mapping[str, Layer], macs: Mapping[str, int], positions: Mapping[str, Positions], forms: Sequence[str]
) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    """Look at the weights.

    Args:
        layers: Module path → layer.
        macs: Module path → what it costs.
        positions: Module path → where it is applied.
        forms: Those that are allowed.

    Returns:
        The layers that one of the forms suits, and module path → why none does.
    """
    found, skipped = [], {}
    for path, layer in layers.items():
        reasons = {form: unsuitable(layer, form) for form in forms}
        suiting = [form for form, reason in reasons.items() if reason is None]
        if not suiting:
            skipped[path] = "; ".join(dict.fromkeys(str(reason) for reason in reasons.values()))
            continue
        spectra = tuple(Spectrum(layer=layer, form=form) for form in suiting)
        found.append(Candidate(path=path, layer=layer, macs=macs[path], at=positions[path], spectra=spectra))
    return tuple(found), skipped


def by_energy(energy: float) -> Ranks:
    """The rule `energy`."""
    return lambda spectrum: ranks_by_energy(spectrum, energy)


def by_ratio(ratio: float) -> Ranks:
    """The rule `ratio`."""
    return lambda spectrum: ranks_by_ratio(spectrum, ratio)


def make_plan(candidates: Sequence[Candidate], ranks: Ranks) -> Plan:
    """Give each layer the form that costs least; the first of those that cost the same.

    Args:
        candidates: The layers.
        ranks: The rule that says at which ranks a form has to be taken.
    """
    planned, skipped = [], {}
    for candidate in candidates:
        best, reason = _cheapest(candidate, ranks)
        if best is None:
            skipped[candidate.path] = reason
        else:
            planned.append(best)
    return tuple(planned), skipped


def plan_for_macs(candidates: Sequence[Candidate], total: int, target: int) -> tuple[Plan, float]:
    """The plan of the largest share of energy, the same for all layers, at which the network costs at most so much.

    Args:
        candidates: The layers.
        total: Multiply-accumulates of the network.
        target: What it may cost; less than `total`.

    Returns:
        The plan, and the share. Where even rank 1 everywhere costs more, that plan.
    """
    low, high = -1.0, 1.0  # at -1 each side of a Tucker-2 may lose all
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if planned_macs(make_plan(candidates, by_energy(middle)), total) <= target:
            low = middle
        else:
            high = middle
    return make_plan(candidates, by_energy(low)), max(low, 0.0)


def planned_macs(plan: Plan, total: int) -> int:
    """What the network costs when the plan is carried out."""
    return total - sum(planned.before - planned.after for planned in plan[0])


def _cheapest(candidate: Candidate, ranks: Ranks) -> tuple[Planned | None, str]:
    """The best form; without one that saves, the reason."""
    options: list[Planned] = []
    reasons: list[str] = []
    for spectrum in candidate.spectra:
        chosen = ranks(spectrum)
        if chosen is None:
            reasons.append(_no_ranks(spectrum))
            continue
        cost = factored_macs(candidate.layer, spectrum.form, chosen, candidate.at)
        made = Planned(path=candidate.path, form=spectrum.form, ranks=chosen, before=candidate.macs, after=cost)
        if cost < candidate.macs:
            options.append(made)
        else:
            reasons.append(f"{described(made)} would cost {cost:,} MACs instead of {candidate.macs:,}: take less rank")
    return min(options, key=lambda planned: planned.after, default=None), "; ".join(reasons)


def _no_ranks(spectrum: Spectrum) -> str:
    if spectrum.form in ("spatial", "groups"):
        return f"{spectrum.form} keeps at most {spectrum.energies[0].max():.1%} of its energy"
    return f"evbmf takes all of it for noise, which leaves {spectrum.form} no rank"


def described(planned: Planned) -> str:
    """Form and ranks in words."""
    if planned.form == "groups":
        return f"{planned.ranks[0]} groups"
    return f"{planned.form} of rank {' x '.join(map(str, planned.ranks)) or 1}"
