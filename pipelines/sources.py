"""Where samples come from. A source is anything with classes, labels, sample ids and `fetch`."""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import CorruptSampleError, UsageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
SPLITS = ("train", "val", "test")
READ_BYTES = 1 << 24


class Source(Protocol):
    """Samples with labels.

    Attributes:
        classes: Class names in index order.
        labels: int64 [n]; class index of each sample.
        ids: uint64 [n]; stable sample ids: what the plan is keyed by.
        checked: The images are known to be whole.
        fingerprint: Changes with anything that changes a label, an image or their order.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102 - see the class

    @property
    def labels(self) -> NDArray[np.int64]: ...  # noqa: D102

    @property
    def ids(self) -> NDArray[np.uint64]: ...  # noqa: D102

    @property
    def checked(self) -> bool: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def fetch(self, rows: NDArray[np.int64]) -> Sequence[NDArray[np.uint8]]:
        """The images of some rows. Each is read when it is asked for, and raises CorruptSampleError if it is damaged.

        Returns:
            For each row uint8 [bytes] (an encoded file) or uint8 [height, width, 3] (raw RGB), read-only views where
            that saves a copy.
        """
        ...

    def describe(self, row: int) -> str:
        """A name for a row that helps to find it: a path, a shard and row."""
        ...


def sample_id(name: str) -> int:
    """The stable id of a sample: 64 bits of the BLAKE2b hash of its name (class/file, with forward slashes)."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Lazy(Sequence[NDArray[np.uint8]]):
    """Images that are read when they are asked for: an engine's threads do that, not its caller.

    Args:
        read: Reads the image of a row.
        rows: int64 [n].
    """

    def __init__(self, read: Callable[[int], NDArray[np.uint8]], rows: NDArray[np.int64]) -> None:
        self._read, self._rows = read, rows.tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:  # type: ignore[override]
        return self._read(self._rows[index])


class Subset:
    """Some rows of a source, in a given order.

    Args:
        source: The whole.
        rows: int64 [k]; positions in it.
    """

    def __init__(self, source: Source, rows: NDArray[np.int64]) -> None:
        self._source, self._rows = source, rows
        self.classes, self.checked = source.classes, source.checked
        self.labels, self.ids = source.labels[rows], source.ids[rows]
        self.image_size: int | None = getattr(source, "image_size", None)

    @property
    def fingerprint(self) -> str:
        """That of the whole, and which rows of it."""
        return f"{self._source.fingerprint}/{sha256(self._rows.astype('<i8').tobytes()).hexdigest()}"

    def fetch(self, rows: NDArray[np.int64]) -> Sequence[NDArray[np.uint8]]:
        """See `Source`."""
        return self._source.fetch(self._rows[rows])

    def describe(self, row: int) -> str:
        """See `Source`."""
        return self._source.describe(int(self._rows[row]))


class Joined:
    """Several sources, one after the other, as one.

    Args:
        sources: At least one; all with the same classes.

    Raises:
        ValueError: None, or their classes differ.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if len({source.classes for source in sources}) != 1:
            raise ValueError("sources can be joined only if all have the same classes")
        self._sources = tuple(sources)
        self._starts = np.cumsum([0, *(len(source.labels) for source in sources)])
        self.classes = sources[0].classes
        self.checked = all(source.checked for source in sources)
        self.labels = np.concatenate([source.labels for source in sources])
        self.ids = np.concatenate([source.ids for source in sources])
        sizes = {getattr(source, "image_size", None) for source in sources}
        self.image_size: int | None = sizes.pop() if len(sizes) == 1 else None

    @property
    def fingerprint(self) -> str:
        """That of all parts."""
        return "+".join(source.fingerprint for source in self._sources)

    def fetch(self, rows: NDArray[np.int64]) -> Lazy:
        """See `Source`."""
        return Lazy(self._image, rows)

    def _image(self, row: int) -> NDArray[np.uint8]:
        source, own = self._place(row)
        return source.fetch(np.array([own], np.int64))[0]

    def describe(self, row: int) -> str:
        """See `Source`."""
        source, own = self._place(row)
        return source.describe(own)

    def _place(self, row: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._sources[part], row - int(self._starts[part])


@dataclass(frozen=True)
class FolderSource:
    """Images in one folder per class, as torchvision's ImageFolder has them.

    Attributes:
        root: The folder that holds the class folders.
        classes: Class names, sorted.
        files: Paths relative to the root, sorted by class and name.
        labels: int64 [n].
        ids: uint64 [n]; hash of the relative path.
        checked: False: files may be damaged.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: NDArray[np.int64]
    ids: NDArray[np.uint64]
    checked: bool = False

    def fetch(self, rows: NDArray[np.int64]) -> Lazy:
        """The files of some rows."""
        return Lazy(lambda row: read_file(f"{self.root}/{self.files[row]}"), rows)

    @property
    def fingerprint(self) -> str:
        """Checksum over names, sizes and times of change of all files: contents are not read for it."""
        digest = sha256()
        for file, label in zip(self.files, self.labels.tolist(), strict=True):
            facts = (self.root / file).stat()
            digest.update(repr((file, label, facts.st_size, facts.st_mtime_ns)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def describe(self, row: int) -> str:
        """Path of the file."""
        return str(self.root / self.files[row])

    def subset(self, rows: NDArray[np.int64]) -> "FolderSource":
        """Some of the samples, in the given order, with the same classes."""
        files = tuple(self.files[row] for row in rows.tolist())
        return FolderSource(self.root, self.classes, files, self.labels[rows], self.ids[rows])


def read_file(path: Path | str) -> NDArray[np.uint8]:
    """A file's contents, uint8 [bytes].

    Raises:
        CorruptSampleError: It is gone or may not be read.
    """
    try:
        # A file object costs more than reading a small file. Opening a pipe would wait for somebody to write into it.
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except BlockingIOError:  # a lease of somebody who may be writing, such as a file server: he is asked, we wait
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise CorruptSampleError(f"{path}: is no regular file; remove it")
            size = found.st_size
            data = os.read(descriptor, size + 1)
            while len(data) != size and (more := os.read(descriptor, READ_BYTES)):
                data += more  # grown meanwhile, or larger than one call gives
        finally:
            os.close(descriptor)
        return np.frombuffer(data, np.uint8)
    except OSError as error:
        raise CorruptSampleError(f"{path}: cannot be read: {error.strerror or error}; mend or remove it") from error


def open_folder(root: Path, classes: Sequence[str] | None = None, *, allow_empty_classes: bool = False) -> FolderSource:
    """List the images of a folder of class folders.

    Args:
        root: The folder.
        classes: Class names that labels refer to; the names of the folders when absent.
        allow_empty_classes: Accept classes without images.

    Returns:
        The source; nothing is decoded yet.

    Raises:
        UsageError: No such folder, no class folders, a class without images, a folder that is no class, or a file that
            lies elsewhere (symbolic link out of the root).
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder; give a folder that holds one folder of images per class")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names and not classes:
        raise UsageError(f"{root} holds no class folders; expected {root}/CLASS/IMAGE.jpg")
    wanted = tuple(classes) if classes is not None else tuple(names)
    strangers = sorted(set(names) - set(wanted))
    if strangers:
        raise UsageError(f"{root / strangers[0]} is none of the classes {', '.join(wanted)}; rename or remove it")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(wanted):
        found = _images(root, name) if name in names else []
        if not found and not allow_empty_classes:
            raise UsageError(
                f"class {name!r} has no images in {root}; add some, remove it, or set allow_empty_classes to true"
            )
        files += found
        labels += [label] * len(found)
    if not files:
        raise UsageError(f"{root} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in its class folders")
    ids = np.array([sample_id(name) for name in files], np.uint64)
    return FolderSource(root, wanted, tuple(files), np.array(labels, np.int64), ids)


def list_images(root: Path) -> list[str]:
    """Relative paths of all images in a folder, at any depth, sorted.

    Raises:
        UsageError: No such folder, nothing in it, or a link that leaves it.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder; give a folder of images")
    found = _images_below(root, "")
    if not found:
        raise UsageError(f"{root} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def _images(root: Path, class_name: str) -> list[str]:
    """Relative paths of the images of a class, at any depth, sorted."""
    _refuse_stray_link(root, root / class_name)
    return _images_below(root, f"{class_name}/")


def _images_below(root: Path, start: str) -> list[str]:
    """Relative paths of the images below a folder whose own path is empty or ends in a slash, sorted."""
    found: list[str] = []
    folders = [start]
    while folders:
        below = folders.pop()
        with os.scandir(root / below) as entries:
            for entry in entries:
                _sort_in(root, f"{below}{entry.name}", entry, found, folders)
    return sorted(found)


def _sort_in(root: Path, name: str, entry: "os.DirEntry[str]", found: list[str], folders: list[str]) -> None:
    """Put an entry among the images or the folders, if it is one of either."""
    if entry.name.startswith("."):
        return
    if entry.is_dir():
        if entry.is_symlink():
            raise UsageError(f"{entry.path} is a link to a folder, which is not followed; copy the folder")
        folders.append(f"{name}/")
    elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 - fast
        if entry.is_symlink():
            _refuse_stray_link(root, Path(entry.path))
        found.append(name)


def _refuse_stray_link(root: Path, path: Path) -> None:
    if path.is_symlink() and root.resolve() not in path.resolve().parents:
        raise UsageError(f"{path} is a link that leaves {root}; copy the file instead")
