"""A disk that can be full: a file system of a few KiB in memory."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest


@contextmanager
def small_disk(folder, kibibytes):
    """A file system of a few KiB in memory.

    Yields:
        Changes its size.
    """
    folder.mkdir(parents=True)
    size = f"size={kibibytes}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "drill", folder], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"NOT DRILLED, DISK FULL: cannot mount a tmpfs here ({mounted.stderr.decode().strip()})")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def as_root(request):
    """Runs the test once more in a user namespace of its own where this user may mount nothing; returns whether here.

    There, one is root, and what is mounted is seen by nobody else.
    """
    if os.geteuid() == 0:
        return True
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "drill", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("NOT DRILLED, DISK FULL: needs root, or user namespaces (unshare -rm)")
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid],
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    return False
