"""How weights move: the optimizer, and the parts of a network that stand still."""

import difflib
import fnmatch
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from torch import nn

from pipelines.errors import UsageError
from training.engine.schedule import Schedule as Schedule
from training.engine.schedule import ScheduleConfig as ScheduleConfig
from training.model.classifier import classifier_names

ALL_BUT_CLASSIFIER = "all-but-classifier"

OptimizerOption: TypeAlias = bool | int | float | str | list  # type: ignore[type-arg]  # what YAML has


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights move.

    Args:
        name: A timm optimizer name: adamw, sgd, lamb, …; with lookahead_ before it for Lookahead.
        lr: Peak learning rate.
        weight_decay: Not applied to biases and normalisation.
        momentum: Of sgd; first beta of others stays the library's default.
        clip_norm: Largest norm of the gradient; 0 switches clipping off.
        layer_decay: Each layer learns at this share of the rate of the layer after it; all alike when absent.
        options: More arguments of the optimizer, for example {"betas": [0.9, 0.99], "eps": 1e-6}.
    """

    name: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    clip_norm: float = 5.0
    layer_decay: float | None = None
    options: dict[str, OptimizerOption] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = {
            "lr": (0 < self.lr < math.inf, "above 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "clip_norm": (0 <= self.clip_norm <= 1e9, "0 to 1e9"),
            "layer_decay": (self.layer_decay is None or 0 < self.layer_decay <= 1, "above 0 and at most 1"),
        }
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise UsageError(f"--optimizer.{name} must be {wanted}, got {getattr(self, name)}")


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, *, extra: nn.Module | None = None
) -> torch.optim.Optimizer:
    """An optimizer of timm over the parameters that are not frozen; biases and normalisation are not decayed.

    Args:
        model: As it was created, not prepared: wrappers hide timm's knowledge of its layers.
        config: Which optimizer.
        extra: What learns beside the network: its parameters get the rate of the last layer.

    Raises:
        UsageError: timm has none of that name, or it is not to be had here; it takes no such options; or all
            parameters are frozen.
    """
    options = _checked_options(config)
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    if groups and extra is not None:
        groups += parameter_groups(extra, config.weight_decay, 1.0 if config.layer_decay else None)
    if not groups:
        raise UsageError("the network has no parameter left to train: freeze fewer of its parts")
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=config.name, lr=config.lr, momentum=config.momentum, **options
        )
    except (ValueError, TypeError, AssertionError, KeyError, IndexError, ImportError, RuntimeError) as error:
        given = f" with --optimizer.options {options}" if options else ""
        raise UsageError(f"--optimizer.name {config.name}{given} cannot be made: {error}; choose another") from error
    if getattr(optimizer, "is_second_order", False):
        raise UsageError(f"--optimizer.name {config.name} needs second derivatives, which training here does not take")
    return optimizer


def _checked_options(config: OptimizerConfig) -> dict[str, Any]:
    """The options as the optimizer wants them.

    Raises:
        UsageError: timm knows no such optimizer, or it takes no such option. timm itself would drop some silently.
    """
    base = config.name.lower().removeprefix("lookahead_")
    if base not in list_optimizers():
        near = difflib.get_close_matches(base, list_optimizers(), n=4)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; timm knows adamw, sgd, lamb and others"
        raise UsageError(f"--optimizer.name {config.name} is unknown{hint}")
    if not config.options:
        return {}
    known = _option_names(base)
    for name in config.options:
        if name in ("lr", "weight_decay", "momentum"):
            raise UsageError(f"--optimizer.options has {name}: give it as --optimizer.{name}")
        if name not in known:
            raise UsageError(f"--optimizer.options has {name}, which {base} does not take; it takes {', '.join(known)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.options.items()}


def _option_names(name: str) -> list[str]:
    """What an optimizer can be told beyond learning rate, weight decay and momentum."""
    try:
        takes = set(inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters)
    except (AssertionError, ImportError) as error:
        raise UsageError(f"--optimizer.name {name} cannot be had here: {error}; choose another") from error
    info = get_optimizer_info(name)
    dropped = {"eps": not info.has_eps, "betas": not info.has_betas}
    takes -= {"capturable", "differentiable", "maximize"}  # what a step is, not how it goes
    takes -= {"params", "lr", "weight_decay", "momentum", *(option for option, drop in dropped.items() if drop)}
    return sorted(takes)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
    """The trainable parameters by what the optimizer does with them.

    Args:
        model: Any network.
        weight_decay: For all but biases, normalisation and what the network itself exempts.
        layer_decay: Rate of a layer as a share of the next one's; None for one rate.

    Returns:
        Groups with `params`, `weight_decay` and, with a layer decay, `lr_scale`; undecayed before decayed, shallow
        before deep. Empty if everything is frozen.
    """
    depths = {} if layer_decay is None else layer_depths(model)
    deepest = max(depths.values(), default=0)
    exempting: Any = getattr(model, "no_weight_decay", None)
    exempt = exempting() if callable(exempting) else ()
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith(".bias")
            decays = not plain and not any(fnmatch.fnmatch(name, pattern) for pattern in exempt)
            members.setdefault((depths.get(name, deepest), decays), []).append(parameter)
    groups = []
    for (depth, decays), parameters in sorted(members.items(), key=lambda item: item[0]):
        group: dict[str, Any] = {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        if layer_decay is not None:
            group["lr_scale"] = layer_decay ** (deepest - depth)
        groups.append(group)
    return groups


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Depth of each parameter's layer, from 0 at the input: timm's own grouping where the network has one.

    Elsewhere a layer is a child of the network, in the order of definition; chains (nn.Sequential) count as their
    links. A module with vectors only, such as normalisation, belongs to the layer before it; what the network holds
    itself belongs to the first.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if callable(matcher):
        known: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
        return known
    depths = dict.fromkeys((name for name, _ in model.named_parameters()), 0)
    depth = -1
    for path, module in _links(model, ""):
        parameters = dict(module.named_parameters(path))
        depth = max(depth + any(parameter.ndim > 1 for parameter in parameters.values()), 0)
        depths.update(dict.fromkeys(parameters, depth))
    return depths


def _links(module: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """The modules that make up the layers of a network without a grouping, with their paths."""
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
    links = []
    for name, child in children:
        where = f"{path}.{name}" if path else name
        chain = isinstance(child, nn.Sequential | nn.ModuleList) or len(children) == 1
        links += (_links(child, where) if chain else []) or [(where, child)]
    return links


def freeze(model: nn.Module, prefixes: Sequence[str]) -> list[nn.Module]:
    """Let parts of a network stand still.

    Args:
        model: Any network, not prepared.
        prefixes: Module paths, in whole components: `blocks.1` is not a part of `blocks.10`. A parameter may be named
            by its full path. `ALL_BUT_CLASSIFIER` alone stands for everything before the classifier.

    Returns:
        The frozen modules, for `keep_frozen_in_eval`.

    Raises:
        UsageError: A prefix has no parameters.
    """
    frozen = []
    for prefix in _all_but_classifier(model) if list(prefixes) == [ALL_BUT_CLASSIFIER] else prefixes:
        inside = [
            parameter for name, parameter in model.named_parameters() if name == prefix or name.startswith(f"{prefix}.")
        ]
        if not prefix or not inside:
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters()))
            raise UsageError(f"cannot freeze {prefix!r}: the network has no parameters there; its parts are {parts}")
        for parameter in inside:
            parameter.requires_grad_(False)
        frozen += [module for path, module in model.named_modules() if path == prefix]
    return frozen


def _all_but_classifier(model: nn.Module) -> list[str]:
    """Paths of the largest parts without a layer of the classifier."""
    heads = classifier_names(model)
    if not heads:
        raise UsageError(
            f"--model.freeze {ALL_BUT_CLASSIFIER}: the classifier of the network cannot be found; name parts"
        )

    def parts(module: nn.Module, path: str) -> list[str]:
        if path in heads:
            return []
        if path and not any(head.startswith(f"{path}.") for head in heads):
            return [path] if any(True for _ in module.parameters()) else []
        own = [f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
        below = [
            found for name, child in module.named_children() for found in parts(child, f"{path}.{name}".lstrip("."))
        ]
        return [*own, *below]

    return parts(model, "")


def keep_frozen_in_eval(modules: Sequence[nn.Module]) -> None:
    """Put frozen modules into eval mode, so that BatchNorm's statistics stand still too. After each `model.train()`."""
    for module in modules:
        module.eval()
