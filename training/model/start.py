"""Weights to start from: timm's hub, a file, or a run that has been trained."""

from pathlib import Path

import timm
import torch
from torch import nn

from pipelines.errors import UsageError
from training.model.classifier import classifier_names
from training.model.create import load_state, read_state_dict
from training.model.model_file import find_model, read_card

HUB, RANDOM = "pretrained", "random"


def start_from(model: nn.Module, name: str, weights: str | None, classes: tuple[str, ...]) -> None:
    """Give a fresh model the weights that it is to start from; its classifier keeps its own where classes differ.

    Where a file does not say what its classes are, as many are taken for the same.

    Args:
        model: From `create_model`.
        name: The name it was made by.
        weights: `pretrained` for what timm's hub has under that name (downloaded, or from its cache), a state dict, a
            model file or a run folder; None and `random` leave the model as it is.
        classes: What the model is to tell apart.

    Raises:
        UsageError: There are no such weights, or they do not fit.
    """
    if weights in (None, RANDOM):
        return
    if weights == HUB:
        load_state(model, _from_hub(name), f"timm's hub for {name}")
    else:
        path = find_model(Path(weights))
        state = read_state_dict(path)
        if _classes_of(path) not in (None, classes):
            heads = tuple(f"{head}." for head in classifier_names(model))
            state = {key: value for key, value in state.items() if not key.startswith(heads)}
        load_state(model, state, str(path))


def _classes_of(path: Path) -> tuple[str, ...] | None:
    """The classes of a model file; None if it is another file."""
    try:
        return read_card(path).classes
    except UsageError:
        return None


def _from_hub(name: str) -> dict[str, torch.Tensor]:
    plain = name.removeprefix("timm:")
    if not timm.is_model(plain) or not timm.is_model_pretrained(plain):
        raise UsageError(f"--model.weights {HUB}: timm has no weights for {name}; give a file, or leave it out")
    try:
        state: dict[str, torch.Tensor] = timm.create_model(plain, pretrained=True).state_dict()
    except Exception as error:  # no network, no such revision, a damaged download: many kinds, one meaning
        raise UsageError(
            f"--model.weights {HUB}: the weights of {name} cannot be had ({error}); download them elsewhere and give "
            "the file"
        ) from error
    return state
