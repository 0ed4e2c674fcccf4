"""A real cluster of two nodes for the tests of this folder, where Slurm is installed."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import start
from tests.training.conftest import cache, photos  # noqa: F401 - fixtures
from tests.training.runs import free_port

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
SBIN = "/usr/sbin:/sbin"


def _missing():
    return [name for name in PROGRAMS if not (shutil.which(name) or shutil.which(name, path=SBIN))]


@pytest.fixture(scope="session")
def cluster():
    if missing := _missing():
        pytest.skip(f"NOT TESTED ON A CLUSTER: {', '.join(missing)} not installed (apt-get install slurm-wlm munge)")
    # Not below pytest's folder: the path of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="tacopress-"))
    folder.chmod(0o755)
    running = start(folder, free_port(), sys.prefix)
    yield running
    running.run("slurm/local_cluster.sh", "down")
    assert not running.left()
