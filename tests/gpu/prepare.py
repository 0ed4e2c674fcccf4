"""The images: real ones where TACOPRESS_DATA names them, else rendered; cropped, and built into the caches of all."""

import json
import os
import time
from pathlib import Path

from augment_cache.build import BuildConfig, build
from augment_cache.crop import CropConfig, crop
from augment_cache.export import ExportConfig, export
from augment_cache.sample import SampleConfig, sample
from pipelines.sources import SPLITS
from tests.benchmarks.rivals.pool import list_images
from tests.gpu.common import Record, Setting

CACHES = {"raw64": (64, "raw"), "jpeg64": (64, "jpeg"), "jpeg224": (224, "jpeg"), "jpeg96": (96, "jpeg")}
"""Name → side in px, encoding. Each holds the originals and two copies: three times the data."""
COPIES = 2
PHOTOS = 64
"""As many whole photos are kept for comparing decoders."""


def run(setting: Setting, record: Record) -> None:
    """Make everything that other sections read, below `setting.work`."""
    photos, crops, what = images(setting)
    record.fact(images=what)
    (setting.work / "data.txt").write_text(str(crops), encoding="utf-8")
    chosen = list_images(photos)
    step = max(1, len(chosen) // PHOTOS)
    (setting.work / "photos.json").write_text(json.dumps(chosen[::step][:PHOTOS]), encoding="utf-8")
    made = []
    for name, (size, encoding) in CACHES.items():
        config = BuildConfig(
            data=crops,
            out=setting.cache(name),
            size=setting.px(size),
            encoding="raw" if encoding == "raw" else "jpeg",
            copies=COPIES,
            engine="cpu",
            device="cpu",
            allow_empty_classes=True,
            force=True,
        )
        report = build(config)
        rows = [report["splits"][split]["rows"] for split in SPLITS]
        made.append([name, config.size, *rows, report["bytes"] / 1e6, report["seconds"]])
        record.table("Caches: originals and two copies", ["cache", "px", *SPLITS, "MB", "seconds"], made)
    for name in ("jpeg64", "jpeg224"):  # what torchvision's ImageFolder reads
        export(ExportConfig(cache=setting.cache(name), out=files_of(setting, name), split="train", overwrite=True))


def files_of(setting: Setting, name: str) -> Path:
    """The train split of a cache as a folder of class folders of files."""
    return setting.work / "files" / name


def images(setting: Setting) -> tuple[Path, Path, str]:
    """(folder of photos, folder of crops or of class folders, what they are)."""
    given = Path(os.environ.get("TACOPRESS_DATA") or "nowhere")
    crops = setting.work / "crops"
    if not setting.rehearsal and (given / "taco" / "annotations.json").is_file():
        return given / "taco", cropped(given / "taco", crops), "TACO, real photos"
    if not setting.rehearsal and (given / "trashnet").is_dir():
        return given / "trashnet", given / "trashnet", "TrashNet, real photos"
    photos, began = setting.work / "photos", time.time()
    width, height = setting.pick((640, 480), (320, 240))
    sample(SampleConfig(out=photos, photos=setting.pick(900, 40), width=width, height=height, overwrite=True))
    seconds = time.time() - began
    return photos, cropped(photos, crops), f"the rendered sample (drawings, no photos), made in {seconds:.1f} s"


def cropped(photos: Path, crops: Path) -> Path:
    """Cut the objects out."""
    crop(CropConfig(data=photos, out=crops, allow_empty_classes=True, overwrite=True))
    return crops
