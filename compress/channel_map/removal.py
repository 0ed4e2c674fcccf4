"""The press itself: decide which channels go, cut them, prove it."""

import fnmatch
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compress.channel_map.channel_map import ChannelMap
from compress.channel_map.choose import ChoiceOptions, Chooser
from compress.channel_map.cutting import edit_that_keeps, masked_twin
from compress.channel_map.importance import Importance, importance
from compress.channel_map.trace import map_channels
from compress.channel_map.unions import Ids
from compress.press.contract import (
    NoEffectError,
    OutOfReachError,
    Pressed,
    Proof,
    Subject,
    edited,
    largest_difference,
    no_effect,
)
from compress.press.samples import Samples
from pipelines.errors import TacopressError, UsageError
from training.measure.latency import measure_latency
from training.measure.macs import count_macs
from training.model.edits.base import Edit
from training.model.onnx_file import export_onnx
from training.runtimes.onnx_runtime import OnnxRuntime

PRESS = "channels"
TAYLOR_BATCH = 64
LIMIT = 1e-9
"""Of the proof, which is computed in double precision: a branch that is scaled by 1e-6 must still be seen."""
LATENCY_STEPS, LATENCY_ROUNDS, LATENCY_TRIES, WARMUP = 6, 100, 3, 10


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How much is to go. Exactly one is given.

    Attributes:
        ratio: Share of the channels.
        macs: The network costs at most so much.
        latency: It takes at most this share of its time: onnxruntime, one image, one thread.
    """

    ratio: float | None = None
    macs: int | None = None
    latency: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What channels are compared by.

    Attributes:
        name: The measure.
        samples: For `taylor`.
        seed: For `random`.
    """

    name: Importance
    samples: Samples | None = None
    seed: int = 0


def remove_channels(
    subject: Subject, goal: Goal, ranking: Ranking, options: ChoiceOptions, protect: Sequence[str] = ()
) -> Pressed:
    """Remove channels.

    Args:
        subject: The model.
        goal: How much is to go.
        ranking: What goes first.
        options: How channels are chosen.
        protect: Patterns of module paths whose outputs stay.

    Raises:
        NoEffectError: Nothing can go, or nothing has to.
        UsageError: A pattern fits no layer, or the goal cannot be reached.
    """
    model, size = subject.model, subject.card.size
    channels = _protected(map_channels(model, size), protect)
    if not channels.families:
        raise NoEffectError(no_effect(PRESS, subject, skipped_layers(model, channels, None)))
    gradients = taylor_gradients(model, ranking.samples) if ranking.samples is not None else []
    scores = importance(ranking.name, model, channels, gradients=gradients, seed=ranking.seed)
    kept = _reach(subject, goal, Chooser(channels, scores, options))
    edit = edit_that_keeps(channels, kept, model)
    if not edit["layers"]:
        raise NoEffectError(no_effect(PRESS, subject, skipped_layers(model, channels, kept)))
    pressed = edited(model, (edit,), subject.card.architecture)
    error = largest_difference(pressed, masked_twin(channels, kept, model), size)
    return Pressed(
        model=pressed,
        edits=(edit,),
        proof=Proof(claim="pruned == masked", error=error, limit=LIMIT),
        changed=_changed(channels, kept),
        skipped=skipped_layers(model, channels, kept),
    )


def taylor_gradients(model: nn.Module, samples: Samples) -> list[dict[str, Tensor]]:
    """Gradients of the mean cross-entropy of batches, in evaluation mode: of each, parameter path → float32.

    Args:
        model: On the CPU, in evaluation mode; left as it is.
        samples: All of them count.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = []
    for images, labels in samples.batches(TAYLOR_BATCH):
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(model(images), labels)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found.append(
            {
                name: torch.zeros_like(parameter) if gradient is None else gradient
                for name, parameter, gradient in zip(names, parameters, gradients, strict=True)
            }
        )
    return found


def skipped_layers(model: nn.Module, channels: ChannelMap, kept: Ids | None) -> dict[str, str]:
    """Layers that keep all their outputs, and why.

    Args:
        model: The network.
        channels: Its channels.
        kept: The choice; None if there is none.
    """
    found = {}
    unknown = [reason for reason in channels.fixed.values() if "there is no rule" in reason]
    for path, module in model.named_modules():
        layer = channels.layers.get(path)
        if not isinstance(module, nn.Conv2d | nn.Linear) or (layer is not None and layer.kind == "depthwise"):
            continue
        if layer is None:
            found[path] = f"its channels cannot be followed: {unknown[0]}" if unknown else "it does not run"
            continue
        reasons = [channels.fixed[channel] for channel in layer.outputs.tolist() if channel in channels.fixed]
        if len(reasons) == len(layer.outputs):
            found[path] = f"its outputs stay: {reasons[0]}"
        elif kept is not None and _count(layer.outputs, channels, kept) == len(layer.outputs):
            found[path] = "all its outputs matter more than what goes, or its groups would become unequal"
    return found


def _changed(channels: ChannelMap, kept: Ids) -> dict[str, str]:
    counts = {
        path: (len(layer.outputs), _count(layer.outputs, channels, kept))
        for path, layer in channels.layers.items()
        if layer.kind in ("convolution", "linear")
    }
    return {path: f"{before} → {after} outputs" for path, (before, after) in counts.items() if after < before}


def _count(ids: Ids, channels: ChannelMap, kept: Ids) -> int:
    return int(np.isin(ids, channels.alive(kept)).sum())


def _protected(channels: ChannelMap, patterns: Sequence[str]) -> ChannelMap:
    """The map with the outputs of some layers fixed."""
    fixed = dict(channels.fixed)
    for pattern in patterns:
        paths = [path for path in channels.layers if fnmatch.fnmatchcase(path, pattern)]
        if not paths:
            raise UsageError(f"--protect {pattern} fits no layer; python -m training.models describes them")
        for path in paths:
            fixed = dict.fromkeys(channels.layers[path].outputs.tolist(), f"--protect {pattern}") | fixed
    return replace(channels, fixed=fixed)


def _reach(subject: Subject, goal: Goal, chooser: Chooser) -> Ids:
    """The channels to keep."""
    if goal.ratio is not None:
        return chooser.keep(goal.ratio)
    if goal.latency is not None:
        return _for_latency(subject, goal.latency, chooser)
    now = count_macs(subject.model, subject.card.size).macs
    wanted = goal.macs if goal.macs is not None else now
    if wanted >= now:
        raise NoEffectError(f"{subject.path} costs {now:,} MACs, no more than the target of {wanted:,}")
    everything = np.concatenate(chooser.channels.families)
    elsewhere = now - chooser.channels.macs(everything)
    kept = chooser.keep_for_macs(wanted - elsewhere)
    if kept is None:
        least = elsewhere + chooser.channels.macs(chooser.keep(1.0))
        raise OutOfReachError(
            f"{subject.path} cannot be cut to {wanted:,} MACs: {least:,} stay with --least {chooser.options.least} and "
            f"--round_to {chooser.options.round_to}; lower them, or remove layers first",
            least,
        )
    return kept


def _for_latency(subject: Subject, share: float, chooser: Chooser) -> Ids:
    """Halve the range of ratios; each try is measured in turn with the network as it is."""
    with tempfile.TemporaryDirectory() as folder:
        measured = _stopwatch(subject, chooser, Path(folder))
        low, high, best = 0.0, 1.0, chooser.keep(1.0)
        if measured(best) > share:
            raise UsageError(
                f"{subject.path} does not get down to {share:g} of its time by removing channels; remove layers first"
            )
        for _ in range(LATENCY_STEPS):
            ratio = (low + high) / 2
            kept = chooser.keep(ratio)
            if measured(kept) > share:
                low = ratio
            else:
                high, best = ratio, kept
    return best


def _stopwatch(subject: Subject, chooser: Chooser, folder: Path) -> Callable[[Ids], float]:
    """How long a choice takes, as a share of the time of the network as it is."""
    card = subject.card

    def runtime(model: nn.Module, name: str) -> OnnxRuntime:
        path = folder / f"{name}.onnx"
        export_onnx(path, model, card)
        return OnnxRuntime(path)

    reference = runtime(subject.model, "before")

    def measured(kept: Ids) -> float:
        edit: Edit = edit_that_keeps(chooser.channels, kept, subject.model)
        tried = runtime(edited(subject.model, (edit,), card.architecture), "tried")
        for seed in range(LATENCY_TRIES):
            pair = [reference, tried]
            found = measure_latency(pair, batch_size=1, warmup=WARMUP, rounds=LATENCY_ROUNDS, seed=seed)[1]
            if found.ratio_trusted:
                return found.ratio_median
        raise TacopressError(
            "the machine is too busy to tell times: the ratio to the network as it is lies between "
            f"{found.ratio_low:.2f} and {found.ratio_high:.2f}; try again when it is quiet, or give --target_macs"
        )

    return measured
