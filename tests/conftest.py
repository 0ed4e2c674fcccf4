"""Fixtures that every test may use.

The real photos are not part of the repository: TACOPRESS_DATA names the folder that holds taco/ and trashnet/.
"""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def _data_folder(name: str, evidence: str) -> Path:
    """The folder `name` of the real data, or a skipped test that says what is missing where."""
    given = os.environ.get("TACOPRESS_DATA")
    root = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    folder = root / name
    if not (folder / evidence).exists():
        pytest.skip(
            f"NOT TESTED ON REAL PHOTOS: there is no {folder / evidence}; set TACOPRESS_DATA to the folder of {name}/"
        )
    return folder


@pytest.fixture(scope="session")
def taco_folder() -> Path:
    """TACO photos with their annotations.json."""
    return _data_folder("taco", "annotations.json")


@pytest.fixture(scope="session")
def trashnet_folder() -> Path:
    """TrashNet: one folder of photos per class."""
    return _data_folder("trashnet", "cardboard")
