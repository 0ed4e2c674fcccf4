"""Zeros that stay: which weights are pruned, how many after how many steps, and training that keeps them at zero.

The magnitude of a weight decides. Pruned weights are written back to zero after each optimizer step, in the average of
the weights too, and their gradients are taken away before gradients are clipped: the network learns as if they were
not there. Masks are part of a checkpoint, so a live weight that happens to be 0.0 is not taken for a pruned one.

Source of the schedule: Zhu and Gupta, "To prune, or not to prune", 2017 (arXiv 1710.01878).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.console.ranges import check_ranges
from pipelines.errors import UsageError
from training.model.edits.base import Edit
from training.model.edits.sparse import (
    GROUP,
    ZEROS,
    Pattern,
    Rule,
    Scope,
    check_rule,
    prunable,
    sparse,
    sparse_weights,
)

MOST = 0.999
"""Largest sparsity that can be asked for."""


@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """Gradual pruning: weights of small magnitude become zero, more and more of them, while the others learn on.

    Zeros of a model file that was pruned (--model.name FILE) stay zero without any of these options. Zeros make a file
    smaller once it is compressed; they save no multiply-accumulates and no time.

    Args:
        final: Share of the weights of the pruned layers that are zero in the end, for example 0.9; 0 prunes nothing.
        initial: Share that becomes zero at once when pruning begins.
        begin: When pruning begins, as a share of the run.
        end: When `final` is reached, likewise; the zeros stay where they are from there on. Only epochs after that can
            be the best one.
        every: Optimizer steps from one pruning to the next.
        scope: global lets the smallest weights of all layers go, so that layers end with different shares; layer takes
            the same share of each.
        pattern: unstructured takes weights wherever they are; 2:4 two of four neighbouring input channels, as sparse
            tensor cores want it, and needs `final` 0.5.
        layers: Prune only layers whose path matches one of these patterns, with commas between: blocks.*,conv_head for
            example; all when empty.
        depthwise: Prune depthwise convolutions too: they have few weights, and need most of them.
        classifier: Prune the classifier too.
    """

    final: float = 0.0
    initial: float = 0.0
    begin: float = 0.1
    end: float = 0.8
    every: int = 20
    scope: Scope = "global"
    pattern: Pattern = "unstructured"
    layers: str = ""
    depthwise: bool = False
    classifier: bool = False

    def __post_init__(self) -> None:
        ranges = {
            "final": (self.final, 0, MOST),
            "initial": (self.initial, 0, self.final),
            "begin": (self.begin, 0, 1),
            "end": (self.end, 0, 1),
            "every": (self.every, 1, 1e9),
        }
        check_ranges({f"--sparsity.{name}": limits for name, limits in ranges.items()})
        check_rule(self.rule, "--sparsity.")
        if not self.begin < self.end:
            raise UsageError(f"--sparsity.begin {self.begin} must be before --sparsity.end {self.end}")
        if self.pattern == "2:4" and self.final not in (0, ZEROS / GROUP):
            raise UsageError(
                f"--sparsity.pattern 2:4 is half of the weights; give --sparsity.final 0.5, not {self.final}"
            )

    @property
    def rule(self) -> Rule:
        """Which weights may go."""
        names = ("pattern", "scope", "layers", "depthwise", "classifier")
        return Rule(**{name: getattr(self, name) for name in names})


def cubic_sparsity(step: int, begin: int, end: int, initial: float, final: float) -> float:
    """How much is pruned: 0 before `begin`, then from `initial` up to `final`, quickly at first, then ever slower.

    Args:
        step: Optimizer steps done.
        begin: First of pruning.
        end: Last of pruning.
        initial: Share at `begin`.
        final: Share from `end` on.
    """
    if step < begin:
        return 0.0
    if step >= end:
        return final
    return final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3


def groups_of(values: Tensor) -> Tensor:
    """Groups of four neighbouring inputs, [n, 4]: what the pattern 2:4 is about.

    NVIDIA's sparse tensor cores multiply along the reduction dimension, which lies in memory by input channel: of a
    linear layer [out, in] the four are neighbours along `in`, of a convolution [out, in / groups, height, width]
    neighbours along the input channels, at one output and one place of the kernel.

    Args:
        values: One for each weight; a copy is returned.
    """
    return values.movedim(1, -1).reshape(-1, GROUP)


def _from_groups(groups: Tensor, shape: torch.Size) -> Tensor:
    """Put `groups_of` values of a shape back into that shape."""
    return groups.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def smallest(values: Tensor, count: int) -> Tensor:
    """Which of [n] values are the `count` smallest, bool [n]; of equal ones the first are taken, on every device."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    if count < 1:
        return chosen
    limit = values.kthvalue(count).values
    chosen = values < limit
    ties = (values == limit).nonzero()[:, 0]
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


def grow(weights: Mapping[str, Tensor], pruned: Mapping[str, Tensor], sparsity: float, rule: Rule) -> dict[str, Tensor]:
    """Which weights are pruned at a sparsity: those that were before, and the smallest of the others.

    Args:
        weights: Of the layers, by name: [out, in, …].
        pruned: Bool, shaped like them: what is pruned already; counts.
        sparsity: Share of all weights (scope `global`) or of each layer's. With 2:4, twice that share of the groups of
            four is pruned, first those that lose least.
        rule: Pattern and scope.

    Returns:
        Bool, shaped like the weights: True for what is zero.
    """
    whole = rule.pattern == "2:4"
    costs = {name: (_group_costs if whole else _costs)(weight, pruned[name]) for name, weight in weights.items()}
    share = min(sparsity * GROUP / ZEROS, 1.0) if whole else sparsity
    if rule.scope == "global":
        together = torch.cat(list(costs.values()))
        parts = torch.split(smallest(together, round(share * len(together))), [len(cost) for cost in costs.values()])
        chosen = dict(zip(costs, parts, strict=True))
    else:
        chosen = {name: smallest(cost, round(share * len(cost))) for name, cost in costs.items()}
    spread = _spread_groups if whole else _spread
    return {name: pruned[name] | spread(chosen[name], weight, pruned[name]) for name, weight in weights.items()}


def _costs(weight: Tensor, pruned: Tensor) -> Tensor:
    """What pruning each weight takes away, [n]; what is pruned already comes first."""
    return weight.detach().float().abs().masked_fill(pruned, -1).flatten()


def _group_costs(weight: Tensor, pruned: Tensor) -> Tensor:
    """What pruning each group takes away, [n]; groups that have their zeros already come first."""
    lowest = groups_of(weight.detach().float().abs().masked_fill(pruned, -1)).sort(-1).values[:, :ZEROS]
    return lowest.clamp(min=0).sum(-1).masked_fill(lowest[:, -1] < 0, -1)


def _spread(chosen: Tensor, weight: Tensor, _pruned: Tensor) -> Tensor:
    return chosen.view(weight.shape)


def _spread_groups(chosen: Tensor, weight: Tensor, pruned: Tensor) -> Tensor:
    magnitudes = groups_of(weight.detach().float().abs().masked_fill(pruned, -1))
    places = magnitudes.argsort(dim=-1, stable=True)[:, :ZEROS]
    taken = torch.zeros_like(magnitudes, dtype=torch.bool).scatter_(1, places, chosen[:, None].expand(-1, ZEROS))
    return _from_groups(taken, weight.shape)


class Sparsity:
    """The zeros of a run.

    Args:
        network: What is trained, on its device, with the weights that it starts from, frozen parts frozen.
        averaged: The average of its weights, if there is one.
        edits: Of its card: zeros in the modules that they name stay.
        config: Gradual pruning, if `final` says so.

    Attributes:
        planned: The edit that gradual pruning amounts to; None without it.
        steps: Optimizer steps of the whole run; to be set before the first one.

    Raises:
        UsageError: There is nothing to prune.
    """

    def __init__(
        self, network: nn.Module, averaged: nn.Module | None, edits: Iterable[Edit], config: SparsityConfig
    ) -> None:
        self.config = config
        self.planned: Edit | None = None
        self.steps = 0
        self._held = sparse_weights(network, edits)
        self._pruning = _to_prune(network, config) if config.final else {}
        self._weights = self._held | self._pruning
        twins = dict(averaged.named_modules()) if averaged is not None else {}
        self._twins = {path: twins[path].weight for path in self._weights if path in twins}
        self._pruned = self._zeros()
        if config.final:
            self._check()
            self.planned = sparse(list(self._pruning), config.pattern, config.final)

    def _zeros(self) -> dict[str, Tensor]:
        """Masks for weights that nobody has learned on yet: the zeros of a pruned file, nothing elsewhere."""
        return {path: (weight.detach() == 0) & (path in self._held) for path, weight in self._weights.items()}

    def _check(self) -> None:
        """Zeros that a file has brought are kept in any case; without them something has to go."""
        if not self._held and not round(self.config.final * sum(weight.numel() for weight in self._pruning.values())):
            raise UsageError(f"--sparsity.final {self.config.final} prunes nothing; give a larger share")

    @property
    def begin(self) -> int:
        """Steps after which pruning begins."""
        return max(round(self.config.begin * self.steps), 1)

    @property
    def end(self) -> int:
        """Steps after which the zeros stay where they are; 0 if they do all the time."""
        return max(round(self.config.end * self.steps), self.begin) if self.config.final else 0

    def clear_gradients(self) -> None:
        """Before gradients are clipped: pruned weights have none."""
        for path, weight in self._weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(self._pruned[path], 0)

    @torch.no_grad()
    def after_step(self, done: int) -> None:
        """Write the zeros, of more weights than before if it is time for that.

        Args:
            done: Optimizer steps done, this one included.
        """
        if self._due(done):
            config, before = self.config, {path: self._pruned[path] for path in self._pruning}
            share = cubic_sparsity(done, self.begin, self.end, config.initial, config.final)
            self._pruned |= grow(self._pruning, before, share, config.rule)
        for weights in (self._weights, self._twins):
            for path, weight in weights.items():
                weight.masked_fill_(self._pruned[path], 0)

    def _due(self, done: int) -> bool:
        if not self.begin <= done <= self.end:
            return False
        return done == self.end or (done - self.begin) % self.config.every == 0

    def state_dict(self) -> dict[str, Tensor]:
        """Module path → bool, True for pruned weights."""
        return dict(self._pruned)

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state_dict`; where a checkpoint has none, from the weights, which it has put in place.

        Raises:
            UsageError: It is that of another network.
        """
        if state is None:
            self._pruned = self._zeros()
            return
        shapes = {path: weight.shape for path, weight in self._weights.items()}
        if {path: mask.shape for path, mask in state.items()} != shapes:
            raise UsageError("the checkpoint knows zeros of other layers; choose another --out, or start anew")
        self._pruned = {path: state[path].to(weight.device) for path, weight in self._weights.items()}


def _to_prune(network: nn.Module, config: SparsityConfig) -> dict[str, nn.Parameter]:
    """The weights that gradual pruning may take; what does not learn is left alone."""
    found, skipped = prunable(network, config.rule)
    learning = {path: weight for path, weight in found.items() if weight.requires_grad}
    if not learning:
        reasons = sorted({*skipped.values(), *(["frozen"] if found else [])})
        raise UsageError(f"--sparsity.final {config.final} finds no layer to prune ({'; '.join(reasons[:3])})")
    return learning


def sparsity_of(
    network: nn.Module, averaged: nn.Module | None, edits: tuple[Edit, ...], config: SparsityConfig
) -> Sparsity | None:
    """The zeros of a run; None where there are none to keep and none to make. See `Sparsity`."""
    if not config.final and not sparse_weights(network, edits):
        return None
    return Sparsity(network, averaged, edits, config)
