"""What a model is but for its weights: the card in the header of every model file and in the metadata of ONNX files."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from pipelines.errors import UsageError
from pipelines.fit import Fit
from pipelines.sources import SPLITS

FORMAT = "tacopress-model"
VERSION = 1
HEADER_KEY = "tacopress"
TUPLES = ("classes", "mean", "std", "edits")
FOLDED = ("train", "val")  # what folds are cut from


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
        if not isinstance(self.provenance, dict) or not all(isinstance(edit, dict) for edit in self.edits):
            raise ValueError(f"provenance {self.provenance!r}, edits {self.edits!r}")
        if self.definition is not None and not isinstance(self.definition, dict):
            raise ValueError(f"definition {self.definition!r}")

    def knows(self, split: str) -> bool:
        """Whether the model has learned from a split.

        Folds are cut from train and val together, so a run of cross-validation knows both.
        """
        learned = str(self.provenance.get("learned_from", "train"))
        return learned == "all" or split in learned.split("+") or (learned.startswith("fold ") and split in FOLDED)

    def learned_besides(self, learned: str) -> str:
        """What a model has learned from that starts from this one's weights and then learns from `learned`."""
        if self.provenance.get("learned_from") is None:
            return learned
        then = replace(self, provenance={"learned_from": learned})
        splits = [split for split in SPLITS if self.knows(split) or then.knows(split)]
        return "all" if len(splits) == len(SPLITS) else "+".join(splits)


def ancestry(card: ModelCard) -> dict[str, Any]:
    """What the card of a student, or of a network that goes on, has to repeat: what was learned, and from whom."""
    told = ("split", "learned_from", "weights", "teachers", "starts")
    return {"architecture": card.architecture} | {key: card.provenance[key] for key in told if key in card.provenance}


def card_text(card: ModelCard) -> str:
    """The card as JSON, as it stands in files."""
    fields = asdict(card)
    if card.definition is None:  # versions before it knew no such key
        del fields["definition"]
    return json.dumps({"format": FORMAT, "version": VERSION, **fields}, sort_keys=True)


def parse_card(text: str, path: Path) -> ModelCard:
    """Read `card_text`.

    Args:
        text: What stands in the file under `HEADER_KEY`.
        path: The file, for messages.

    Raises:
        UsageError: A card of another version.
        ValueError: No card at all; also KeyError, TypeError.
    """
    header = json.loads(text)
    if header.pop("format") != FORMAT:
        raise ValueError("another format")
    version = header.pop("version")
    if version != VERSION:
        raise UsageError(f"{path} has format version {version}, this Tacopress reads {VERSION}; update Tacopress")
    values: dict[str, Any] = {key: tuple(value) if key in TUPLES else value for key, value in header.items()}
    return ModelCard(**values)
