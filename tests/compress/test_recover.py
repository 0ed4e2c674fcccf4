"""Recovery by the training engine, and blocks that go one by one with recovery in between."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from augment_cache.format.manifest import file_sha256
from compress.blocks.find import Found, Unit
from compress.blocks.goal import Goal
from compress.blocks.rank import Ranked
from compress.blocks.steps import press_in_steps
from compress.layers import LayersConfig, layers, table
from compress.press.contract import NoEffectError
from compress.press.recover import MARK_NAME, identity_of, read_recipe, recover
from pipelines.errors import UsageError
from tests.training import runs
from tests.training.conftest import cache, photos  # noqa: F401 - fixtures
from training.distillation.options import DistillConfig
from training.engine.config import TrainConfig
from training.engine.preemption import PreemptedError
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.model_file import load_model, read_card, save_model

CARD = ModelCard(
    architecture="mobilenetv3_small_050",
    classes=("blue", "green", "red"),
    size=32,
    fit="pad",
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    provenance={"learned_from": "train"},
)
RECIPE = {
    "data": {"path": "nowhere", "batch_size": 16, "engine": "cpu"},
    "model": {"name": "resnet18", "weights": "never.pth"},
    "optimizer": {"lr": 2e-3},
    "schedule": {"epochs": 2, "warmup_epochs": 0.5},
    "out": "nowhere/either",
    "trackers": "",
}

# -------------------------------------------------------------------------------------------------------- recovery


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    save_model(tmp_path / "model.safetensors", create_model("mobilenetv3_small_050", 3), CARD)
    return tmp_path / "model.safetensors"


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path / "recipe.yaml"


def test_a_recipe_becomes_options(model, recipe, tmp_path, cache):  # noqa: F811
    config, job = read_recipe(recipe, model, tmp_path / "run", {"data.path": cache, "seed": 7})
    assert type(config) is TrainConfig
    assert job.__module__ == "training.train"
    assert (config.model.name, config.model.weights, config.out) == (str(model), None, tmp_path / "run")
    assert (config.data.path, config.data.size, config.seed, config.schedule.epochs) == (cache, 32, 7, 2)
    recipe.write_text(yaml.safe_dump(RECIPE | {"method": {"name": "kd"}, "teacher": {"paths": "a"}, "overwrite": True}))
    config, job = read_recipe(recipe, model, tmp_path / "run", {"data.path": cache, "teacher.paths": "b"})
    assert type(config) is DistillConfig
    assert job.__module__ == "training.distill"
    assert (config.teacher.paths, config.overwrite, config.resume) == ("b", False, "auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; give a recipe"),
        ("[1, 2]", "holds no options"),
        ("a: [", "is no YAML"),
        ("nosuch: 1", "options are those of python -m training.train"),
        ("data: {path: x, batch_size: 0}", "--data.batch_size must be above 0"),
        ("data: {path: x, size: 64}", "trains at 64 px, the model takes 32"),
        ("data: {path: x, folds: 3}", "asks for cross-validation"),
    ],
)
def test_recipes_that_are_none(model, recipe, tmp_path, text, message):
    recipe.unlink() if text is None else recipe.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_recipe(recipe, model, tmp_path / "run", {})


def test_it_trains_the_pressed_model_once(model, recipe, tmp_path, cache, monkeypatch):  # noqa: F811
    out, options = tmp_path / "run", {"data.path": cache}
    found = recover(model, recipe, out, options)
    assert found == out / "best.safetensors"
    card = read_card(found)
    assert (card.architecture, card.classes, card.size) == ("mobilenetv3_small_050", CARD.classes, 32)
    assert not runs.same(runs.weights(found), runs.weights(model))
    assert json.loads((out / MARK_NAME).read_text())["finished"]
    monkeypatch.setattr("compress.press.recover.train", lambda _: pytest.fail("trained again"))
    assert recover(model, recipe, out, options) == found
    with pytest.raises(UsageError, match=r"with other options .seed was 0, now 3"):
        recover(model, recipe, out, options | {"seed": 3})
    torch.manual_seed(1)
    save_model(model, create_model("mobilenetv3_small_050", 3), CARD)
    with pytest.raises(UsageError, match="holds the recovery of another model"):
        recover(model, recipe, out, options)


def test_a_folder_of_something_else_is_left_alone(model, recipe, tmp_path, cache):  # noqa: F811
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds no recovery"):
        recover(model, recipe, tmp_path / "run", {"data.path": cache})


def test_a_signal_passes_through_and_the_same_call_goes_on(model, recipe, tmp_path, cache, monkeypatch):  # noqa: F811
    options = {"data.path": cache}
    whole = recover(model, recipe, tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        runs.stop_at(patch, 4)
        with pytest.raises(PreemptedError) as stopped:
            recover(model, recipe, tmp_path / "run", options)
    assert stopped.value.exit_status == 75
    assert "finished" not in json.loads((tmp_path / "run" / MARK_NAME).read_text())
    assert runs.same(runs.weights(recover(model, recipe, tmp_path / "run", options)), runs.weights(whole))


# ----------------------------------------------------------------------------------------------------- steps, stubbed


class Killed(BaseException):
    """The power goes."""


class Stub:
    """Models are files that name what is gone; macro F1 is 1 minus the harm of what is gone. Dies at a given call."""

    def __init__(self, harms, dies_at=None):
        self.harms, self.dies_at, self.calls, self.recovered = harms, dies_at, 0, []

    def _tick(self):
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed

    def gone(self, model):
        return json.loads(model.read_text())

    def rank(self, model, units):
        self._tick()
        taken = len(self.gone(model))  # what comes first changes with what is gone
        order = sorted(units, key=lambda unit: (self.harms[unit] * (-1) ** taken, unit))
        return [Ranked(unit, float(place)) for place, unit in enumerate(order)]

    def press(self, model, unit, out):
        self._tick()
        out.write_text(json.dumps([*self.gone(model), unit]))
        self._tick()

    def recover(self, pressed, run):
        self._tick()
        run.mkdir(exist_ok=True)
        (run / "best").write_text(pressed.read_text())
        self.recovered.append(self.gone(pressed))
        self._tick()
        return run / "best"

    def score(self, model):
        self._tick()
        return 1 - sum(self.harms[unit] for unit in self.gone(model))


def ten(count):
    """Blocks of 10 MACs each in a network of 1000."""
    units = {f"u{n}": Unit(path=f"u{n}", type_name="Block", macs=10) for n in range(count)}
    return Found(units=units, skipped={}, macs=1000)


def go(root, stub, goal, allow=0.25, rerank=True):
    start = root / "start"
    start.write_text("[]")
    belongs = {"allow": allow, "rerank": rerank}
    found = ten(len(stub.harms))
    return press_in_steps(start, root / "work", found, goal, stub, allow=allow, rerank=rerank, belongs=belongs)


HARMS = st.lists(st.sampled_from([-0.125, 0.0, 0.0625, 0.125, 0.25, 0.5]), min_size=1, max_size=6)
GOALS = st.one_of(
    st.integers(1, 6).map(lambda n: Goal(count=n)),
    st.integers(900, 999).map(lambda n: Goal(macs=n)),
    st.sets(st.integers(0, 5), min_size=1).map(lambda s: Goal(units=tuple(f"u{n}" for n in sorted(s)))),
)


@given(harms=HARMS, goal=GOALS, rerank=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_steps_keep_what_they_promise_and_go_on_from_anywhere(harms, goal, rerank, data):
    harms = {f"u{n}": harm for n, harm in enumerate(harms)}
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        stub = Stub(harms)
        outcome = go(Path(one), stub, goal, rerank=rerank)
        tried = [step.unit for step in outcome.steps]
        assert len(set(tried)) == len(tried)
        harm = 0.0
        for step in outcome.steps:  # each is kept or put back by the floor alone
            after = 1 - harm - harms[step.unit]
            assert step.macro_f1 == after
            assert step.kept == (after >= 0.75)
            harm += harms[step.unit] if step.kept else 0.0
        assert outcome.after == 1 - harm >= 0.75
        assert stub.gone(outcome.model) == outcome.removed
        macs = 1000 - 10 * len(outcome.removed)
        met = goal.units is None and goal.reached(len(outcome.removed), macs)
        candidates = goal.candidates(ten(len(harms)).units)
        assert outcome.reached == (met or goal.units is not None)
        if not met:
            assert sorted(tried) == sorted(candidates)  # no target: all are tried
        if outcome.steps and met:  # no step too many
            assert outcome.steps[-1].kept
        # Killed again and again at any point: the same steps, and no recovery of a finished step is repeated.
        runs_, killed = [], data.draw(st.integers(1, stub.calls + 1))
        while True:
            mortal = Stub(harms, killed)
            runs_.append(mortal)
            try:
                again = go(Path(two), mortal, goal, rerank=rerank)
                break
            except Killed:
                killed = data.draw(st.integers(3, 9)) if len(runs_) < 6 else None
        assert [asdict(step) for step in again.steps] == [asdict(step) for step in outcome.steps]
        assert again.ranking == outcome.ranking
        assert again.model.read_text() == outcome.model.read_text()
        finished = go(Path(two), Stub(harms, dies_at=1), goal, rerank=rerank)  # nothing is left to do
        assert finished == again


def test_a_lower_target_goes_further_in_the_same_folder(tmp_path):
    harms = dict.fromkeys(("u0", "u1", "u2"), 0.0)
    assert go(tmp_path, Stub(harms), Goal(count=1)).removed == ["u0"]
    more = Stub(harms)
    assert go(tmp_path, more, Goal(count=3)).removed == ["u0", "u1", "u2"]
    assert len(more.recovered) == 2


def test_a_loss_of_exactly_what_is_allowed_is_allowed(tmp_path):
    assert go(tmp_path, Stub({"u0": 0.1, "u1": 0.2, "u2": 0.3}), Goal(count=3), allow=0.6).reached


def test_folders_of_something_else(tmp_path):
    stub = Stub({"u0": 0.0})
    go(tmp_path, stub, Goal(count=1))
    with pytest.raises(UsageError, match=r"begun with other options .allow was 0.25, now 0.5"):
        go(tmp_path, stub, Goal(count=1), allow=0.5)
    begun = tmp_path / "work" / "step-01" / "begun.json"
    begun.write_text(begun.read_text().replace('"u0"', '"u7"'))
    with pytest.raises(UsageError, match="speaks of u7, which is no candidate"):
        go(tmp_path, stub, Goal(count=1))
    begun.write_text("{")
    with pytest.raises(UsageError, match=r"begun.json cannot be read .*; delete"):
        go(tmp_path, stub, Goal(count=1))
    begun.write_text("{}")
    with pytest.raises(UsageError, match=r"begun.json is damaged"):
        go(tmp_path, stub, Goal(count=1))
    (tmp_path / "work" / "plan.json").unlink()
    with pytest.raises(UsageError, match="holds steps, but no plan"):
        go(tmp_path, stub, Goal(count=1))


# ----------------------------------------------------------------------------------------------------- steps, for real


@pytest.fixture
def options(model, recipe, tmp_path, cache):  # noqa: F811
    return LayersConfig(
        model=model,
        out=tmp_path / "thin.safetensors",
        data=cache,
        engine="cpu",
        recover=recipe,
        work=tmp_path / "work",
        allow=1.0,
        count=1,
    )


def test_from_a_model_to_a_thinner_one_that_has_recovered(options, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # stopped in the middle of the recovery
        runs.stop_at(patch, 4)
        with pytest.raises(PreemptedError):
            layers(options)
    report = layers(options)
    (step,) = report["steps"]
    assert step["kept"]
    assert report["reached"]
    assert report["removed"] == [step["unit"]] == [row["unit"] for row in report["ranking"]][:1]
    assert report["macro_f1"]["after"] == step["macro_f1"]
    assert report["after"]["macs"] == step["macs"] < report["before"]["macs"]
    assert report["proof"]["error"] <= 1e-5
    assert "kept" in table(report)
    card = read_card(options.out)
    assert [edit["module"] for edit in card.edits] == report["removed"]
    assert [told["press"] for told in card.provenance["presses"]] == ["layers"]
    assert card.provenance["weights"] is None  # of the recovery
    assert runs.same(runs.weights(options.out), runs.weights(options.work / step["model"]))
    again = layers(replace(options, out=tmp_path / "again.safetensors"))
    assert again["steps"] == report["steps"]
    assert runs.same(load_model(tmp_path / "again.safetensors")[0].state_dict(), runs.weights(options.out))


def test_where_everything_is_put_back_there_is_no_model(options, monkeypatch):
    scores = iter([0.9, *[0.1] * 50])
    monkeypatch.setattr("compress.blocks.recovery.Workshop.score", lambda *_: next(scores))
    monkeypatch.setattr("compress.blocks.recovery.Workshop.recover", lambda _, pressed, run: pressed)
    with pytest.raises(NoEffectError, match=r"without any of \d blocks macro F1 falls by more than --allow"):
        layers(replace(options, allow=0.01, rank_by="weight_std"))
    assert not options.out.exists()


def test_a_wrong_recipe_shows_before_anything_is_done(options):
    options.recover.write_text("nosuch: 1")
    with pytest.raises(UsageError, match=r"options are those of python -m training\.train"):
        layers(options)
    options.recover.write_text(yaml.safe_dump(RECIPE | {"data": RECIPE["data"] | {"train_on": "train+val"}}))
    with pytest.raises(UsageError, match="learns from the val split, on which macro F1 is measured"):
        layers(options)
    assert not options.work.exists()


# Once a bug: a folder was told from another by its path alone, and a ladder went on with half of the photos.
def test_data_that_changes_is_other_data(cache, photos, tmp_path):  # noqa: F811
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    shutil.copytree(data, tmp_path / "moved")
    work = data / "work"

    def identity(folder):
        return identity_of(folder, work)

    first = identity(data)
    assert identity(tmp_path / "moved") == first
    assert identity(cache) == file_sha256(cache / "manifest.json") != first
    work.mkdir()
    (work / "ladder.png").write_bytes(b"x")
    assert identity(data) == first
    for split in ("train", "test"):
        (tmp_path / "linked" / split).parent.mkdir(exist_ok=True)
        (tmp_path / "linked" / split).symlink_to(data)
    assert identity(tmp_path / "linked") != first
    (data / "annotations.json").write_text("{}", encoding="utf-8")
    annotated = identity(data)
    next(data.rglob("*.jpg")).unlink()
    assert len({first, annotated, identity(data)}) == 3
