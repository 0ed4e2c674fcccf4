"""Where a run stopped: one file, replaced atomically, read without unpickling anything but tensors and numbers."""

import io
from pathlib import Path
from typing import Any

import torch

from pipelines.console.files import write_bytes
from pipelines.errors import UsageError

RESUME_NAME = "resume.pt"
VERSION = 1


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write the state of a run.

    Args:
        run: Folder of the run.
        state: Tensors, numbers, strings, and lists and dictionaries of them.
    """
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **state}, buffer)
    write_bytes(run / RESUME_NAME, buffer.getvalue())


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """Read the state of a run; None where there is none.

    Raises:
        UsageError: The file is damaged or of another version.
    """
    path = run / RESUME_NAME
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged zip, refused pickle: many kinds, one meaning
        raise UsageError(f"{path} cannot be read ({error}); start anew with --overwrite true") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise UsageError(f"{path} was written by another Tacopress; start anew with --overwrite true")
    return state
