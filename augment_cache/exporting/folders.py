"""SPLIT/CLASS/IMAGE: what torchvision's ImageFolder, Hugging Face's imagefolder and the build job read."""

import csv
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from augment_cache.exporting.names import key, stem
from augment_cache.exporting.rows import CheckedRows, in_order
from augment_cache.format.shards import Row

PROVENANCE_NAME = "provenance.csv"
HEADER = ("file", "split", "class", "source", "sample_id", "copy", "op", "magnitude", "centre")


def write_folders(
    folder: Path,
    classes: Sequence[str],
    splits: Sequence[CheckedRows],
    pool: ThreadPoolExecutor,
    threads: int,
    advance: Callable[[], None],
) -> dict[str, dict[str, int]]:
    """Write every row as `SPLIT/CLASS/STEM_SAMPLEID_COPY.jpg` (or `.png`), and `provenance.csv`.

    Args:
        folder: Where to; empty.
        classes: Class names. Each gets a folder in each split, rows or none: readers then number them alike everywhere.
        splits: What to write.
        pool: Reads, encodes and writes.
        threads: How many threads it has.
        advance: Called after each row.

    Returns:
        Split → `rows`, `files` (the same number), `bytes` of the images.
    """
    counts = {}
    # Linux lets file names hold bytes that are no UTF-8; Python reads them as surrogates, which UTF-8 cannot write.
    with (folder / PROVENANCE_NAME).open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for rows in splits:
            for name in classes:
                (folder / rows.split / name).mkdir(parents=True)
            size = 0
            work = partial(_write_image, folder, rows)
            for line, length in in_order(pool, threads, work, range(len(rows)), rows.part):
                table.writerow(line)
                size += length
                advance()
            counts[rows.split] = {"rows": len(rows), "files": len(rows), "bytes": size}
    return counts


def _write_image(folder: Path, rows: CheckedRows, position: int) -> tuple[list[Any], int]:
    item = rows.read(position)
    record, data = item.record, item.file()
    name = f"{stem(record.source)}_{key(record.sample_id, record.copy)}.{rows.suffix}"
    with (folder / rows.split / item.class_name / name).open("xb") as file:
        file.write(data)
    return provenance_line(f"{rows.split}/{item.class_name}/{name}", rows.split, item.class_name, record), len(data)


def provenance_line(file: str, split: str, class_name: str, record: Row) -> list[Any]:
    """A row of `provenance.csv`.

    Args:
        file: Path of the image, relative to the folder.
        split: Its split.
        class_name: Its class.
        record: The row of the cache.

    Returns:
        The cells under `HEADER`. Several ops are joined by `;`, in the order in which they were applied:
        `Cutout;Rotate`, `0.2;-14.0`, and as centres `0.25 0.5;0.0 0.0`. Numbers are written in full, so that they read
        back the same.
    """
    centres = zip(record.centre[::2], record.centre[1::2], strict=True)
    return [
        file,
        split,
        class_name,
        record.source,
        f"{record.sample_id:016x}",
        record.copy,
        ";".join(record.op),
        ";".join(repr(value) for value in record.magnitude),
        ";".join(f"{x!r} {y!r}" for x, y in centres),
    ]
