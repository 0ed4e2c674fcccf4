"""What the rivals share: listing a folder, two worker processes, one output file per process, and reading it back."""

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path

from pipelines.sources import IMAGE_SUFFIXES

CHUNK = 16
"""Sources that a worker takes at a time: enough to hide the cost of handing them over."""

_LENGTH = struct.Struct("<I")


def list_images(folder: Path) -> list[str]:
    """Paths of all images of a folder of class folders, sorted."""
    found: list[str] = []
    for where, _, names in os.walk(folder):
        found += [f"{where}/{name}" for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    return sorted(found)


def in_chunks(files: list[str]) -> list[list[str]]:
    """Cut a list of files into parts of `CHUNK`."""
    return [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]


def append(out: Path, images: Iterable[bytes]) -> int:
    """Append encoded images to this process's own file, each behind its length; returns how many."""
    parts = [part for image in images for part in (_LENGTH.pack(len(image)), image)]
    with (out / f"part-{os.getpid()}.bin").open("ab") as file:
        file.write(b"".join(parts))
    return len(parts) // 2


def read_parts(out: Path) -> Iterator[bytes]:
    """The images that `append` wrote to the files of a folder."""
    for path in sorted(out.glob("part-*.bin")):
        data = path.read_bytes()
        position = 0
        while position < len(data):
            (length,) = _LENGTH.unpack_from(data, position)
            position += _LENGTH.size
            yield data[position : position + length]
            position += length


class PoolBuilder:
    """Builds with a pool of worker processes, forked once everything is imported, as people use it on Linux.

    Args:
        size: Side of the images in px.
        processes: Number of workers.
        start: Run in each worker once, with the size.
        render: Run in a worker: path of a source → its encoded images.
    """

    def __init__(
        self, size: int, processes: int, start: Callable[[int], None], render: Callable[[str], list[bytes]]
    ) -> None:
        self._pool = get_context("fork").Pool(processes, initializer=start, initargs=(size,))
        self._render = render

    def build(self, data: Path, out: Path) -> None:
        """Make the images of every source of a folder."""
        out.mkdir(parents=True)
        tasks = [(self._render, chunk, out) for chunk in in_chunks(list_images(data))]
        for _ in self._pool.imap_unordered(_work, tasks):
            pass

    def close(self) -> None:
        """Stop the workers and wait for them."""
        self._pool.close()
        self._pool.join()


def _work(task: tuple[Callable[[str], list[bytes]], list[str], Path]) -> int:
    render, files, out = task
    return append(out, [image for file in files for image in render(file)])
