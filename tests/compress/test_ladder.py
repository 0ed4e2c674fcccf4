"""The ladder: what recipes may say, the climb as pure logic, and one whole ladder on real files."""

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.ladder import LadderConfig, ladder, table, target_macs
from compress.press.contract import NoEffectError
from compress.rungs.climb import best_of, climb, share_of_the_way
from compress.rungs.recipe import Rung, press_config, read_recipe
from pipelines.errors import UsageError
from tests.training.conftest import cache, photos  # noqa: F401 - fixtures
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.model_file import load_model, save_model

NAMES = ("blue", "green", "red")


class TestRecipe:
    def read(self, folder, text):
        path = folder / "recipe.yaml"
        path.write_text(text)
        return read_recipe(path)

    def test_what_rungs_share_and_what_is_their_own(self, tmp_path):
        rungs = self.read(
            tmp_path,
            "recover: shared.yaml\noptions: {schedule.epochs: 3, seed: 1}\nrungs:\n"
            "- {press: layers, count: 2}\n"
            "- {press: channels, recover: null, allow: 0.5}\n"
            "- {press: low_rank, energy: 0.9, recover: own.yaml, recover_options: {seed: 2}}\n",
        )
        assert [str(rung.recover) for rung in rungs] == ["shared.yaml", "None", "own.yaml"]
        assert rungs[2].overrides == {"schedule.epochs": 3, "seed": 2}
        assert [rung.allow for rung in rungs] == [None, 0.5, None]
        assert [rung.free for rung in rungs] == [False, True, False]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[1", "is no YAML"),
            ("rungs: []", "has no rungs"),
            ("rungs: [{press: layers}]\nretry: 3", "unknown key 'retry'"),
            ("rungs: [{press: juice}]", "rung 1: 'juice' is no press; there are layers, channels, low_rank, weights"),
            ("rungs: [{press: layers, out: x}]", "rung 1: out is set by the ladder"),
            ("rungs: [{press: layers, allow: 7}]", "allow 7 must be 0 to 1"),
            ("rungs: [{press: layers, recover_options: 7}]", "a mapping of dotted names"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path, text, message):
        with pytest.raises(UsageError, match=message):
            self.read(tmp_path, text)

    def test_options_of_a_press_are_checked_as_on_its_command_line(self, tmp_path):
        def made(**options):
            rung = Rung(press="channels", options=options)
            return press_config(rung, 2, tmp_path / "m.safetensors", tmp_path / "o.safetensors", tmp_path, macs=None)

        assert made(ratio=0.25, scope="global").scope == "global"
        with pytest.raises(UsageError, match=r"rung 2 \(channels\).*shape"):
            made(ratio=0.25, shape=3)
        with pytest.raises(UsageError, match=r"rung 2 \(channels\).*--ratio"):
            made(ratio=7)

    def test_a_free_rung_gets_its_goal(self, tmp_path):
        places = (tmp_path / "m.safetensors", tmp_path / "o.safetensors", tmp_path)
        assert press_config(Rung(press="layers"), 1, *places, 1000).target_macs == 1000
        found = press_config(Rung(press="low_rank"), 1, *places, 1000)
        assert (found.rank_by, found.target_macs) == ("macs", 1000)
        assert press_config(Rung(press="channels", options={"ratio": 0.5}), 1, *places, 1000).target_macs is None


@pytest.mark.parametrize(("text", "macs"), [("", None), ("macs=1.0e6", 1_000_000), ("macs=250000", 250_000)])
def test_targets(text, macs):
    assert target_macs(text) == macs


@pytest.mark.parametrize("text", ["macs", "macs=", "f1=0.5", "macs=0", "macs=-1", "macs=inf", "macs=nan"])
def test_targets_that_are_none(text):
    with pytest.raises(UsageError, match="is no goal"):
        target_macs(text)


@given(now=st.integers(2, 10**9), share=st.floats(0.01, 1), rungs=st.integers(1, 6))
def test_equal_factors_lead_to_the_goal(now, share, rungs):
    goal = max(1, round(now * share))
    costs = [now]
    for left in range(rungs, 0, -1):
        costs.append(share_of_the_way(costs[-1], goal, left))
    assert costs[-1] == goal
    assert all(after <= before for before, after in pairwise(costs))


class Workshop:
    """Presses that write what they were told; scores by a table; stops where it is told to."""

    def __init__(self, scores, stop_after=10**9):
        self.scores, self.left, self.log = scores, stop_after, []

    def _tick(self, *what):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.log.append(what)

    def press(self, rung, number, model, macs, out):
        self._tick("press", number)
        if self.scores[number] is None:
            raise NoEffectError("nothing to do")
        cost = json.loads(model.read_text())
        out.parent.mkdir(parents=True, exist_ok=True)
        new = {"macs": macs or cost["macs"] // 2, "did": [*cost["did"], number]}
        out.write_text(json.dumps(new))
        return {"press": rung.press}

    def recover(self, rung, pressed, run):
        self._tick("recover", run)
        run.mkdir(exist_ok=True)
        (run / "model").write_text(pressed.read_text())
        return run / "model"

    def evaluate(self, model, folder):
        self._tick("evaluate", folder.name)
        cost = json.loads(model.read_text())
        last = cost["did"][-1] if cost["did"] else 0
        return {"macro_f1": self.scores[last], "macs": cost["macs"]}


def run(work, rungs, workshop, macs=None, allow=0.1):
    work.mkdir(parents=True, exist_ok=True)
    start = work.parent / "start"
    start.write_text(json.dumps({"macs": 1000, "did": []}))
    return climb(start, work, rungs, workshop, allow=allow, macs=macs, belongs={"a": 1})


LAYERS, OTHER = Rung(press="layers"), Rung(press="channels", options={"ratio": 0.5})


def test_a_rung_that_hurts_is_rolled_back_and_the_next_starts_from_before_it(tmp_path):
    workshop = Workshop([0.9, 0.85, 0.7, 0.8])
    climbed = run(tmp_path / "w", [LAYERS, OTHER, OTHER], workshop, macs=500)
    assert [one.verdict for one in climbed] == ["start", "kept", "rolled back", "kept"]
    assert "0.7000 is below 0.7500" in climbed[2].why
    assert json.loads((tmp_path / "w/rung-03/pressed.safetensors").read_text())["did"] == [1, 3]
    assert best_of(climbed).number == 3


def test_a_rung_without_effect_is_passed(tmp_path):
    climbed = run(tmp_path / "w", [LAYERS, OTHER], Workshop([0.9, None, 0.9]), macs=500)
    assert [one.verdict for one in climbed] == ["start", "no effect", "kept"]
    assert climbed[1].evaluation is None
    assert climbed[1].why == "nothing to do"


def test_a_rung_may_allow_more(tmp_path):
    climbed = run(tmp_path / "w", [Rung(press="channels", options={"ratio": 0.5}, allow=0.3)], Workshop([0.9, 0.65]))
    assert climbed[1].verdict == "kept"


def test_free_rungs_share_what_is_left_of_the_way(tmp_path):
    climbed = run(tmp_path / "w", [LAYERS, LAYERS], Workshop([0.9, 0.9, 0.9]), macs=250)
    assert [one.macs for one in climbed] == [1000, 500, 250]
    climbed = run(tmp_path / "v", [LAYERS, LAYERS], Workshop([0.9, 0.1, 0.9]), macs=250)
    assert [one.macs for one in climbed] == [1000, 500, 250]  # the second takes the whole way over


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_stopped_anywhere_it_ends_the_same(data, tmp_path_factory):
    count = data.draw(st.integers(1, 3))
    scores = [0.9, *data.draw(st.lists(st.sampled_from([None, 0.95, 0.85, 0.5]), min_size=count, max_size=count))]
    rungs = data.draw(
        st.lists(
            st.sampled_from([LAYERS, OTHER, Rung(press="layers", recover="r.yaml")]), min_size=count, max_size=count
        )
    )
    folder = tmp_path_factory.mktemp("climb")
    whole = run(folder / "whole" / "w", rungs, once := Workshop(scores), macs=300)
    stop = data.draw(st.integers(0, len(once.log) - 1))
    with pytest.raises(KeyboardInterrupt):
        run(folder / "cut" / "w", rungs, first := Workshop(scores, stop), macs=300)
    second = Workshop(scores)
    resumed = run(folder / "cut" / "w", rungs, second, macs=300)
    told = [{**asdict(one), "model": None} for one in whole]
    assert [{**asdict(one), "model": None} for one in resumed] == told
    assert len(first.log) + len(second.log) <= len(once.log) + 2  # what was finished is not made again


# Once a bug: a folder that had been moved took the models of whatever ladder lay at its old place.
def test_a_folder_that_was_moved_has_its_own_models(tmp_path):
    first = run(tmp_path / "w", [LAYERS, OTHER], Workshop([0.9, 0.9, 0.9]), macs=500)
    (tmp_path / "w").rename(tmp_path / "moved")
    run(tmp_path / "w", [OTHER, OTHER], Workshop([0.9, 0.9, 0.9]))
    (tmp_path / "moved/rung-02/rung.json").unlink()
    workshop = Workshop([0.9, 0.9, 0.9])
    again = run(tmp_path / "moved", [LAYERS, OTHER], workshop, macs=500)
    assert [one.macs for one in again] == [one.macs for one in first]
    assert [one.model for one in again[1:]] == [str(tmp_path / f"moved/rung-0{n}/pressed.safetensors") for n in (1, 2)]
    assert again[0].model == str(tmp_path / "start")
    path = tmp_path / "moved/rung-01/rung.json"  # as it was before names were relative
    old = str(tmp_path / "w/rung-01/pressed.safetensors")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": old}))
    assert run(tmp_path / "moved", [LAYERS, OTHER], workshop, macs=500) == again
    (tmp_path / "moved/rung-01/pressed.safetensors").unlink()
    with pytest.raises(UsageError, match=r"the model .*rung-01/pressed\.safetensors is gone"):
        run(tmp_path / "moved", [LAYERS, OTHER], workshop, macs=500)


# Once a bug: a rung behind a link became the beginning.
def test_a_rung_on_another_disk(tmp_path):
    first = run(tmp_path / "w", [LAYERS, OTHER], Workshop([0.9, 0.9, 0.9]), macs=500)
    (tmp_path / "w/rung-01/rung.json").unlink()
    (tmp_path / "w/rung-01").rename(tmp_path / "disk")
    (tmp_path / "w/rung-01").symlink_to(tmp_path / "disk")
    for _ in range(2):
        assert run(tmp_path / "w", [LAYERS, OTHER], Workshop([0.9, 0.9, 0.9]), macs=500) == first


def test_a_model_outside_of_the_folder_is_refused(tmp_path):
    run(tmp_path / "w", [LAYERS], Workshop([0.9, 0.9]), macs=500)
    path = tmp_path / "w/rung-01/rung.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": "../start"}))
    with pytest.raises(UsageError, match=r"the model .*\.\./start is gone"):
        run(tmp_path / "w", [LAYERS], Workshop([0.9, 0.9]), macs=500)


def test_another_ladder_is_refused(tmp_path):
    run(tmp_path / "w", [LAYERS], Workshop([0.9, 0.9]), macs=500)
    with pytest.raises(UsageError, match=r"begun with other options \(a was 1, now 2\)"):
        climb(tmp_path / "start", tmp_path / "w", [], Workshop([0.9]), allow=0, macs=None, belongs={"a": 2})
    (tmp_path / "w/rung-01/rung.json").write_text("{")
    with pytest.raises(UsageError, match=r"rung.json cannot be read"):
        run(tmp_path / "w", [LAYERS], Workshop([0.9, 0.9]), macs=500)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    name = "mobilenetv3_small_050"
    card = ModelCard(architecture=name, classes=NAMES, size=32, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3)
    save_model(tmp_path / "start.safetensors", create_model(name, 3), card)
    return tmp_path / "start.safetensors"


def write_recipes(folder):
    (folder / "recover.yaml").write_text(
        "data: {path: elsewhere, batch_size: 16, engine: cpu}\ntrackers: ''\n"
        "schedule: {epochs: 1, warmup_epochs: 0}\noptimizer: {lr: 1.0e-3}\n"
    )
    (folder / "ladder.yaml").write_text(
        f"recover: {folder / 'recover.yaml'}\nrungs:\n"
        "- {press: layers, rank_by: weight_std}\n- {press: channels}\n"
        "- {press: weights, sparsity: 0.5, recover: null}\n"
    )
    return folder / "ladder.yaml"


def test_a_whole_ladder(cache, model, tmp_path, capsys):  # noqa: F811
    config = LadderConfig(
        recipe=write_recipes(tmp_path),
        model=model,
        data=cache,
        work=tmp_path / "work",
        target="macs=300000",
        allow=1.0,
        latency_rounds=0,
        test=True,
    )
    report = ladder(config)
    assert [rung["verdict"] for rung in report["rungs"]] == ["start", "kept", "kept", "kept"]
    macs = [rung["macs"] for rung in report["rungs"]]
    assert macs[0] > macs[1] > macs[2] == macs[3] <= 300_000
    assert report["reached"] is True
    assert report["after"]["macs"] == macs[3]
    assert report["rungs"][2]["tested"]["split"] == "test"
    _, card = load_model(tmp_path / "work" / "model.safetensors")
    assert [edit["kind"] for edit in card.edits] == ["remove"] * (len(card.edits) - 2) + ["channels", "sparse"]
    assert (tmp_path / "work" / "ladder.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "work" / "ladder.json").read_text()) == json.loads(json.dumps(report))
    text = table(report)
    assert "3 weights" in text
    assert "test" in text.splitlines()[2]
    before = (tmp_path / "work" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert ladder(config)["rungs"] == report["rungs"]  # nothing is left to do
    assert (tmp_path / "work" / "model.safetensors").read_bytes() == before


def test_a_model_that_knows_the_split_is_refused(cache, model, tmp_path):  # noqa: F811
    network, card = load_model(model)
    for learned in ("train+val", "all"):
        save_model(model, network, replace(card, provenance={"learned_from": learned}))
        with pytest.raises(UsageError, match=r"has learned from the val split"):
            ladder(
                LadderConfig(
                    recipe=write_recipes(tmp_path), model=model, data=cache, work=tmp_path / "w", target="macs=300000"
                )
            )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": ""}, r"rung 1 \(layers\) has no goal"),
        ({"split": "test"}, "would choose by the test"),
        ({"model": Path("nosuch.safetensors")}, "does not exist"),
        ({"recipe": Path("nosuch.yaml")}, "does not exist"),
        ({"allow": 2.0}, "--allow"),
    ],
)
def test_what_is_wrong_shows_before_anything_is_done(cache, model, tmp_path, changes, message):  # noqa: F811
    options = {
        "recipe": write_recipes(tmp_path),
        "model": model,
        "data": cache,
        "work": tmp_path / "work",
        "target": "macs=300000",
    }
    with pytest.raises(UsageError, match=message):
        ladder(LadderConfig(**options | changes))
    assert not (tmp_path / "work").exists()
