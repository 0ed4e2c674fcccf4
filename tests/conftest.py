"""Fixtures that every test may use.

The real photos are not part of the repository: TACOPRESS_DATA names the folder that holds taco/ and trashnet/.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported: threads that spin while they wait take ten times as long where others use the cores, too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# On top of what hypothesis takes for CI: a machine that stalls for a moment is no defect.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

LONGEST = ("tests/slurm/test_cluster.py", "tests/test_road.py")


def pytest_collection_modifyitems(items):
    """Files that take minutes go first: else one process does them alone while the others have nothing left."""
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in LONGEST)


@pytest.fixture
def until_exit(monkeypatch, capsys):
    """Calls what a job starts with, in this process, because a fresh one spends seconds on importing torch.

    Takes it, the job's name, and its words; returns exit status, standard output, standard error.
    """
    terminate = signal.getsignal(signal.SIGTERM)

    def run(start, job: str, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [job, *(str(word) for word in words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            start()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    yield run
    signal.signal(signal.SIGTERM, terminate)


def _data_folder(name: str, evidence: str) -> Path:
    """The folder `name` of the real data, or a skipped test that says what is missing where."""
    given = os.environ.get("TACOPRESS_DATA")
    if not given:
        pytest.skip(f"NOT TESTED ON REAL PHOTOS: set TACOPRESS_DATA to the folder that holds {name}/")
    folder = Path(given) / name
    if not (folder / evidence).exists():
        pytest.skip(f"NOT TESTED ON REAL PHOTOS: there is no {folder / evidence}, where TACOPRESS_DATA points")
    return folder


@pytest.fixture(scope="session")
def taco_folder() -> Path:
    """TACO photos with their annotations.json."""
    return _data_folder("taco", "annotations.json")


@pytest.fixture(scope="session")
def trashnet_folder() -> Path:
    """TrashNet: one folder of photos per class."""
    return _data_folder("trashnet", "cardboard")
