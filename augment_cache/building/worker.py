"""Make shards: read, render every copy from one decode, encode, write."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from augment_cache.building.facts import ShardFacts, read_facts
from augment_cache.building.lock import turn
from augment_cache.building.shard_plan import ShardTask, content_digest, fingerprint, listing_checksum
from augment_cache.format.manifest import BUILD_NAME, MANIFEST_NAME, ShardEntry
from augment_cache.format.policy import PolicyFile
from augment_cache.format.shards import Encoding, Row, Shard, read_metadata, schema, write_shard
from pipelines.augmentations import OPS
from pipelines.engines.base import Engine, Image, Job, Rendered
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.fit import Fit
from pipelines.plan import Plan, Stage, draw
from pipelines.sources import read_file

SHARDS_BEING_WRITTEN = 1
"""Finished shards that may wait for the disk, besides the one that is being built."""
Advance = Callable[[int], None]
"""Told the number of sources that were finished."""


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
    policy: PolicyFile
    seed: int
    size: int
    fit: Fit
    encoding: Encoding
    quality: int


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard.

    Attributes:
        facts: What the manifest says about it.
        sources: Number of its sources.
        reused: It was there already, made from the same sources by the same recipe.
    """

    facts: ShardFacts
    sources: int
    reused: bool


@dataclass(frozen=True)
class Claim:
    """What a build was given when it claimed its folder.

    Attributes:
        known: Shards of a finished cache that may be reused: path → SHA-256.
        build_file: Contents of `build.json`; None where there is none and nobody else writes.
    """

    known: Mapping[str, str] = field(default_factory=dict)
    build_file: bytes | None = None


class _Files(Sequence[Image]):
    """Files of a task, read when an engine asks for them; notes the checksum of the very bytes that are rendered."""

    def __init__(self, task: ShardTask, positions: NDArray[np.int64], digests: list[bytes]) -> None:
        self._task, self._positions, self._digests = task, positions, digests

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Image:  # type: ignore[override]
        position = int(self._positions[index])
        data, reason = read_source(self._task, position)
        self._digests[position] = content_digest(data)
        if reason:
            raise CorruptSampleError(reason)
        return data


@dataclass
class _Growing:
    """A shard under construction. Arrays are indexed by the position of a sample in the task."""

    task: ShardTask
    listing: str
    left: int
    """Jobs that have not come back yet."""
    digests: list[bytes]
    images: list[list[bytes]]
    reasons: dict[int, str] = field(default_factory=dict)
    plans: list[tuple[NDArray[np.int64], Plan]] = field(default_factory=list)


class ShardBuilder:
    """Builds shards with one engine.

    Args:
        recipe: What to build.
        engine: Renders the pixels.
        out: Folder of the cache.
        batch: Samples rendered together; changes speed, not bytes.
        strict: Stop at the first source that cannot be read.
        claim: What the build was given.
    """

    def __init__(self, recipe: Recipe, engine: Engine, out: Path, *, batch: int, strict: bool, claim: Claim) -> None:
        self._recipe, self._engine, self._out, self._batch = recipe, engine, out, batch
        self._strict, self._claim = strict, claim
        # Waiting for the disk must not hold up rendering.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")

    def build(self, tasks: Iterable[ShardTask], advance: Advance) -> Iterator[ShardResult]:
        """Make shards, except those that are there, finished and made from the same things.

        Yields:
            One result per task; shards that are reused may come before earlier tasks.

        Raises:
            CorruptSampleError: A source cannot be read and `strict` is on.
            OSError: The disk is full or not writable.
        """
        # Not asked shard by shard: a name is looked up only when nobody writes into its folder, which takes long here.
        there = {f"{file.parent.name}/{file.name}" for file in self._out.glob("*/*")}
        ready: deque[ShardResult] = deque()
        writing: deque[Future[ShardResult]] = deque()
        with closing(self._engine.stream(self._jobs(tasks, there, ready, advance))) as stream:  # type: ignore[type-var]
            for result in stream:
                shard: _Growing = result.tag[0]
                self._add(shard, result)
                advance(len(result.products))
                while ready:
                    yield ready.popleft()
                if shard.left == 0:
                    writing.append(self._writer.submit(self._write, shard))
                while len(writing) > SHARDS_BEING_WRITTEN:
                    yield writing.popleft().result()
        yield from ready
        for future in writing:
            yield future.result()

    def close(self) -> None:
        """Stop the threads; what is being written is written to its end."""
        self._writer.shutdown(cancel_futures=True)
        self._engine.close()

    def _jobs(
        self, tasks: Iterable[ShardTask], there: Set[str], ready: deque[ShardResult], advance: Advance
    ) -> Iterator[Job]:
        """The work; shards that need none are `ready`. `there`: files of shards when the build began."""
        for task in tasks:
            if task.file in there:
                if facts := self._finished(task):
                    ready.append(ShardResult(facts, len(task.files), reused=True))
                    advance(len(task.files))
                    continue
                self._retire(task)
            if task.files:
                yield from self._shard_jobs(task)
            else:
                ready.append(self._write(self._begun(task, 0)))

    def _begun(self, task: ShardTask, jobs: int) -> _Growing:
        count, recipe = len(task.files), self._recipe
        listing = listing_checksum(recipe.values, recipe.classes, task)
        return _Growing(task, listing, jobs, [b""] * count, [[] for _ in range(count)])

    def _shard_jobs(self, task: ShardTask) -> Iterator[Job]:
        groups = [np.flatnonzero(task.copies == copies) for copies in np.unique(task.copies)]
        parts = [group[first : first + self._batch] for group in groups for first in range(0, len(group), self._batch)]
        shard = self._begun(task, len(parts))
        for positions in parts:
            plan = draw(
                self._recipe.policy.policy,
                task.ids[positions],
                seed=self._recipe.seed,
                stage=Stage.BUILD,
                rounds=range(int(task.copies[positions[0]]) + 1),
            )
            images = _Files(task, positions, shard.digests)
            yield Job(images, plan, tag=(shard, positions, plan), finish=self._encode)

    def _encode(self, pixels: NDArray[np.uint8]) -> bytes:
        if self._recipe.encoding == "raw":
            return pixels.tobytes()
        data: bytes = simplejpeg.encode_jpeg(pixels, quality=self._recipe.quality, colorsubsampling="420")
        return data

    def _add(self, shard: _Growing, result: Rendered) -> None:
        _, positions, plan = result.tag
        shard.left -= 1
        shard.plans.append((positions, plan))
        for position, images in zip(positions.tolist(), result.products, strict=True):
            if images is not None:
                shard.images[position] = images
        for index, reason in sorted(result.errors.items()):
            position = int(positions[index])
            self._reject(shard.task, shard.task.files[position], reason)
            shard.reasons[position] = reason

    def _reject(self, task: ShardTask, file: str, reason: str) -> None:
        if self._strict:
            raise CorruptSampleError(f"{Path(task.root) / file}: {reason}; mend or remove it, or drop --strict")

    def _write(self, shard: _Growing) -> ShardResult:
        task, classes = shard.task, self._recipe.classes
        rejected = [
            [task.files[position], classes[task.labels[position]], reason]
            for position, reason in sorted(shard.reasons.items())
        ]
        metadata = {
            **self._metadata(task, shard.listing),
            "fingerprint": fingerprint(shard.listing, shard.digests),
            "samples": len(task.files) - len(rejected),
            "rejected": rejected,
        }
        columns = schema(classes, self._recipe.encoding, self._recipe.size, metadata)
        rows = _rows(shard)
        digest, size = write_shard(self._out / task.file, rows, columns, self._recipe.size, self._still_ours)
        entry = ShardEntry(task.file, len(rows), size, digest, metadata["fingerprint"])
        counts = np.bincount([row.label for row in rows], minlength=len(classes)).tolist()
        return ShardResult(ShardFacts(entry, metadata["samples"], counts, rejected), len(task.files), reused=False)

    @contextmanager
    def _still_ours(self) -> Iterator[None]:
        """A part that is late must not write into a cache that has replaced its own meanwhile."""
        if self._claim.build_file is None:
            yield
            return
        with turn(self._out):
            if self._claim.build_file != read_state(self._out):
                raise UsageError(
                    f"{self._out} was given to another build meanwhile; choose another --out, or run again"
                )
            yield

    def _metadata(self, task: ShardTask, listing: str) -> dict[str, Any]:
        """What is known of a shard without reading its sources."""
        return {
            "format": "tacopress-shard",
            "version": 2,
            "split": task.split,
            "recipe": self._recipe.values,
            "listing": listing,
        }

    def _finished(self, task: ShardTask) -> ShardFacts | None:
        """A shard that is there, made from the same things, every byte as it was written; otherwise None."""
        path = self._out / task.file
        found = read_metadata(path) if path.is_file() else None
        listing = listing_checksum(self._recipe.values, self._recipe.classes, task)
        if found is None or any(found.get(key) != value for key, value in self._metadata(task, listing).items()):
            return None
        shard = self._whole(path, found) if found.get("fingerprint") == fingerprint_now(task, listing) else None
        if shard is None:
            return None
        facts = read_facts(shard, task.file, len(self._recipe.classes))
        if facts.entry.sha256 != self._claim.known.get(task.file, facts.entry.sha256):
            return None
        for file, _, reason in facts.rejected:
            self._reject(task, file, reason)
        return facts

    def _whole(self, path: Path, found: dict[str, Any]) -> Shard | None:
        """A shard whose rows and schema are as they were written; None for another one."""
        recipe = self._recipe
        with suppress(UsageError):
            shard = Shard(path, recipe.encoding, recipe.size)
            found = {key: value for key, value in found.items() if key != "classes"}
            wanted = schema(recipe.classes, recipe.encoding, recipe.size, found)
            return shard if shard.has_schema(wanted) and not shard.damage() else None
        return None

    def _retire(self, task: ShardTask) -> None:
        """Take away what is out of date, so that no manifest can speak of it any more."""
        with self._still_ours():
            (self._out / MANIFEST_NAME).unlink(missing_ok=True)
            (self._out / task.file).unlink(missing_ok=True)


def read_state(out: Path) -> bytes:
    """Contents of `build.json`; nothing if it is gone."""
    try:
        return (out / BUILD_NAME).read_bytes()
    except FileNotFoundError:
        return b""


def _rows(shard: _Growing) -> list[Row]:
    """The rows of a finished shard, sorted by sample and copy."""
    rows: list[Row] = []
    ids, labels = shard.task.ids.tolist(), shard.task.labels.tolist()
    provenance = _provenance(shard)
    for position, images in enumerate(shard.images):
        source = shard.task.files[position]
        rows += [
            Row(ids[position], copy, image, labels[position], source, *provenance[position][copy])
            for copy, image in enumerate(images)
        ]
    return rows


_Provenance = tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]
"""Ops, magnitudes and centres of a row."""


def _provenance(shard: _Growing) -> dict[int, list[_Provenance]]:
    """Position of a sample → what was done to each of its versions."""
    found: dict[int, list[_Provenance]] = {}
    for positions, plan in shard.plans:
        codes, values, centres = plan.op.tolist(), plan.value.tolist(), plan.centre.tolist()
        for index, position in enumerate(positions.tolist()):
            found[position] = [
                _done(codes[copy][index], values[copy][index], centres[copy][index]) for copy in range(plan.rounds)
            ]
    return found


_NOTHING: _Provenance = ((), (), ())


def _done(codes: list[int], values: list[float], centres: list[list[float]]) -> _Provenance:
    if not any(codes):
        return _NOTHING
    slots = [slot for slot, code in enumerate(codes) if code]
    return (
        tuple([OPS[codes[slot]].name for slot in slots]),
        tuple([values[slot] for slot in slots]),
        tuple([number for slot in slots for number in centres[slot]]),
    )


def fingerprint_now(task: ShardTask, listing: str) -> str:
    """The fingerprint of a shard made from the files as they are now; reads them all. `listing`: its checksum."""
    return fingerprint(listing, [content_digest(read_source(task, place)[0]) for place in range(len(task.files))])


def read_source(task: ShardTask, position: int) -> tuple[Image, str]:
    """Contents of a source file and, if it cannot be read, nothing and the reason."""
    try:
        return read_file(f"{task.root}/{task.files[position]}"), ""
    except CorruptSampleError as error:
        return np.empty(0, np.uint8), str(error).rpartition(": ")[2].partition(";")[0]
