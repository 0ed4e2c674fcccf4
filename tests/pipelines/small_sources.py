"""Small sources for the loader's tests, and what all ranks see together."""

import numpy as np
import torch

from pipelines.engines.base import Stack
from pipelines.errors import CorruptSampleError
from pipelines.loader import Loader, LoaderOptions
from pipelines.sources import Lazy, open_folder, sample_id
from pipelines.tensors import TensorFormat
from tests.pipelines.pictures import encoded, textured

CLASSES = ("can", "glass", "paper")
SHARES = (0, 0, 0, 0, 1, 1, 2)
"""Class of each of seven samples in turn: four, two and one of them."""


class MemorySource:
    """Pictures in memory, as raw pixels or as files of a kind; some damaged, some raise what nobody expects."""

    def __init__(self, count, *, size=None, kind=None, damaged=(), exploding=(), labels=None):
        self.classes, self.checked, self.fingerprint = CLASSES, kind is None, f"memory {count}"
        chosen = [SHARES[number % len(SHARES)] for number in range(count)] if labels is None else labels
        self.labels = np.array(chosen, np.int64)
        self.ids = np.array([sample_id(f"{number}") for number in range(count)], np.uint64)
        if size:
            self.image_size = size
        sides = [(size, size) if size else (9 + 5 * (number % 4), 11 + 7 * (number % 3)) for number in range(count)]
        pixels = [textured(*side, number) for number, side in enumerate(sides)]
        self.images = [encoded(each, kind=kind) for each in pixels] if kind else pixels
        self.damaged, self.exploding = frozenset(damaged), frozenset(exploding)

    def fetch(self, rows):
        return Lazy(self.image, rows)

    def image(self, row):
        if row in self.exploding:
            raise RuntimeError(f"row {row} explodes")
        if row in self.damaged:
            raise CorruptSampleError(f"sample {row} is damaged")
        return self.images[row]

    def describe(self, row):
        return f"memory, row {row}"


class Pile(Stack):
    """A stack that is read image by image, as one on a disk is; some of them damaged."""

    in_memory = False

    def __init__(self, images, damaged=()):
        self.images, self.damaged = images, frozenset(damaged)
        self.side = images.shape[1:3]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.damaged:
            raise CorruptSampleError(f"image {index} is damaged")
        return self.images[index]

    def copy_to(self, start, flip, out):
        errors = {}
        for place, mirrored in enumerate(flip.tolist()):
            try:
                out[place] = self[start + place][:, ::-1] if mirrored else self[start + place]
            except CorruptSampleError as error:
                errors[start + place] = str(error)
        return errors


def png_folder(root, count=23):
    """A source of class folders with PNG files of several sizes."""
    memory = MemorySource(count, kind="PNG")
    for number, (label, image) in enumerate(zip(memory.labels.tolist(), memory.images, strict=True)):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03}.png").write_bytes(image.tobytes())
    return open_folder(root)


def loaders(source, engine, world=1, *, epoch=0, dtype="uint8", **options):
    """A loader for each rank."""
    made = [
        Loader(source, engine, LoaderOptions(**options, rank=rank, world=world), TensorFormat(dtype))
        for rank in range(world)
    ]
    for loader in made:
        loader.set_epoch(epoch)
    return made


def together(parts):
    """One step of all ranks, without what does not count: (rows, images, labels, rows of the partners, share, box)."""
    rows = np.concatenate([part.rows[: part.real] for part in parts])
    images = torch.cat([part.images[: part.real] for part in parts])
    labels = torch.cat([part.labels[: part.real] for part in parts])
    if parts[0].mix is None:
        return rows.tolist(), images, labels, None, None, None
    assert len({(part.mix.share, part.mix.box) for part in parts}) == 1
    partners = np.concatenate([part.rows[part.mix.partners][: part.real] for part in parts])
    return rows.tolist(), images, labels, partners.tolist(), parts[0].mix.share, parts[0].mix.box


def steps(ranks, limit=None):
    """What all ranks see together in each of the next steps; `limit` of them, all that are left without."""
    iterators = [iter(rank) for rank in ranks]
    found = []
    while limit is None or len(found) < limit:
        parts = [next(iterator, None) for iterator in iterators]
        if any(part is None for part in parts):
            assert all(part is None for part in parts), "a rank has fewer steps than another one"
            break
        found.append(together(parts))
    return found


def same_step(one, other):
    """Whether two steps are equal to the last bit."""
    return one[0] == other[0] and one[3:] == other[3:] and all(torch.equal(one[part], other[part]) for part in (1, 2))


def same(some, others):
    """Whether two lists of steps are."""
    return len(some) == len(others) and all(same_step(*pair) for pair in zip(some, others, strict=True))


def rows_of(found):
    """Rows of all steps, in order."""
    return [row for step in found for row in step[0]]


def pixels_by_row(found):
    """Row → image; each row is seen once."""
    pairs = [pair for step in found for pair in zip(step[0], step[1], strict=True)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)
