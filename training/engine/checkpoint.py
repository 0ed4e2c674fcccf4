"""Where a run stands: complete files or none, checked by content, the newest whole one wins.

A checkpoint's name holds the step and the first digits of the SHA-256 of its content, so a file that was damaged after
it had been written is told from a whole one, and there is no second file that could disagree. Tensors and numbers only:
nothing is unpickled.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from pipelines.console.files import write_bytes
from pipelines.errors import UsageError

FOLDER = "checkpoints"
VERSION = 2
_NAME = re.compile(r"step-(\d{8,})\.([0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Attributes:
        run: Folder of the run.
        keep: How many of them to keep.
    """

    run: Path
    keep: int = 2

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.run / FOLDER

    def paths(self) -> list[Path]:
        """All of them, oldest first."""
        found = [path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_step(path), path.name))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then delete the oldest beyond `keep`.

        Args:
            step: Optimizer steps done.
            state: Tensors, numbers, strings, and lists and dictionaries of them.

        Returns:
            The file.

        Raises:
            OSError: It could not be written; nothing is left of it, and the older ones are whole.
        """
        buffer = io.BytesIO()
        torch.save({"version": VERSION, **state}, buffer)
        data = buffer.getvalue()
        path = self.folder / f"step-{step:08d}.{sha256(data).hexdigest()[:16]}.pt"
        write_bytes(path, data)
        self.drop(step)
        for other in self.paths():
            if other != path and _step(other) == step:  # damaged since
                other.unlink(missing_ok=True)
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def load(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest checkpoint that is whole.

        Args:
            warn: Told of each one that had to be passed over.

        Returns:
            What was saved; None where nothing ever was.

        Raises:
            UsageError: There are checkpoints, but none is whole, or the newest whole one is of another version.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                state = _read(path)
            except (OSError, ValueError) as error:
                warn(f"{path} is damaged ({error}); going back to the one before")
                continue
            if state.get("version") != VERSION:
                raise UsageError(f"{path} was written by another Tacopress; start anew with --overwrite true")
            return state
        if paths:
            raise UsageError(f"no checkpoint in {self.folder} is whole; start anew with --overwrite true")
        return None

    def drop(self, step: int) -> None:
        """Delete those of later steps than one: damaged, or of a future that is not this run's any more."""
        for path in self.paths():
            if _step(path) > step:
                path.unlink(missing_ok=True)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _read(path: Path) -> dict[str, Any]:
    """Read and check a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not what was written.
    """
    data = path.read_bytes()
    match = _NAME.fullmatch(path.name)
    if match is None or sha256(data).hexdigest()[:16] != match[2]:
        raise ValueError("its content is not what its name says")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # refused pickle, foreign zip: many kinds, one meaning
        raise ValueError(f"it cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise ValueError("it holds no state of a run")
    return state
