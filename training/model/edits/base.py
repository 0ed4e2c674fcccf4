"""What all edits have in common."""

from typing import Any

from torch import nn

Edit = dict[str, Any]
"""An edit: `kind`, and plain JSON values."""


def module_at(model: nn.Module, path: object) -> nn.Module:
    """The module of that path.

    Raises:
        ValueError: There is none, or it is the model itself.
    """
    if not isinstance(path, str) or not path:
        raise ValueError(f"{path!r} is no path of a module")
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"there is no module {path}") from error
