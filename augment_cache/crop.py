"""Cut annotated objects out of their photos: COCO boxes to JPEG crops, split by photo, every box accounted for.

Each annotation becomes either a crop or a row of `rejected.csv`, never both and never neither. The crops folder is
`{train,val,test}/CLASS/aANNOTATION.jpg`, `crops.json` and `rejected.csv`, and appears under its name only when it is
complete. Nothing in it depends on the number of threads, on the order of the annotations file or on where it lies.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from augment_cache.annotations.class_map import ClassMap, class_of_category, load_class_map, move_categories
from augment_cache.annotations.coco import CocoFile, Fault, read_coco
from augment_cache.annotations.cutter import Cut, by_photo, crop_name, cut_photo
from augment_cache.annotations.listing import Crop, count_crops, count_reasons, count_unmapped, crops_table, in_order
from augment_cache.annotations.screen import REASONS, Candidate, Rejection, Rules, screen
from augment_cache.annotations.window import Shape
from pipelines.console.cores import usable_cores
from pipelines.console.files import refuse_others, whole_folder, write_csv, write_json
from pipelines.console.job import run_job
from pipelines.console.output import human_bytes, human_seconds, render_table
from pipelines.console.progress import ProgressMeter
from pipelines.errors import UsageError
from pipelines.sources import SPLITS
from pipelines.splits import stratified_split

TABLE_FILE = "crops.json"
REJECTED_FILE = "rejected.csv"
EXAMPLE = """
  python -m augment_cache.crop --data photos/taco --out out/crops
  python -m augment_cache.crop --data photos/taco --move "Paper cup=Paper" --move "Aerosol=drop" --min_side 32
  python -m augment_cache.crop --data photos/taco --map taco9 --allow_empty_classes true --overwrite true
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Cut annotated objects out of their photos.

    Args:
        data: Folder with the photos, at the paths that the annotations file gives them.
        annotations: COCO annotations file; DATA/annotations.json when absent.
        out: Folder for the crops.
        map: Which category becomes which class: taco6, taco9, or the path of a YAML map of your own.
        move: CATEGORY=CLASS puts one category into another class, CATEGORY=drop into none. Can be given several times.
        min_side: Boxes whose shorter side, clipped to the photo, is below this many px are rejected.
        margin: What a crop shows around its box: share of the box's longer side, added in total.
        shape: square (longer side x (1 + margin), shifted to stay inside the photo) or tight (the box with its margin).
        quality: JPEG quality of the crops, 1 to 100; colour is kept in full resolution.
        val: Share of the crops for validation.
        test: Share of the crops for testing. The rest is for training. A photo's crops all go to the same split.
        seed: Another seed gives another split.
        threads: Photos decoded at the same time; 0 takes every core. Does not change the result.
        overwrite: Replace a crops folder that is there already.
        allow_empty_classes: Go on when a class of the map has no crop at all.
    """

    data: Path
    annotations: Path | None = None
    out: Path = Path("out/crops")
    map: str = "taco6"
    move: tuple[str, ...] = ()
    min_side: float = 24.0
    margin: float = 0.1
    shape: Shape = "square"
    quality: int = 95
    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    threads: int = 0
    overwrite: bool = False
    allow_empty_classes: bool = False

    @property
    def annotations_file(self) -> Path:
        """The annotations file that is read."""
        return self.annotations or self.data / "annotations.json"

    @property
    def fractions(self) -> dict[str, float]:
        """Share of each split, in the order of the splits."""
        return {"train": round(1 - self.val - self.test, 12), "val": self.val, "test": self.test}


def crop(config: CropConfig) -> dict[str, Any]:
    """Cut the crops.

    Returns:
        `out`: the folder. `classes`: class names, sorted. `counts`: split -> class -> crops. `photos`: photos with a
        crop. `crops`: number of crops. `rejected`: reason -> annotations; the reasons are those of
        `augment_cache.annotations.screen.REASONS`. `unmapped`: category -> annotations that no class takes (they are
        part of `rejected`). `bytes`: size of all crops. `seconds`: wall time.

    Raises:
        UsageError: An option, the map, the annotations file or the data folder cannot be right, a class gets no crop,
            or the output folder is in the way.
    """
    start = time.monotonic()
    _check_options(config)
    coco = read_coco(config.annotations_file)
    class_map = move_categories(load_class_map(config.map), config.move, coco.categories)
    rules = Rules(min_side=config.min_side, shape=config.shape, margin=config.margin)
    candidates, rejections = screen(coco, class_of_category(class_map, coco.categories), config.data, rules)
    _check_classes(config, class_map, candidates, rejections)
    with whole_folder(config.out, overwrite=config.overwrite) as folder:
        cuts = _cut_all(config, candidates, folder)
        sizes = {cut.candidate.annotation.annotation_id: cut.result for cut in cuts if isinstance(cut.result, int)}
        accepted = [candidate for candidate in candidates if candidate.annotation.annotation_id in sizes]
        rejections += [cut.candidate.rejected(cut.result) for cut in cuts if isinstance(cut.result, Fault)]
        _check_classes(config, class_map, accepted, rejections)
        crops = _into_splits(config, class_map, accepted, folder)
        _write_lists(config, coco, class_map, crops, rejections, folder)
    classes = sorted(class_map.classes)
    return {
        "out": str(config.out),
        "classes": classes,
        "counts": count_crops(crops, config.fractions, classes),
        "photos": len({candidate.photo.name for candidate in accepted}),
        "crops": len(crops),
        "rejected": count_reasons(rejections),
        "unmapped": count_unmapped(rejections),
        "bytes": sum(sizes.values()),
        "seconds": round(time.monotonic() - start, 3),
    }


def _check_options(config: CropConfig) -> None:
    if not (math.isfinite(config.min_side) and config.min_side >= 1):
        raise UsageError(f"--min_side {config.min_side} is not a number of px from 1 up; the default is 24")
    if not (math.isfinite(config.margin) and 0 <= config.margin <= 10):
        raise UsageError(f"--margin {config.margin} is not a share from 0 to 10; the default is 0.1")
    if not 1 <= config.quality <= 100:
        raise UsageError(f"--quality {config.quality} is not a JPEG quality from 1 to 100; the default is 95")
    if config.threads < 0:
        raise UsageError(f"--threads {config.threads} is below 0; give 0 for every core")
    if not all(share > 0 for share in config.fractions.values()):  # NaN is not above 0 either
        raise UsageError(
            f"--val {config.val} and --test {config.test} must each be above 0 and leave something for training; "
            "the defaults are 0.15"
        )
    if not config.data.is_dir():
        raise UsageError(f"--data {config.data} is not a folder; give the one that holds the photos")
    _check_out(config)


def _check_out(config: CropConfig) -> None:
    """`--overwrite true` deletes what is there, so what is there has to be crops."""
    out = config.out.resolve()
    for source in (config.data.resolve(), config.annotations_file.resolve()):
        if out == source or out in source.parents:
            raise UsageError(f"--out {config.out} holds {source}, which must not be replaced; choose another --out")
    if not (config.overwrite and out.is_dir() and any(out.iterdir())):
        return
    if not (out / TABLE_FILE).is_file():
        raise UsageError(
            f"--out {config.out} is no crops folder (no {TABLE_FILE}), so it is kept; choose another --out"
        )
    refuse_others(out, {TABLE_FILE, REJECTED_FILE, *SPLITS})


def _check_classes(
    config: CropConfig, class_map: ClassMap, candidates: Sequence[Candidate], rejections: Sequence[Rejection]
) -> None:
    empty = sorted(class_map.classes.keys() - {candidate.label for candidate in candidates})
    if not candidates:
        found = ", ".join(f"{count:,} {reason}" for reason, count in count_reasons(rejections).items())
        raise UsageError(f"no crop can be cut from {config.annotations_file} ({found}); lower --min_side or mend it")
    if empty and not config.allow_empty_classes:
        raise UsageError(
            f"no crop for {'class' if len(empty) == 1 else 'the classes'} {', '.join(empty)} of --map {config.map}; "
            f"choose another --map, lower --min_side (now {config.min_side:g}), or give --allow_empty_classes true"
        )


def _cut_all(config: CropConfig, candidates: Sequence[Candidate], folder: Path) -> list[Cut]:
    """Cut every photo's crops straight into the folder; they are moved to their splits when all are known."""
    photos = by_photo(candidates)
    cuts: list[Cut] = []
    with (
        ProgressMeter("crop", len(photos), "photos") as meter,
        ThreadPoolExecutor(config.threads or usable_cores()) as pool,
    ):
        try:
            for result in pool.map(lambda photo: cut_photo(photo, folder, config.quality), photos):
                cuts += result
                meter.advance()
        except BaseException:  # Ctrl-C too: do not work through the queue before stopping
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return cuts


def _into_splits(config: CropConfig, class_map: ClassMap, accepted: Sequence[Candidate], folder: Path) -> list[Crop]:
    classes = sorted(class_map.classes)
    labels = np.array([classes.index(candidate.label) for candidate in accepted], dtype=np.int64)
    names = list(config.fractions)
    photos = [candidate.photo.name for candidate in accepted]
    splits = stratified_split(photos, labels, config.fractions, config.seed)
    crops = [Crop(candidate, names[split]) for candidate, split in zip(accepted, splits, strict=True)]
    for name in names:
        for class_name in classes:  # empty ones too: folder-per-class readers then number the classes alike everywhere
            (folder / name / class_name).mkdir(parents=True)
    for item in crops:
        (folder / crop_name(item.candidate.annotation.annotation_id)).rename(folder / item.file)
    return crops


def _write_lists(
    config: CropConfig,
    coco: CocoFile,
    class_map: ClassMap,
    crops: Sequence[Crop],
    rejections: Sequence[Rejection],
    folder: Path,
) -> None:
    numbers = {"min_side": float(config.min_side), "margin": float(config.margin)}  # 24 and 24.0 are the same option
    table = crops_table(
        crops,
        rejections,
        annotations={"file": config.annotations_file.name, "sha256": coco.sha256},
        class_map=class_map,
        options={**numbers, "shape": config.shape, "quality": config.quality, "move": list(config.move)},
        split={"seed": config.seed, "fractions": config.fractions, "unit": "photo"},
    )
    write_csv(folder / REJECTED_FILE, Rejection._fields, in_order(rejections))
    write_json(folder / TABLE_FILE, table)


def render(report: dict[str, Any]) -> str:
    """The report for people: crops per class and split, then what was left out and why."""
    splits = list(report["counts"])
    rows = [[name, *(report["counts"][split][name] for split in splits)] for name in report["classes"]]
    rows.append(["all", *(sum(report["counts"][split].values()) for split in splits)])
    parts = [
        render_table(["class", *(f">{split}" for split in splits), ">all"], [[*row, sum(row[1:])] for row in rows]),
        render_table(
            ["left out because", ">annotations", "meaning"],
            [[reason, count, REASONS[reason]] for reason, count in report["rejected"].items()],
        ),
    ]
    if report["unmapped"]:
        parts.append("unmapped: " + ", ".join(f"{name} {count:,}" for name, count in report["unmapped"].items()))
    parts.append(
        f"{report['crops']:,} crops from {report['photos']:,} photos, {human_bytes(report['bytes'])}, "
        f"in {human_seconds(report['seconds'])} → {report['out']}"
    )
    return "\n\n".join(parts)


def gather_moves(argv: Sequence[str]) -> list[str]:
    """Turn `--move A=B --move C=D` into the one list that the option parser takes.

    A value that is a JSON list already is taken apart; anything else is left for the job to judge.
    """
    rest: list[str] = []
    moves: list[Any] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--move":
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        try:
            listed = json.loads(value)
        except ValueError:
            listed = value
        moves += listed if isinstance(listed, list) else [value]
    return [*rest, "--move", json.dumps(moves)] if moves else rest


def main() -> None:
    """Run the job from the command line."""
    run_job(
        CropConfig,
        crop,
        name="augment_cache.crop",
        summary=(__doc__ or "").strip(),
        example=EXAMPLE,
        table=render,
        argv=gather_moves(sys.argv[1:]),
    )


if __name__ == "__main__":
    main()
