"""A model file: one `.safetensors` with the weights, and in its header the recipe to rebuild the model around them."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from pipelines.console.files import write_bytes
from pipelines.errors import UsageError
from training.model.card import HEADER_KEY, ModelCard, card_text, parse_card
from training.model.create import create_model
from training.model.edits.apply import apply_edits

BEST_NAME = "best.safetensors"
"""The model of a run folder that validation chose."""


def save_model(path: Path, model: nn.Module, card: ModelCard) -> None:
    """Write a model file, atomically.

    Args:
        path: Ends in `.safetensors`.
        model: Its state dict is stored.
        card: How to rebuild it.
    """
    save_state(path, model.state_dict(), card)


def save_state(path: Path, state: Mapping[str, torch.Tensor], card: ModelCard) -> None:
    """`save_model` of a state dict."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(path, safetensors.torch.save(state, metadata={HEADER_KEY: card_text(card)}))


def read_card(path: Path) -> ModelCard:
    """Read the header of a model file.

    Raises:
        UsageError: The file is missing, damaged, or no model file of this version.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give a model file (.safetensors) or a run folder")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return parse_card((file.metadata() or {})[HEADER_KEY], path)
    except UsageError:
        raise
    except Exception as error:  # no safetensors, no header, no JSON, other keys: many kinds, one meaning
        raise UsageError(f"{path} is no Tacopress model file ({error!r}); give one that training wrote") from error


def load_model(path: Path) -> tuple[nn.Module, ModelCard]:
    """Rebuild a model from its file.

    Returns:
        The model on the CPU in eval mode, and its card.

    Raises:
        UsageError: The file is no model file, or holds edits that this version cannot make.
    """
    card = read_card(path)
    model = rebuild(card, path)
    load_own_weights(model, card, path)
    return model.eval(), card


def load_own_weights(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Load the weights of a model file into what `rebuild` made of its card.

    Raises:
        UsageError: They do not fit.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except RuntimeError as error:
        raise UsageError(
            f"{path}: its weights do not fit {card.architecture} ({error}); was timm or pytorchcv updated?"
        ) from error


def is_model_file(name: str) -> bool:
    """Whether the name of a model is that of a model file or of a run folder, rather than of an architecture."""
    return name.endswith(".safetensors") or (Path(name) / BEST_NAME).is_file()


def rebuild(card: ModelCard, path: Path, *, drop_rate: float = 0.0, drop_path: float = 0.0) -> nn.Module:
    """The architecture that a card describes, pressed as it says, with random weights.

    Args:
        card: Of a model.
        path: Where it came from, for messages.
        drop_rate: See `create_model`.
        drop_path: Likewise.

    Raises:
        UsageError: It holds edits that this version cannot make, or names no architecture.
    """
    model = create_model(
        card.architecture, len(card.classes), drop_rate=drop_rate, drop_path=drop_path, definition=card.definition
    )
    apply_edits(model, card.edits, str(path))
    return model


def find_model(path: Path) -> Path:
    """The model file that a path means: itself, or the best one of a run folder."""
    return path / BEST_NAME if path.is_dir() else path
