"""The plan's golden values under the other major version of numpy, in an environment of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
OTHER = "numpy==1.26.4" if np.__version__.startswith("2.") else "numpy>=2,<3"


@pytest.mark.slow
def test_golden_values_under_the_other_numpy(tmp_path):
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    installed = subprocess.run([python, "-m", "pip", "install", "--quiet", OTHER], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"{OTHER} cannot be installed here: {installed.stderr[-200:]}")
    check = subprocess.run(
        [python, "-m", "tests.pipelines.golden_plan", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert check.returncode == 0, check.stdout + check.stderr
    version = check.stdout.split()[1].rstrip(":")
    assert version.split(".")[0] != np.__version__.split(".")[0]
