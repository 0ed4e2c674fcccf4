"""A real cluster of two nodes for the tests of this folder, where Slurm is installed."""

import random
import shutil
import socket
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.slurm.cluster import start
from tests.training.conftest import cache, photos  # noqa: F401 - fixtures

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


def free_port():
    """The first of three in a row that nobody listens on; below those that systems give to clients."""
    for first in random.sample(range(15_000, 32_000, 3), 100):
        with suppress(OSError), ExitStack() as sockets:
            for port in range(first, first + 3):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")
