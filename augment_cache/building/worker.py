"""Make one shard: read, render every copy from one decode, encode, write."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from augment_cache.building.shard_plan import ShardTask, content_digest, fingerprint
from augment_cache.format.manifest import shard_file
from augment_cache.format.shards import Encoding, Row, Shard, read_metadata, schema, write_shard
from pipelines.augmentations import OPS, Policy
from pipelines.engines.base import Engine, Job, Rendered
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.fit import Fit
from pipelines.plan import Plan, Stage, draw
from pipelines.sources import read_file

ENCODE_CHUNK = 32
"""Images that one task of the thread pool encodes: enough to hide the cost of handing it over."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the bytes of a cache, apart from the sources.

    Attributes:
        classes: Class names in index order.
        values: The recipe as the manifest keeps it.
        made_with: Versions of the libraries that move the pixels.
        policy: What copies may get.
        seed: Of the plan.
        size: Side of the images in px.
        fit: How other shapes become square.
        encoding: `jpeg` or `raw`.
        quality: Of the JPEG, 1 to 100.
    """

    classes: tuple[str, ...]
    values: dict[str, Any]
    made_with: dict[str, str]
    policy: Policy
    seed: int
    size: int
    fit: Fit
    encoding: Encoding
    quality: int


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard.

    Attributes:
        file: Path relative to the cache.
        reused: It was there already, made from the same sources by the same recipe.
    """

    file: str
    reused: bool


class ShardBuilder:
    """Builds shards with one engine.

    Args:
        recipe: What to build.
        engine: Renders the pixels.
        out: Folder of the cache.
        batch: Samples rendered together; changes speed, not bytes.
        threads: Threads that encode.
        strict: Stop at the first source that cannot be read.
    """

    def __init__(self, recipe: Recipe, engine: Engine, out: Path, *, batch: int, threads: int, strict: bool) -> None:
        self._recipe, self._engine, self._out, self._batch, self._strict = recipe, engine, out, batch, strict
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._digests: list[bytes] = []

    def build(self, task: ShardTask) -> ShardResult:
        """Make a shard, unless a finished one made from the same things is there.

        Raises:
            CorruptSampleError: A source cannot be read and `strict` is on.
            OSError: The disk is full or not writable.
        """
        name = shard_file(task.split, task.index, task.count)
        path = self._out / name
        found = read_metadata(path) if path.is_file() else None
        if found is not None:
            digests = list(self._pool.map(lambda file: content_digest(_read(task, file)[0]), task.files))
            if found.get("fingerprint") == self._fingerprint(task, digests) and _is_whole(path, self._recipe):
                for file, _, reason in found["rejected"]:
                    self._reject(task, file, reason)
                return ShardResult(name, reused=True)
        self._digests.clear()
        rows, rejected = self._rows(task)
        metadata = {
            "format": "tacopress-shard",
            "version": 1,
            "split": task.split,
            "recipe": self._recipe.values,
            "fingerprint": self._fingerprint(task, self._digests),
            "samples": len(task.files) - len(rejected),
            "rejected": rejected,
        }
        columns = schema(self._recipe.classes, self._recipe.encoding, self._recipe.size, metadata)
        write_shard(path, rows, columns, self._recipe.size)
        return ShardResult(name, reused=False)

    def _fingerprint(self, task: ShardTask, digests: list[bytes]) -> str:
        recipe = self._recipe
        return fingerprint(recipe.values, recipe.made_with, recipe.classes, task, digests)

    def _rows(self, task: ShardTask) -> tuple[list[Row], list[list[str]]]:
        rows: list[Row] = []
        rejected: list[list[str]] = []
        for result in self._engine.stream(self._jobs(task)):
            start, _, unread = result.tag
            for position, reason in sorted({**result.errors, **unread}.items()):
                file = task.files[start + position]
                self._reject(task, file, reason)
                rejected.append([file, self._recipe.classes[task.labels[start + position]], reason])
            rows += self._encoded(task, result)
        return rows, rejected

    def _reject(self, task: ShardTask, file: str, reason: str) -> None:
        if self._strict:
            raise CorruptSampleError(f"{Path(task.root) / file}: {reason}; mend or remove it, or drop --strict")

    def _jobs(self, task: ShardTask) -> Iterator[Job]:
        ids = np.array(task.ids, np.uint64)
        for start in range(0, len(ids), self._batch):
            part = slice(start, start + self._batch)
            rounds = range(task.copies + 1)
            plan = draw(self._recipe.policy, ids[part], seed=self._recipe.seed, stage=Stage.BUILD, rounds=rounds)
            read = [_read(task, file) for file in task.files[part]]
            images = [image for image, _ in read]
            # Of the very bytes that are rendered: a file that changes meanwhile can't pass for the one that was read.
            self._digests += self._pool.map(content_digest, images)
            unread = {index: reason for index, (_, reason) in enumerate(read) if reason}
            yield Job(images, plan, tag=(start, plan, unread))

    def _encoded(self, task: ShardTask, result: Rendered) -> list[Row]:
        start, plan, _ = result.tag
        pixels = result.pixels.cpu().numpy()
        whole = [index for index in range(plan.samples) if index not in result.errors]
        pairs = [(index, copy) for index in whole for copy in range(plan.rounds)]
        chunks = [pairs[first : first + ENCODE_CHUNK] for first in range(0, len(pairs), ENCODE_CHUNK)]
        parts = self._pool.map(lambda chunk: [self._encode(pixels[copy, index]) for index, copy in chunk], chunks)
        images = [image for part in parts for image in part]
        return [
            _row(task, start + index, copy, image, plan, index)
            for (index, copy), image in zip(pairs, images, strict=True)
        ]

    def _encode(self, pixels: NDArray[np.uint8]) -> bytes:
        if self._recipe.encoding == "raw":
            return pixels.tobytes()
        data: bytes = simplejpeg.encode_jpeg(pixels, quality=self._recipe.quality, colorsubsampling="420")
        return data

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()
        self._engine.close()


def _row(task: ShardTask, position: int, copy: int, image: bytes, plan: Plan, index: int) -> Row:
    codes = plan.op[copy, index].tolist()
    slots = [slot for slot, code in enumerate(codes) if code]
    return Row(
        sample_id=task.ids[position],
        copy=copy,
        image=image,
        label=task.labels[position],
        source=task.files[position],
        op=tuple(OPS[codes[slot]].name for slot in slots),
        magnitude=tuple(plan.value[copy, index, slots].tolist()),
        centre=tuple(plan.centre[copy, index, slots].ravel().tolist()),
    )


def _is_whole(path: Path, recipe: Recipe) -> bool:
    """Whether every row of a shard still matches its checksums."""
    try:
        shard = Shard(path, recipe.encoding, recipe.size)
        for row in range(shard.rows):
            shard.check(row)
            shard.check_provenance(row)
    except (UsageError, CorruptSampleError):
        return False
    return True


def _read(task: ShardTask, file: str) -> tuple[NDArray[np.uint8], str]:
    """Contents of a source file and, if it cannot be read, nothing and the reason."""
    try:
        return read_file(Path(task.root) / file), ""
    except CorruptSampleError as error:
        return np.empty(0, np.uint8), str(error).rpartition(": ")[2].partition(";")[0]
