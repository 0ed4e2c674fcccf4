"""Carry out the edits of a model card: the one place where a press changes an architecture.

An edit does the same to the network that is pressed and to a fresh one of the same architecture that a model file's
weights are loaded into; it only cuts, takes away or puts in modules, and never looks at weights to decide anything.
"""

from collections.abc import Callable, Iterable

from torch import nn

from pipelines.errors import UsageError
from training.model.edits import channels, factor, remove, sparse
from training.model.edits.base import Edit

KINDS: dict[str, Callable[[nn.Module, Edit], None]] = {
    remove.KIND: remove.remove,
    channels.KIND: channels.cut,
    factor.KIND: factor.factor,
    sparse.KIND: sparse.keep,
}


def apply_edits(model: nn.Module, edits: Iterable[Edit], source: str) -> None:
    """Carry out edits, in order.

    Args:
        model: Is changed.
        edits: From a model card, or just decided.
        source: Where they come from, for messages.

    Raises:
        UsageError: An edit is of another version, or does not fit the model.
    """
    for edit in edits:
        kind = edit.get("kind") if isinstance(edit, dict) else None
        if not isinstance(kind, str) or kind not in KINDS:
            raise UsageError(
                f"{source} was pressed by edits that this Tacopress does not know ({kind}); update Tacopress"
            )
        try:
            KINDS[kind](model, edit)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
            raise UsageError(
                f"{source}: its edit {kind!r} does not fit the model ({error}); was timm or pytorchcv updated?"
            ) from error
