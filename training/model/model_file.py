"""A model file: one `.safetensors` with the weights, and in its header the recipe to rebuild the model around them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import nn

from pipelines.console.files import write_bytes
from pipelines.errors import UsageError
from pipelines.fit import Fit
from training.model.create import create_model

FORMAT = "tacopress-model"
VERSION = 1
HEADER_KEY = "tacopress"
TUPLES = ("classes", "mean", "std", "edits")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything but the weights.

    Attributes:
        architecture: Name that `create_model` knows.
        classes: Class names in index order.
        size: Side of the input in px.
        fit: How other shapes become square.
        mean: Per channel, for levels in [0, 1].
        std: Per channel.
        edits: What presses did to the architecture, in order. Empty for a model as it was created.
        provenance: For people: run, epoch, validation score.
        definition: What the YAML of the architecture held, see `definition_of`; None if its name alone rebuilds it.
    """

    architecture: str
    classes: tuple[str, ...]
    size: int
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    edits: tuple[dict[str, Any], ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    definition: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.classes or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"classes {self.classes!r}")
        if not isinstance(self.size, int) or not 4 <= self.size <= 4096 or self.fit not in get_args(Fit):
            raise ValueError(f"size {self.size!r}, fit {self.fit!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(isinstance(s, float) and s > 0 for s in self.std):
            raise ValueError(f"mean {self.mean!r}, std {self.std!r}")
        if self.definition is not None and not isinstance(self.definition, dict):
            raise ValueError(f"definition {self.definition!r}")


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
    fields = asdict(card)
    if card.definition is None:  # versions before it knew no such key
        del fields["definition"]
    header = {HEADER_KEY: json.dumps({"format": FORMAT, "version": VERSION, **fields}, sort_keys=True)}
    write_bytes(path, safetensors.torch.save(state, metadata=header))


def read_card(path: Path) -> ModelCard:
    """Read the header of a model file.

    Raises:
        UsageError: The file is missing, damaged, or no model file of this version.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give a model file (.safetensors) or a run folder")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[HEADER_KEY])
        if header.pop("format") != FORMAT:
            raise ValueError("another format")
        version = header.pop("version")
        if version != VERSION:
            raise UsageError(f"{path} has format version {version}, this Tacopress reads {VERSION}; update Tacopress")
        values: dict[str, Any] = {key: tuple(value) if key in TUPLES else value for key, value in header.items()}
        return ModelCard(**values)
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
    if card.edits:
        kinds = ", ".join(sorted({str(edit.get("kind")) for edit in card.edits}))
        raise UsageError(f"{path} was pressed by edits that this Tacopress does not know ({kinds}); update Tacopress")
    model = create_model(card.architecture, len(card.classes), definition=card.definition)
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except RuntimeError as error:
        raise UsageError(
            f"{path}: its weights do not fit {card.architecture} ({error}); was timm or pytorchcv updated?"
        ) from error
    return model.eval(), card


def find_model(path: Path) -> Path:
    """The model file that a path means: itself, or the best one of a run folder."""
    return path / "best.safetensors" if path.is_dir() else path
