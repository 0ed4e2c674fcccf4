"""Weights to start from: timm's hub, a file, or a run that has been trained."""

from pathlib import Path

import timm
import torch
from torch import nn

from pipelines.errors import UsageError
from training.model.create import load_state, load_weights
from training.model.model_file import find_model

HUB = "pretrained"


def start_from(model: nn.Module, name: str, weights: str | None) -> None:
    """Give a fresh model the weights that it is to start from; its classifier keeps its own where classes differ.

    Args:
        model: From `create_model`.
        name: The name it was made by.
        weights: `pretrained` for what timm's hub has under that name (downloaded, or from its cache), a state dict, a
            model file or a run folder; None leaves the model as it is.

    Raises:
        UsageError: There are no such weights, or they do not fit.
    """
    if weights is None:
        return
    if weights == HUB:
        load_state(model, _from_hub(name), f"timm's hub for {name}")
    else:
        load_weights(model, find_model(Path(weights)))


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
