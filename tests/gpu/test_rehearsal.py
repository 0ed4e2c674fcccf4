"""The whole suite on the CPU, tiny: every section runs, and has what its table needs."""

import json
import os
import subprocess
import sys

import pytest

from tests.gpu.common import ROOT, has_dali
from tests.gpu.suite import SECTIONS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        "TACOPRESS_REHEARSE" not in os.environ, reason="NOT REHEARSED: set TACOPRESS_REHEARSE=1 (4 minutes)"
    ),
]
WITH_DALI = {
    "pixels": "JPEG at 224 px, cached files: mean difference",
    "throughput": "resident 64, two ops",
    "build": "224 px: mean difference of pixels, originals",
}
ALWAYS = {
    "pixels": "batches that differ after resuming in mid-epoch",
    "unit": "tests failed",
    "throughput": "torch-native resident 64, flip + shift (airbench)",
    "training": "mobilenetv3_small_050, 64 px, compiled: resident / constant",
    "recipe": "macro F1 on the test split",
    "processes": "two processes evaluate all samples in the same order",
    "memory": "left behind by each create, iterate, drop: host",
}
"""Section → a figure that is measured last or with difficulty."""
EXACT = (
    "whose rows, labels or ids differ",
    "after resuming in mid-epoch",
    "whose id, label or plan differ",
    "equal to the last bit",
    "in the same order",
    "give another class",
    "tests failed",
)
"""Figures whose goals hold on any machine."""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    out = tmp_path_factory.mktemp("rehearsal")
    environment = {name: value for name, value in os.environ.items() if name != "TACOPRESS_DATA"}
    done = subprocess.run(
        ["bash", str(ROOT / "tests/gpu/run.sh"), str(out), "--minutes", "60"],
        env={**environment, "REHEARSE": "1", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    results = json.loads((out / "results.json").read_text())
    failures = [failure for section in results["sections"] for failure in section.get("failures", [])]
    assert done.returncode == 0, (failures, done.stderr[-3000:])
    return out, results


def test_every_section_has_its_results(rehearsed):
    _, results = rehearsed
    assert [section["name"] for section in results["sections"]] == list(SECTIONS)
    wanted = list(ALWAYS.items()) + (list(WITH_DALI.items()) if has_dali() else [])
    for section in results["sections"]:
        assert (section["state"], section["failures"]) == ("done", [])
        names = [row["what"] for row in section["rows"]]
        assert all(row["measured"] is not None for row in section["rows"])
        assert len(set(names)) == len(names)
        assert {what for name, what in wanted if name == section["name"]} <= set(names)


def test_what_must_be_exact_is(rehearsed):
    _, results = rehearsed
    rows = [row for section in results["sections"] for row in section["rows"]]
    found = [row for row in rows if any(words in row["what"] for words in EXACT)]
    assert len(found) >= len(EXACT) - (0 if has_dali() else 1)
    assert [row for row in found if row["measured"] != row["goal"]] == []


def test_the_folder_holds_three_files_and_the_table_names_every_section(rehearsed):
    out, results = rehearsed
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "results.json", "results.md"]
    text = (out / "results.md").read_text()
    assert "A rehearsal" in text
    assert all(f"## {section['title']}" in text for section in results["sections"])
