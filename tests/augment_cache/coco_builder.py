"""A tiny COCO data set, built entry by entry, with photos that tell where each pixel came from."""

import csv
import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from augment_cache.crop import CropConfig
from pipelines.decode import turn_upright

CATEGORIES = {1: "Drink can", 2: "Normal paper", 3: "Cigarette"}
MAP = "classes:\n  Metal: [Drink can]\n  Paper: [Normal paper]\n"
BACK = {6: 8, 8: 6}


def coordinates(width, height):
    """A photo whose red is 2 x column and whose green is 2 x row, so that a crop shows where it was cut."""
    photo = np.zeros((height, width, 3), dtype=np.uint8)
    photo[:, :, 0] = 2 * np.arange(width)[None, :]
    photo[:, :, 1] = 2 * np.arange(height)[:, None]
    photo[:, :, 2] = 40
    return photo


def save_photo(path: Path, upright, orientation=1):
    """Save as JPEG the way a camera does: turned, with a note how to turn it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.ascontiguousarray(turn_upright(upright, BACK.get(orientation, orientation)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, quality=97, subsampling=0, exif=exif)


class CocoBuilder:
    """Collects images and annotations; `write` puts them on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "data"
        self.images = []
        self.annotations = []
        self.folder.mkdir()
        self.map = folder / "own.yaml"
        self.map.write_text(MAP, encoding="utf-8")

    def photo(self, image_id, name=None, size=(100, 80), orientation=1, **entry):
        name = name or f"batch_1/{image_id:06d}.jpg"
        if size == (100, 80):
            save_photo(self.folder / name, coordinates(*size), orientation)
        else:
            save_photo(self.folder / name, np.full((size[1], size[0], 3), 90, dtype=np.uint8), orientation)
        return self.image(image_id, name, size, **entry)

    def image(self, image_id, name, size=(100, 80), **entry):
        self.images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1], **entry})
        return self

    def box(self, annotation_id, image_id, category_id=1, bbox=(10, 10, 30, 30), **entry):
        self.annotations.append(
            {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), **entry}
        )
        return self

    def write(self):
        categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
        value = {"images": self.images, "annotations": self.annotations, "categories": categories}
        (self.folder / "annotations.json").write_text(json.dumps(value), encoding="utf-8")
        return self


def usable(folder: Path, photos=8) -> CocoBuilder:
    """Photos with one can and one sheet of paper each, ids from 1000 up."""
    builder = CocoBuilder(folder)
    for number in range(1000, 1000 + photos):
        builder.photo(number, kind="synthetic")
        builder.box(2 * number, number, 1).box(2 * number + 1, number, 2, (50, 20, 20, 40))
    return builder


def damage(builder):
    """Add photo 1 with box 1, and cut the photo's file short."""
    builder.photo(1)
    path = builder.folder / builder.images[-1]["file_name"]
    path.write_bytes(path.read_bytes()[:-900])
    builder.box(1, 1)


def config(builder, **options):
    base = CropConfig(data=builder.folder, out=builder.folder.parent / "crops", map=str(builder.map), min_side=8)
    return dataclasses.replace(base, **options)


def table_of(out):
    return json.loads((Path(out) / "crops.json").read_text(encoding="utf-8"))


def rejected_of(out):
    with (Path(out) / "rejected.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_books(builder, report):
    """Each annotation is a crop or a row, files and tables agree, and no photo is in two splits."""
    table, rows = table_of(report["out"]), rejected_of(report["out"])
    assert len(table["crops"]) + len(rows) == len(builder.annotations)
    crop_ids = [row["annotation_id"] for row in table["crops"]]
    assert crop_ids == sorted(set(crop_ids))
    on_disk = {name for name in bytes_of(Path(report["out"])) if name.endswith(".jpg")}
    assert on_disk == {row["file"] for row in table["crops"]}
    assert Counter(row["reason"] for row in rows) == report["rejected"] == table["rejected"]
    assert report["crops"] == len(on_disk) == sum(sum(counts.values()) for counts in report["counts"].values())
    homes = {}
    for row in table["crops"]:
        assert row["file"] == f"{row['split']}/{row['class']}/a{row['annotation_id']:06d}.jpg"
        assert homes.setdefault(row["photo"], row["split"]) == row["split"]
    assert report["photos"] == len(homes)
    return table, rows
