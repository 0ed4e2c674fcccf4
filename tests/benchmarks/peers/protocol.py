"""What every loader in this folder says and hears. Standard library only: each runs in an environment of its own.

    python NAME.py --images FOLDER --work FOLDER --size 64 --encoding jpeg --batch 128 --workers 2 --seed 0

`--images` is a folder of class folders: equally sized JPEG files, or, for `--encoding raw`, PNG files of the very same
pixels, which a loader stores as pixels. It converts them, says so in one line of JSON, and then obeys one command a
line, answering each with one line of JSON:

    epoch       one epoch, including whatever has to be made first (the first one opens the loader)
    seconds X   whole epochs, one after the other, until X seconds have passed: so that no batch is half done and no
                work is left over when the next loader has its turn
    describe    two epochs, and what was in them: see `describe`
    quit        the end

Batches are (uint8 tensor [n, 3, size, size] in RGB, int64 tensor [n]) in random order, half of the images mirrored.
Standard output belongs to the protocol: whatever the libraries print goes to standard error. Nothing here is named
after a library, since Python looks into a script's folder before it looks for packages.
"""

import argparse
import json
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

Batches = Iterable[tuple[Any, Any]]
"""(images, labels) of one epoch; tensors, but this module must not need torch."""

Epochs = Callable[[], Batches]
"""Starts one epoch."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; see the module."""

    images: Path
    work: Path
    size: int
    encoding: str
    batch: int
    workers: int
    seed: int
    variant: str


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A loader.

    Attributes:
        packages: Whose versions decide its speed.
        open: Makes the loader; called within the first epoch.
        convert: Fills the work folder; None where the images are read as they are.
        encodings: Which it can do.
    """

    packages: tuple[str, ...]
    open: Callable[[Options], Epochs]
    convert: Callable[[Options], None] | None = None
    encodings: tuple[str, ...] = ("jpeg", "raw")


def parse(words: list[str]) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--encoding", choices=("jpeg", "raw"), required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", default="")
    return Options(**vars(parser.parse_args(words)))


def samples(images: Path) -> list[tuple[str, int]]:
    """(path, label) of every image, sorted by class and name, classes counted in their sorted order."""
    names = sorted(entry.name for entry in images.iterdir() if entry.is_dir())
    return [(str(file), label) for label, name in enumerate(names) for file in sorted((images / name).iterdir())]


def flipped(image: Any) -> Any:
    """Mirror half of the images; for libraries that leave this to their users. Last axis is the width."""
    return image.flip(-1) if random.random() < 0.5 else image


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def consume(epochs: Epochs, seconds: float = 0.0) -> dict[str, Any]:
    """Run whole epochs, at least one, until the seconds have passed.

    Returns:
        `images`, `seconds`, `epochs`, `labels` {label: images}.

    Raises:
        ValueError: An epoch had no batch.
    """
    kept: list[Any] = []
    done = 0
    begin = time.perf_counter()
    while True:
        before = len(kept)
        for images, labels in epochs():
            # All that is done with a batch, the same for everybody: it must be there, and labels may be reused memory.
            int(images[0, 0, 0, 0])
            int(labels[-1])
            kept.append(labels.clone())
        done += 1
        passed = time.perf_counter() - begin
        if len(kept) == before:
            raise ValueError("an epoch without a batch")
        if passed >= seconds:
            break
    return {"seconds": passed, "epochs": done, **_counted(label for labels in kept for label in labels.tolist())}


def _counted(labels: Iterable[int]) -> dict[str, Any]:
    counts = Counter(labels)
    return {"images": counts.total(), "labels": {str(label): counts[label] for label in sorted(counts)}}


def describe(epochs: Epochs) -> dict[str, Any]:
    """Look at two epochs.

    Returns:
        `shape`, `dtype`, `label_dtype`, `channels_last` of the first batch; `images` and `labels` of the first epoch;
        `means`: mean level of red, green and blue over both epochs; `asymmetry`: mean over all images of how many
        levels their halves differ, which mirroring leaves as it is; `lean`: in each epoch by how many levels the left
        halves are brighter on average, and `left_heavy` the share of images in which they are: near a half, and never
        the same twice, if images are mirrored at random;
        `shuffled`: labels came in another order in the second epoch, and not sorted.
    """
    looks = [_look(epochs()) for _ in range(2)]
    first, second = looks
    total = sum(look["images"] for look in looks)
    return {
        **{name: first[name] for name in ("shape", "dtype", "label_dtype", "channels_last")},
        **_counted(first["order"]),
        "means": [sum(look["sums"][channel] for look in looks) / total for channel in range(3)],
        "asymmetry": sum(look["asymmetry"] for look in looks) / total,
        "lean": [look["lean"] / look["images"] for look in looks],
        "left_heavy": [look["left_heavy"] / look["images"] for look in looks],
        "shuffled": first["order"] != second["order"] and first["order"] != sorted(first["order"]),
    }


def _look(batches: Batches) -> dict[str, Any]:
    seen: dict[str, Any] = {"images": 0, "sums": [0.0] * 3, "asymmetry": 0.0, "lean": 0.0, "left_heavy": 0, "order": []}
    for images, labels in batches:
        if not seen["images"]:
            seen |= {"shape": list(images.shape), "dtype": str(images.dtype), "label_dtype": str(labels.dtype)}
            seen["channels_last"] = images.stride()[1] == 1
        count, width = images.shape[0], images.shape[3]
        levels = images.float()
        means = levels.mean((0, 2, 3)).tolist()
        columns = levels.mean((1, 2))
        lean = columns[:, : width // 2].mean(1) - columns[:, width - width // 2 :].mean(1)
        seen["images"] += count
        seen["sums"] = [total + mean * count for total, mean in zip(seen["sums"], means, strict=True)]
        seen["asymmetry"] += float(lean.abs().sum())
        seen["lean"] += float(lean.sum())
        seen["left_heavy"] += int((lean > 0).sum())
        seen["order"] += labels.tolist()
    return seen


@dataclass
class Session:
    """Obeys commands.

    Attributes:
        peer: The loader.
        options: The command line.
        epochs: Made by the first command that needs it.
    """

    peer: Peer
    options: Options
    epochs: Epochs | None = None

    def prepare(self) -> dict[str, Any]:
        """Convert the images."""
        if self.options.encoding not in self.peer.encodings:
            raise ValueError(f"--encoding {self.options.encoding} is none of {', '.join(self.peer.encodings)}")
        self.options.work.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        if self.peer.convert is not None:
            self.peer.convert(self.options)
        seconds = time.perf_counter() - begin
        return {
            "ready": True,
            "conversion_seconds": seconds if self.peer.convert is not None else 0.0,
            "bytes": folder_bytes(self.options.work if self.peer.convert is not None else self.options.images),
            "images": len(samples(self.options.images)),
            "versions": {name: version(name) for name in self.peer.packages},
        }

    def obey(self, line: str) -> dict[str, Any]:
        """Carry out one command and give the answer."""
        command, _, rest = line.strip().partition(" ")
        if command not in ("epoch", "seconds", "describe"):
            raise ValueError(f"no such command: {line.strip()!r}")
        return describe(self._epoch) if command == "describe" else consume(self._epoch, float(rest or 0))

    def _epoch(self) -> Batches:
        if self.epochs is None:
            self.epochs = self.peer.open(self.options)
        return self.epochs()


def converse(session: Session, commands: Iterable[str], out: IO[str]) -> int:
    """Convert, then obey until `quit`; an error is answered, told in full on standard error, and the end.

    Returns:
        The exit status.
    """
    try:
        _say(out, session.prepare())
        for line in commands:
            if line.strip() == "quit":
                break
            _say(out, session.obey(line))
    except Exception as error:
        traceback.print_exc()
        _say(out, {"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _say(out: IO[str], answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


def serve(peer: Peer) -> None:
    """Be this loader: the whole of a script's main."""
    options = parse(sys.argv[1:])
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what libraries print must not be taken for an answer
        status = converse(Session(peer, options), sys.stdin, out)
    sys.exit(status)
