"""Render a small data set of drawn litter, in TACO's form, to try the whole road on without any photographs.

The pictures are drawings with a computer, not photographs: good for tests, lessons and a first run, worthless as
evidence of how well a model does on litter. They come as TACO does, as `annotations.json` (COCO) beside
`batch_1/000001.jpg` …, so that the crop job takes them without being told.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from augment_cache.drawing.catalogue import KINDS
from augment_cache.drawing.photo import Seen, render_photo
from pipelines.console.cores import usable_cores
from pipelines.console.files import refuse_others, whole_folder, write_json
from pipelines.console.job import run_job
from pipelines.console.output import human_bytes, human_seconds, render_table
from pipelines.console.progress import ProgressMeter
from pipelines.errors import UsageError

DESCRIPTION = "Rendered sample"
"""How the description in the annotations file begins."""

MOST_PHOTOS = 999_999
"""What the six digits of the file names can count."""

SMALLEST_SIDE, LARGEST_SIDE = 160, 4096
"""Bounds of `width` and `height`, in px."""

EXAMPLE = """
  python -m augment_cache.sample
  python -m augment_cache.sample --out out/tiny --photos 20 --seed 7
"""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to render.

    Args:
        out: Folder to make: annotations.json and batch_1/000001.jpg and so on.
        photos: How many photos; each has 1 to 5 objects, 2.6 on average. The first 20 of 300 are the same as 20 alone.
        seed: Another seed gives other photos; the same seed gives the same bytes.
        width: Width of a photo, in px.
        height: Height of a photo, in px.
        overwrite: Replace the folder if it is there already.
    """

    out: Path = Path("out/sample")
    photos: int = 300
    seed: int = 0
    width: int = 640
    height: int = 480
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.photos <= MOST_PHOTOS:
            raise UsageError(f"--photos {self.photos} cannot be rendered; give a number from 1 to {MOST_PHOTOS}")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"--seed {self.seed} is out of range; give a number from 0 to 2**64 - 1")
        for name, side in (("width", self.width), ("height", self.height)):
            if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
                raise UsageError(f"--{name} {side} is out of range; give {SMALLEST_SIDE} to {LARGEST_SIDE} px")


def sample(config: SampleConfig) -> dict[str, Any]:
    """Render the photos and write them with their annotations.

    Returns:
        `out` (str), `photos` (int), `annotations` (int), `classes` (annotations of each of the six classes, by name),
        `unmapped` (int, annotations outside the classes), `bytes` (int, of all files) and `seconds` (float).

    Raises:
        UsageError: The folder is there already and `overwrite` is False, or it holds no rendered sample.
    """
    start = time.monotonic()
    _check_out(config.out, overwrite=config.overwrite)
    with (
        whole_folder(config.out, overwrite=config.overwrite) as folder,
        ProgressMeter("sample", config.photos, "photos") as meter,
    ):
        (folder / file_name(0)).parent.mkdir()
        seen = []
        for objects in _render_all(config, folder):
            seen.append(objects)
            meter.advance()
        write_json(folder / "annotations.json", coco(config, seen))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "out": str(config.out),
        "photos": config.photos,
        "annotations": sum(map(len, seen)),
        **count_classes(seen),
        "bytes": size,
        "seconds": round(time.monotonic() - start, 3),
    }


def _check_out(out: Path, *, overwrite: bool) -> None:
    """`--overwrite true` deletes what is there, so what is there has to be a rendered sample."""
    if not (overwrite and out.is_dir() and any(out.iterdir())):
        return
    try:
        description = json.loads((out / "annotations.json").read_bytes())["info"]["description"]
    except (OSError, ValueError, KeyError, TypeError):
        description = ""
    if not str(description).startswith(DESCRIPTION):
        raise UsageError(f"--out {out} holds no rendered sample, so it is kept; choose another --out")
    refuse_others(out, {"annotations.json", Path(file_name(0)).parent.name})


def file_name(index: int) -> str:
    """Where photo `index` (from 0) lies in the folder: `batch_1/000001.jpg` is the first."""
    return f"batch_1/{index + 1:06d}.jpg"


def _render_all(config: SampleConfig, folder: Path) -> Iterator[tuple[Seen, ...]]:
    """Write the photos, many at a time, and yield the objects of each in order."""
    pool = ThreadPoolExecutor(usable_cores())
    try:
        yield from pool.map(partial(_render_one, config, folder), range(config.photos))
    finally:  # after an error or Ctrl-C the photos still waiting are of no use
        pool.shutdown(cancel_futures=True)


def _render_one(config: SampleConfig, folder: Path, index: int) -> tuple[Seen, ...]:
    photo = render_photo(config.seed, index, width=config.width, height=config.height)
    (folder / file_name(index)).write_bytes(photo.jpeg)
    return photo.objects


def coco(config: SampleConfig, seen: Sequence[Sequence[Seen]]) -> dict[str, Any]:
    """The annotation file, as TACO lays it out.

    Args:
        config: What was rendered.
        seen: The objects of each photo, in order.

    Returns:
        A JSON-able dictionary; ids of images and annotations count from 1. All categories that can be drawn are
        listed, drawn or not.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, objects in enumerate(seen, start=1):
        for thing in objects:
            annotations.append(_annotation(len(annotations) + 1, image_id, thing))
    return {
        "info": {
            "description": f"{DESCRIPTION}: litter drawn by a program in the form of TACO; these are not photographs. "
            f"Seed {config.seed}.",
            "seed": config.seed,
        },
        "licenses": [],
        "categories": [{"supercategory": kind.group, "id": kind.id, "name": kind.name} for kind in KINDS],
        "images": [
            {
                "id": index + 1,
                "width": config.width,
                "height": config.height,
                "file_name": file_name(index),
                "license": None,
            }
            for index in range(len(seen))
        ],
        "annotations": annotations,
    }


def _annotation(number: int, image_id: int, thing: Seen) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": thing.category,
        "segmentation": [list(polygon) for polygon in thing.polygons],
        "area": thing.area,
        "bbox": list(thing.bbox),
        "iscrowd": 0,
    }


def count_classes(seen: Sequence[Sequence[Seen]]) -> dict[str, Any]:
    """Count the objects by litter class.

    Returns:
        `classes` (all six by name, in alphabetical order, also those that are absent) and `unmapped`.
    """
    litter_of = {kind.id: kind.litter for kind in KINDS}
    counts = Counter(litter_of[thing.category] for objects in seen for thing in objects)
    names = sorted({kind.litter for kind in KINDS if kind.litter is not None})
    return {"classes": {name: counts[name] for name in names}, "unmapped": counts[None]}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    rows = [*report["classes"].items(), ("(no class)", report["unmapped"]), ("all", report["annotations"])]
    lines = render_table(["class", ">annotations"], rows)
    size, seconds = human_bytes(report["bytes"]), human_seconds(report["seconds"])
    where = f"{report['photos']:,} rendered pictures (drawings, not photographs) in {report['out']}"
    return f"{lines}\n\n{where} · {size} · {seconds}"


def main() -> None:
    """Run the job from the command line."""
    run_job(SampleConfig, sample, name="augment_cache.sample", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
