"""Files and folders that exist whole or not at all."""

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipelines.errors import UsageError

Moving = Callable[[], AbstractContextManager[None]]
"""What surrounds the moment in which a file appears under its name; may raise."""


@contextmanager
def replacing(path: Path, moving: Moving = nullcontext) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is complete: written beside it, flushed to disk, renamed.

    Args:
        path: The file; folders that lead to it are made. A failure leaves what was there as it was.
        moving: Around the renaming.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{_own_mark()}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with moving():
            aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _own_mark() -> str:
    """For names: where machines or containers share a disk, a process number alone may be somebody else's too."""
    return f"{os.getpid()}-{os.urandom(4).hex()}"


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file, see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """`write_bytes` of indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """`write_bytes` of comma-separated rows."""
    lines: list[str] = []
    # With this end of line, cells that hold either of its characters are quoted; Python 3.11 leaves a lone \\r bare.
    writer = csv.writer(_Lines(lines), lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, "".join(lines))


class _Lines:
    """The least a csv.writer needs; ends each row with a newline alone."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def write(self, text: str) -> int:
        self._lines.append(text.removesuffix("\r\n") + "\n")
        return len(text)


@contextmanager
def whole_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Fill a folder that appears under its name only when it is complete.

    Args:
        target: The folder to make.
        overwrite: Replace a folder that is there already; otherwise that is an error.

    Yields:
        A fresh folder beside the target; renamed to it on success, removed on failure.

    Raises:
        UsageError: The target exists, or came into being meanwhile, and `overwrite` is False; or it is a file.
    """
    # A link is replaced where it points: beside it the folder would land on another disk, and the old one would stay.
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, not a folder; choose another --out")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UsageError(f"{target} is there already; choose another --out or give --overwrite true to replace it")
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = _own_mark()
    aside = target.with_name(f".{target.name}.partial-{mark}")
    aside.mkdir()
    try:
        yield aside
        if overwrite and target.is_dir():
            old = target.with_name(f".{target.name}.old-{mark}")
            target.rename(old)
            try:
                aside.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            _take(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def refuse_others(folder: Path, ours: Set[str]) -> None:
    """Make sure that a folder that is going to be replaced holds nothing that the job would not write again.

    Args:
        folder: The folder; hidden files in it do not count.
        ours: Names of all that the job writes.

    Raises:
        UsageError: Names something else.
    """
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in ours and entry.name[0] != ".")
    if others:
        raise UsageError(f"--out {folder} holds {others[0]!r}, which is none of its files; move it elsewhere")


def _take(aside: Path, target: Path) -> None:
    """Rename a folder to a name that nothing or an empty folder has."""
    try:
        aside.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UsageError(
            f"{target} came into being meanwhile; choose another --out or give --overwrite true to replace it"
        ) from error


def inside(root: Path, name: str) -> Path | None:
    """Resolve a relative path that stands in a data file, refusing any that leaves the root.

    Args:
        root: The folder that the data file may speak of.
        name: A path with forward slashes, as data files carry it.

    Returns:
        The path, or None when it is absolute, climbs out, or leads out through a symbolic link.
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        return None
    path = root / pure
    try:
        return path if root.resolve() in path.resolve().parents else None
    except (OSError, RuntimeError, UnicodeError):  # a loop of links; a character that no file name can hold
        return None
