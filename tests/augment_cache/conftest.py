"""A small folder of photos in classes, caches built from it, and the jobs of this package as a command line."""

import hashlib
import importlib
import io
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

# `datasets` reads this when it is imported: reading local shards must not need the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CLASSES = {"Glass bottle": 13, "Métal": 15, "Paper": 12}
ORIENTATION_TAG = 0x0112
OPTIONS = {"engine": "cpu", "size": 32, "threads": 2, "shard_mib": 0.01}


def _textured(seed: int) -> np.ndarray:
    """Smooth colours under fine noise, so that no two images and no two halves of an image are alike."""
    draw = np.random.Generator(np.random.Philox(seed))
    height, width = (int(side) for side in draw.integers(9, 150, 2))
    smooth = cv2.resize(
        draw.integers(0, 256, (4, 4, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    return np.clip(smooth + draw.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def _jpeg(seed: int) -> bytes:
    """Mostly colour; every seventh is grey, every fifth lies on its side."""
    image = Image.fromarray(_textured(seed))
    exif = Image.Exif()
    if seed % 5 == 0:
        exif[ORIENTATION_TAG] = 6
    file = io.BytesIO()
    (image.convert("L") if seed % 7 == 0 else image).save(file, "JPEG", quality=92, exif=exif)
    return file.getvalue()


def _fill(root: Path, counts: dict[str, int], seed: int) -> Path:
    for name, count in counts.items():
        for number in range(count):
            # Half of the names repeat in every class: an id made of the file name alone would clash.
            path = root / name / ("deep/er" if number == 3 else "") / f"{number if number % 2 else seed:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_jpeg(seed))
            seed += 1
    return root


@pytest.fixture(scope="session")
def jpeg():
    """Makes the bytes of a JPEG from a seed."""
    return _jpeg


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """40 JPEGs of various sizes in 3 class folders. Not to be changed."""
    return _fill(tmp_path_factory.mktemp("photos"), CLASSES, 100)


@pytest.fixture
def own_photos(photos, tmp_path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(photos, tmp_path / "own_photos"))


@pytest.fixture
def cut_photos(tmp_path) -> Path:
    """A folder as the crop job writes it, train/ val/ test/ with 3 classes each, to be changed."""
    for split, count, seed in (("train", 10, 300), ("val", 3, 400), ("test", 2, 500)):
        _fill(tmp_path / "cut_photos" / split, dict.fromkeys(CLASSES, count), seed)
    return tmp_path / "cut_photos"


@pytest.fixture(scope="session")
def build_cache():
    """Builds a cache with small images and small shards; returns the report."""
    from augment_cache.build import BuildConfig, build

    def run(data: Path, out: Path, **options) -> dict:
        return build(BuildConfig(data=data, out=out, **(OPTIONS | options)))

    return run


@pytest.fixture(scope="session")
def cache(photos, build_cache, tmp_path_factory) -> Path:
    """A jpeg cache of the photos. Not to be changed."""
    out = tmp_path_factory.mktemp("jpeg") / "cache"
    build_cache(photos, out)
    return out


@pytest.fixture(scope="session")
def raw_cache(photos, build_cache, tmp_path_factory) -> Path:
    """A raw cache of the photos. Not to be changed."""
    out = tmp_path_factory.mktemp("raw") / "cache"
    build_cache(photos, out, encoding="raw", shard_mib=0.1)
    return out


@pytest.fixture
def own_cache(cache, tmp_path) -> Path:
    """The jpeg cache, to be damaged."""
    return Path(shutil.copytree(cache, tmp_path / "own_cache"))


@pytest.fixture
def own_raw_cache(raw_cache, tmp_path) -> Path:
    """The raw cache, to be damaged."""
    return Path(shutil.copytree(raw_cache, tmp_path / "own_raw_cache"))


@pytest.fixture(scope="session")
def hashes():
    """SHA-256 of every file under a folder, hidden ones too."""

    def read(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return read


@pytest.fixture
def command(until_exit):
    """Calls a job of this package as the command line does; returns exit status, standard output, standard error."""
    return lambda job, *words: until_exit(importlib.import_module(f"augment_cache.{job}").main, job, *words)
