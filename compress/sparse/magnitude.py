"""Set the smallest weights of a network to zero, and prove that nothing else happened."""

import copy
import zlib
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from compress.press.contract import Pressed, Proof, Subject, edited, largest_difference
from pipelines.errors import UsageError
from training.engine.sparsity import grow
from training.model.edits.sparse import Rule, own_weight, prunable, sparse

ZLIB_LEVEL = 6


def prune_weights(subject: Subject, sparsity: float, rule: Rule) -> Pressed:
    """Prune weights by magnitude.

    Args:
        subject: What to prune.
        sparsity: Share of the weights that may go which are zero afterwards; zeros that are there already count.
        rule: Which may go.

    Returns:
        The press; `changed` is empty where no weight became zero.

    Raises:
        UsageError: No layer of the network has one of the names of the rule.
    """
    weights, skipped = prunable(subject.model, rule)
    if not weights and rule.layers and set(skipped.values()) == {"no pattern of layers names it"}:
        raise UsageError(f"--layers {rule.layers} names no layer; the network has {', '.join(list(skipped)[:3])}, …")
    before = {path: weight.detach() == 0 for path, weight in weights.items()}
    zeros = grow(weights, before, sparsity, rule) if weights else {}
    changed = [path for path in zeros if bool((zeros[path] & ~before[path]).any())]
    if not changed:
        return Pressed(model=subject.model, edits=(), proof=Proof(claim="", error=0.0), changed={}, skipped=skipped)
    edit = sparse(changed, rule.pattern, sparsity)
    pressed = edited(subject.model, (edit,), str(subject.path))
    with torch.no_grad():
        for path in changed:
            pressed.get_submodule(path).weight.masked_fill_(zeros[path], 0)  # type: ignore[operator]
    error = largest_difference(pressed, masked(subject.model, zeros), subject.card.size)
    return Pressed(
        model=pressed,
        edits=(edit,),
        proof=Proof(claim="pruned == masked", error=error),
        changed={path: f"{share(zeros[path]):.1%} of {zeros[path].numel():,} weights are zero" for path in changed},
        skipped=skipped | {path: "its weights are all larger" for path in zeros if path not in changed},
    )


def masked(model: nn.Module, zeros: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network whose weights went through the masks of torch.nn.utils.prune.

    Args:
        model: Is left as it is.
        zeros: Module path → bool, True for what is masked.
    """
    twin = copy.deepcopy(model)
    for path, pruned in zeros.items():
        layer = twin.get_submodule(path)
        torch_prune.custom_from_mask(layer, "weight", ~pruned)  # type: ignore[no-untyped-call]
        torch_prune.remove(layer, "weight")  # type: ignore[no-untyped-call]  # some code asks for the weight's dtype
    return twin


def share(flags: Tensor) -> float:
    """Share of what is true."""
    return int(flags.sum()) / flags.numel()


def sparsity_facts(model: nn.Module, rule: Rule) -> dict[str, Any]:
    """How many zeros a network has.

    Returns:
        `sparsity` of the layers that the rule may prune, together; `layers`: of each; `whole_sparsity`: zeros as a
        share of all parameters; `emptied`: layers that have nothing but zeros.
    """
    weights, _ = prunable(model, rule)
    flags = {path: weight.detach() == 0 for path, weight in weights.items()}
    count = sum(weight.numel() for weight in weights.values())
    layers = {path: round(share(found), 6) for path, found in flags.items()}
    return {
        "sparsity": round(sum(int(found.sum()) for found in flags.values()) / max(count, 1), 6),
        "whole_sparsity": round(zero_weights(model) / max(sum(p.numel() for p in model.parameters()), 1), 6),
        "layers": layers,
        "emptied": [path for path, found in flags.items() if bool(found.all())],
    }


def zero_weights(model: nn.Module) -> int:
    """How many weights of two or more dimensions are zero."""
    found = {id(weight): weight for module in model.modules() if (weight := own_weight(module)) is not None}
    return sum(int((weight == 0).sum()) for weight in found.values())


def compressed_bytes(model: nn.Module) -> int:
    """Size of the tensors of a model file, without its header, compressed by zlib at level 6."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    data = safetensors.torch.save(state)
    header = 8 + int.from_bytes(data[:8], "little")
    return len(zlib.compress(data[header:], ZLIB_LEVEL))
