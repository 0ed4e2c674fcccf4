"""The shape of the house: floors, rooms, and the one habit of all jobs."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("pipelines", "augment_cache", "training", "compress")
TOP_LEVEL = {*FLOORS, "slurm", "tests", "pyproject.toml", "README.md", "LICENSE", "Makefile", ".ci", ".gitignore"}
JOBS = sorted(
    f"{floor}.{path.stem}"
    for floor in FLOORS
    for path in (ROOT / floor).glob("*.py")
    if "\ndef main(" in path.read_text(encoding="utf-8")
)


def modules():
    return [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def test_top_level_holds_the_rooms_and_nothing_else():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in tracked.stdout.splitlines()} == TOP_LEVEL


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_lower_floors_never_import_upper_ones(path):
    floor = FLOORS.index(path.relative_to(ROOT).parts[0])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        upper = [name for name in names if name.split(".")[0] in FLOORS[floor + 1 :]]
        assert not upper, f"line {node.lineno}"


def test_no_file_is_longer_than_one_sitting():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_nothing_is_ever_unpickled():
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pickle\.loads?\(|allow_pickle=True", text), path
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, path


def test_the_jobs_are_these():
    """The menu; a job that is renamed or lost breaks somebody's scripts."""
    assert JOBS == [
        "augment_cache.build",
        "augment_cache.crop",
        "augment_cache.export",
        "augment_cache.info",
        "augment_cache.preview",
        "augment_cache.sample",
        "augment_cache.stage",
        "augment_cache.verify",
        "compress.channels",
        "compress.export",
        "compress.ladder",
        "compress.layers",
        "compress.low_rank",
        "compress.weights",
        "pipelines.bench",
        "training.compare",
        "training.distill",
        "training.evaluate",
        "training.latency",
        "training.models",
        "training.predict",
        "training.runs",
        "training.score",
        "training.train",
    ]


@pytest.fixture
def here(monkeypatch, until_exit):
    """Calls a job as `python -m` does; returns exit status, standard output, standard error."""

    def call(job, *words):
        monkeypatch.delitem(sys.modules, job, raising=False)
        return until_exit(lambda: runpy.run_module(job, run_name="__main__", alter_sys=True), job, *words)

    return call


@pytest.mark.parametrize("job", JOBS)
def test_help_teaches_with_an_example(here, job):
    status, shown, _ = here(job, "--help")
    assert status == 0
    assert f"python -m {job}" in shown or f"accelerate launch -m {job}" in shown
    assert "Examples:" in shown
    assert re.search(r"Report \(--json\):\n  \S", shown)
    options = re.findall(r"^  (--[a-z_.]+)", shown, re.MULTILINE)
    assert {"--json", "--config", "--print_config"} <= set(options)
    status, _, said = here(job, "--no_such_option", "1")
    assert status == 2
    assert "no_such_option" in said


def test_recipes_are_complete_and_valid():
    from jsonargparse import Namespace

    from pipelines.console.parser import make_parser, parse
    from training.distillation.options import DistillConfig
    from training.engine.config import TrainConfig

    recipes = sorted((ROOT / "training" / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        kind = DistillConfig if recipe.stem.startswith("distill") else TrainConfig
        parser = make_parser(kind, name="training.train", summary="", example="")
        config, as_json = parse(parser, kind, ["--config", str(recipe)])
        assert isinstance(config, kind)
        assert not as_json
        assert not isinstance(config.data, Namespace)
