"""Draw a contact sheet (PNG): samples of a cache with all their copies, or every op from weak to strong."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augment_cache.format.source import CacheSource
from augment_cache.sheets.contact_sheet import Tile, draw_sheet
from pipelines import order
from pipelines.augmentations import CODES, IDENTITY, OPS, Op, value_text
from pipelines.console.files import write_bytes
from pipelines.console.job import run_job
from pipelines.console.output import human_bytes
from pipelines.console.ranges import check_ranges
from pipelines.decode import decode, read_header
from pipelines.engines.base import Job, RenderSpec
from pipelines.engines.choose import EngineName, make_engine
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.plan import Plan, nothing

EXAMPLE = """
  python -m augment_cache.preview --cache out/cache --out out/copies.png
  python -m augment_cache.preview --image out/crops/train/Metal/a000007.jpg --out out/ops.png
"""
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
TILES_ACROSS = 9


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Options of the preview job.

    Args:
        cache: Show samples of this cache: the original, then each copy with its op and magnitude; several samples stand
            side by side where they have few copies.
        image: Show this image under every op instead, from a quarter of the range to all of it, in both directions.
        out: The PNG to write.
        split: Which split of the cache.
        rows: Number of samples, spread evenly over the classes.
        seed: Which samples.
        tile: Side in px of each picture on the sheet.
        size: Side in px that --image is rendered at.
        engine: Renders --image.
    """

    cache: Path | None = None
    image: Path | None = None
    out: Path = Path("out/preview.png")
    split: str = "train"
    rows: int = 12
    seed: int = 0
    tile: int = 128
    size: int = 128
    engine: EngineName = "cpu"

    def __post_init__(self) -> None:
        if (self.cache is None) == (self.image is None):
            raise UsageError("give either --cache or --image")
        if self.rows < 1 or self.tile < 16:
            raise UsageError(f"--rows must be at least 1 and --tile at least 16, got {self.rows} and {self.tile}")
        check_ranges({"--seed": (self.seed, 0, 2**64 - 1)})
        if not 4 <= self.size <= 4096:
            raise UsageError(f"--size must be 4 to 4096, got {self.size}")


def preview(config: PreviewConfig) -> dict[str, Any]:
    """Draw the sheet.

    Returns:
        The report. Keys: `out`, `rows` (lines of the sheet), `tiles` (pictures), `bytes`.
    """
    if config.cache is not None:
        rows = _side_by_side(cache_rows(config.cache, config.split, config.rows, config.seed))
        title = f"{config.cache.name}, {config.split}: originals and their augmented copies"
    else:
        assert config.image is not None
        rows = op_rows(config.image, config.size, config.engine)
        title = "every op, from a quarter of its range to all of it, in both directions"
    png = draw_sheet(rows, tile=config.tile, title=title)
    write_bytes(config.out, png)
    return {"out": str(config.out), "rows": len(rows), "tiles": sum(len(row) for row in rows), "bytes": len(png)}


def cache_rows(cache: Path, split: str, count: int, seed: int) -> list[list[Tile]]:
    """One row of tiles per sample: the original and its copies.

    Args:
        cache: The cache.
        split: Which split.
        count: Number of samples; every class gets its turn before any class gets a second one.
        seed: Which samples.
    """
    source = CacheSource(cache, split)
    originals = np.flatnonzero(source.copies == 0)
    shuffled = originals[order.shuffled(len(originals), seed=seed, epoch=0)]
    turns = _turns(source.labels[shuffled])
    chosen = shuffled[np.lexsort((source.labels[shuffled], turns))][:count]
    rows = []
    for original in chosen.tolist():
        versions = np.flatnonzero(source.sample_ids == source.sample_ids[original])
        versions = versions[np.argsort(source.copies[versions])]
        rows.append([_version_tile(source, row) for row in versions.tolist()])
    return rows


def _side_by_side(samples: list[list[Tile]]) -> list[list[Tile]]:
    """Several samples in a row, so that the sheet is about as wide as high."""
    each = max(1, TILES_ACROSS // max(len(sample) for sample in samples))
    groups = [samples[first : first + each] for first in range(0, len(samples), each)]
    return [[tile for sample in group for tile in sample] for group in groups]


def _turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each sample, how many of its class came before it."""
    turns = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turns[members] = np.arange(len(members))
    return turns


def _version_tile(source: CacheSource, row: int) -> Tile:
    image = source.fetch(np.array([row]))[0]
    pixels = image if image.ndim == 3 else decode(image)
    record = source.record(row)
    if record.copy == 0:
        return Tile(pixels, (source.classes[record.label], Path(record.source).name))
    values = [value_text(OPS[CODES[name]], value) for name, value in zip(record.op, record.magnitude, strict=True)]
    return Tile(pixels, (" + ".join(record.op) or "nothing", ", ".join(values)))


def op_rows(image: Path, size: int, engine_name: EngineName) -> list[list[Tile]]:
    """One row of tiles per op: the image itself, then weak to strong, then the other direction."""
    try:
        data = np.fromfile(image, np.uint8)
        read_header(data)
    except (OSError, CorruptSampleError) as error:
        raise UsageError(f"--image {image}: {error}") from error
    ops = [op for op in OPS if op is not IDENTITY]
    values = [_shown_values(op) for op in ops]
    count = sum(len(row) for row in values) + 1
    codes = [0] + [OPS.index(op) for op, row in zip(ops, values, strict=True) for _ in row]
    flat = [0.0] + [value for row in values for value in row]
    blank = nothing(count)
    plan = Plan(
        op=np.array(codes, np.int8).reshape(1, count, 1),
        value=np.array(flat, np.float32).reshape(1, count, 1),
        centre=np.full((1, count, 1, 2), 0.5, np.float32),
        flip=blank.flip,
        box=blank.box,
    )
    engine = make_engine(engine_name, RenderSpec(size), device="cpu")
    try:
        rendered = next(iter(engine.stream([Job([data] * count, plan)])))
        if rendered.errors:
            raise UsageError(f"--image {image}: {rendered.errors[0]}")
        pixels = iter(rendered.pixels.numpy()[0])
        original = Tile(next(pixels), ("original",))
        return [
            [original, *(Tile(next(pixels), (op.name, value_text(op, value))) for value in row)]
            for op, row in zip(ops, values, strict=True)
        ]
    finally:
        engine.close()


def _shown_values(op: Op) -> list[float]:
    if not op.has_value:
        return [0.0]
    values = [op.low + strength * (op.high - op.low) for strength in STRENGTHS]
    # Quarter turns round to fewer values than there are strengths.
    values = list(dict.fromkeys(float(round(value)) for value in values)) if op.whole else values
    return values + ([-value for value in values] if op.signed else [])


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    return f"{report['tiles']} pictures in {report['rows']} rows: {report['out']} ({human_bytes(report['bytes'])})"


def main() -> None:
    """Run the job."""
    run_job(PreviewConfig, preview, name="augment_cache.preview", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
