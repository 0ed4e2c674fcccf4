"""The whole road on real photos: what `make demo DATA=…` does, with a short training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def job(*words):
    done = subprocess.run([sys.executable, "-m", *map(str, words), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def road(crops, out, epochs):
    cache, run = out / "cache", out / "run"
    built = job("augment_cache.build", "--data", crops, "--out", cache, "--size", 48)
    recipe = ROOT / "training" / "recipes" / "quick.yaml"
    options = ["--config", recipe, "--data.path", cache, "--data.size", 48, "--out", run]
    job("training.train", *options, "--schedule.epochs", epochs, "--schedule.warmup_epochs", 0.5)
    return built, job("training.evaluate", "--model", run, "--data", cache)


@pytest.mark.slow
@pytest.mark.real
def test_taco(taco_folder, tmp_path):
    crops = job("augment_cache.crop", "--data", taco_folder, "--out", tmp_path / "crops")
    built, result = road(tmp_path / "crops", tmp_path, 3)
    assert built["splits"]["train"]["rows"] == 3 * built["splits"]["train"]["samples"]
    assert sum(split["samples"] for split in built["splits"].values()) == crops["crops"]
    assert built["rejected"] == 0
    assert result["samples"] == built["splits"]["test"]["samples"]
    assert result["macro_f1"] > 0.086  # what always saying Plastic would get


@pytest.mark.slow
@pytest.mark.real
def test_trashnet(trashnet_folder, tmp_path):
    built, result = road(trashnet_folder, tmp_path, 3)
    assert sum(split["samples"] for split in built["splits"].values()) == 2527
    assert result["macro_f1"] > 0.2


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("words", "recipe", "out"), [([], "demo", "out/demo"), (["DATA=/a/taco/"], "quick", "out/taco")]
)
def test_make_demo_names_a_recipe_that_exists(words, recipe, out):
    show = "$(info RECIPE=$(RECIPE) OUT=$(OUT))"
    command = ["make", "-n", "-f", "Makefile", "-f", "-", "demo", *words]
    shown = subprocess.run(command, cwd=ROOT, input=show, capture_output=True, text=True).stdout
    assert f"RECIPE={recipe} OUT={out}\n" in shown
    assert (ROOT / "training" / "recipes" / f"{recipe}.yaml").is_file()


def test_make_refuses_an_unknown_dali():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "-n", "test", "DALI=cuda99"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "none of cuda110, cuda130, none" in done.stderr
