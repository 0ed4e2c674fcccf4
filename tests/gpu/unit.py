"""The unit tests that need a GPU, in a process of their own."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.gpu.common import ROOT, Record, Setting, tail


def run(setting: Setting, record: Record) -> None:
    """Run pytest and note what came of each test."""
    results = setting.work / "junit.xml"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    words += sorted(str(file) for file in Path(__file__).parent.glob("test_*_gpu.py"))
    environment = {**os.environ, **({"REHEARSE": "1"} if setting.rehearsal else {})}
    done = subprocess.run([*words, f"--junitxml={results}"], cwd=ROOT, capture_output=True, text=True, env=environment)
    sys.stderr.write(done.stdout + done.stderr)
    counts = dict(ElementTree.parse(results).getroot().find("testsuite").attrib)  # type: ignore[union-attr]
    failed = int(counts["failures"]) + int(counts["errors"])
    skipped = int(counts["skipped"])
    passed = int(counts["tests"]) - failed - skipped
    record.row("tests passed", passed, "", note=f"{skipped} skipped")
    record.row("tests failed", failed, "", goal=0, at_most=True)
    if failed or done.returncode not in (0, 5):
        record.value["failures"].append(
            {"name": "pytest", "message": f"exit status {done.returncode}", "tail": tail(done.stdout + done.stderr)}
        )
