"""The channels job: goals, files that load anywhere, what is refused, rounds with recovery."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compress.channel_map.removal import Goal, Ranking, remove_channels, taylor_gradients
from compress.channel_map.rounds import press_in_rounds, shares
from compress.channels import ChannelsConfig, channels, table
from compress.press.contract import NoEffectError, ProofError, Subject
from compress.press.samples import load_samples
from pipelines.errors import TacopressError, UsageError
from tests.compress.nets import with_random_statistics
from tests.training.conftest import cache, photos  # noqa: F401 - fixtures
from training.measure.macs import count_macs
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.model_file import load_model, save_model

NAMES = ("blue", "green", "red")


def card(name, size=64, classes=NAMES):
    return ModelCard(architecture=name, classes=classes, size=size, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def file(tmp_path):
    """A model file of the seed network."""
    torch.manual_seed(0)
    save_model(
        tmp_path / "whole.safetensors",
        with_random_statistics(create_model("shufflenet_g3_wd4", 3)),
        card("shufflenet_g3_wd4"),
    )
    return tmp_path / "whole.safetensors"


def test_a_share_of_the_macs(file, tmp_path):
    report = channels(ChannelsConfig(model=file, out=tmp_path / "thin.safetensors", target_share=0.64))
    before, after = report["before"], report["after"]
    assert 0.6 * before["macs"] < after["macs"] <= 0.64 * before["macs"]
    assert after["parameters"] < before["parameters"]
    assert report["proof"]["claim"] == "pruned == masked"
    assert report["proof"]["error"] < 1e-5
    assert report["changed"]["features.stage1.unit2.compress_conv1"].startswith("15 → ")
    assert report["skipped"]["output"] == "its outputs stay: they are the answers, one a class"
    assert "pruned == masked" in table(report)
    model, new = load_model(tmp_path / "thin.safetensors")
    assert count_macs(model, 64).macs == after["macs"]
    assert [edit["kind"] for edit in new.edits] == ["channels"]
    assert new.provenance["presses"][0]["press"] == "channels"


# Once a bug: a part of a division held channels that cannot go, which nobody had scored.
def test_a_division_with_channels_that_stay(tmp_path):
    torch.manual_seed(0)
    name = "efficientvit_m0"
    save_model(tmp_path / "whole.safetensors", create_model(name, 3), replace(card(name), size=224))
    report = channels(
        ChannelsConfig(model=tmp_path / "whole.safetensors", out=tmp_path / "thin.safetensors", ratio=0.3)
    )
    assert report["after"]["macs"] < report["before"]["macs"]
    assert report["proof"]["error"] < 1e-9


@pytest.mark.parametrize("goal", [{"ratio": 0.4}, {"target_macs": 600_000}])
def test_the_same_twice_is_the_same_file(file, tmp_path, goal):
    for name in ("one", "two"):
        channels(ChannelsConfig(model=file, out=tmp_path / f"{name}.safetensors", importance="random", **goal))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_a_fresh_process_gets_the_same_answers(file, tmp_path):
    out = tmp_path / "thin.safetensors"
    channels(ChannelsConfig(model=file, out=out, ratio=0.3))
    channels(ChannelsConfig(model=out, out=tmp_path / "thinner.safetensors", ratio=0.3, scope="global"))
    code = (
        "import sys, torch; from pathlib import Path; from training.model.model_file import load_model;"
        "m = load_model(Path(sys.argv[1]))[0]; x = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64);"
        "torch.set_num_threads(1); torch.save(m(x).detach(), sys.argv[2])"
    )
    torch.set_num_threads(1)
    for name in ("thin", "thinner"):
        model, _ = load_model(tmp_path / f"{name}.safetensors")
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / f"{name}.safetensors", tmp_path / "answers.pt"], check=True
        )
        images = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
        assert torch.equal(model(images), torch.load(tmp_path / "answers.pt", weights_only=True))


def test_protected_layers_keep_their_outputs(file, tmp_path):
    config = ChannelsConfig(
        model=file, out=tmp_path / "thin.safetensors", ratio=0.5, protect="features.stage1.*, output"
    )
    report = channels(config)
    assert report["skipped"]["features.stage1.unit2.compress_conv1"] == "its outputs stay: --protect features.stage1.*"
    assert not any(path.startswith("features.stage1") for path in report["changed"])


def test_multiples(tmp_path):
    save_model(tmp_path / "m.safetensors", with_random_statistics(create_model("resnet18", 3)), card("resnet18", 32))
    report = channels(
        ChannelsConfig(model=tmp_path / "m.safetensors", out=tmp_path / "o.safetensors", ratio=0.3, round_to=8)
    )
    assert all(int(text.split()[2]) % 8 == 0 for text in report["changed"].values())


def test_latency_goes_down_to_the_share(tmp_path, monkeypatch):
    """With a stopwatch that tells MACs: the search itself, without noise."""
    subject = Subject(
        model=with_random_statistics(create_model("mobilenetv3_small_050", 3)),
        card=card("mobilenetv3_small_050"),
        path=tmp_path / "m",
    )
    from compress.channel_map import removal
    from compress.channel_map.choose import ChoiceOptions

    def macs(_, chooser, __):
        whole = chooser.channels.macs(chooser.keep(0.0))
        return lambda kept: chooser.channels.macs(kept) / whole

    monkeypatch.setattr(removal, "_stopwatch", macs)
    pressed = remove_channels(subject, Goal(latency=0.5), Ranking(name="magnitude"), ChoiceOptions())
    assert 0.4 < count_macs(pressed.model, 64).macs / count_macs(subject.model, 64).macs <= 0.5
    with pytest.raises(UsageError, match=r"does not get down to 0\.001"):
        remove_channels(subject, Goal(latency=0.001), Ranking(name="magnitude"), ChoiceOptions())


def test_the_stopwatch_tells_only_ratios_that_can_be_trusted(tmp_path, monkeypatch):
    from compress.channel_map import removal
    from compress.channel_map.choose import ChoiceOptions, Chooser
    from compress.channel_map.importance import importance
    from compress.channel_map.trace import map_channels

    subject = Subject(
        model=with_random_statistics(create_model("shufflenet_g3_wd4", 3)),
        card=card("shufflenet_g3_wd4"),
        path=tmp_path / "m",
    )
    found = map_channels(subject.model, 64)
    chooser = Chooser(found, importance("magnitude", subject.model, found), ChoiceOptions())
    told = SimpleNamespace(ratio_median=0.5, ratio_low=0.1, ratio_high=3.0, ratio_trusted=True)
    monkeypatch.setattr(removal, "measure_latency", lambda runtimes, **_: [None, told])
    measured = removal._stopwatch(subject, chooser, tmp_path)
    assert measured(chooser.keep(0.5)) == 0.5  # both networks were exported, proven, and run by onnxruntime
    told.ratio_trusted = False
    monkeypatch.setattr(removal, "export_onnx", lambda *_: None)
    with pytest.raises(TacopressError, match=r"too busy.*between 0\.10 and 3\.00"):
        measured(chooser.keep(0.5))


def test_taylor_is_the_change_of_the_loss(cache):  # noqa: F811
    """First order: making all weights a little smaller changes the loss by the sum of gradient times change."""
    model = with_random_statistics(create_model("mobilenetv3_small_050", 3)).double()
    samples = load_samples(cache, card("mobilenetv3_small_050", 32), "train")

    class OneBatch:
        def __len__(self):
            return len(samples)

        def batches(self, _size=0):
            return ((images.double(), labels) for images, labels in samples.batches(10**6))

    def loss():
        with torch.no_grad():
            return sum(
                float(nn.functional.cross_entropy(model(images), labels, reduction="sum"))
                for images, labels in OneBatch().batches()
            ) / len(samples)

    (gradients,) = taylor_gradients(model, OneBatch())
    path, before = "blocks.2.0.conv_pw.weight", loss()
    weight = model.get_parameter(path)
    with torch.no_grad():
        weight -= 1e-4 * weight
    assert loss() - before == pytest.approx(-1e-4 * (gradients[path] * weight).sum().item(), rel=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of --ratio"),
        ({"ratio": 0.5, "target_macs": 5}, "give one of --ratio"),
        ({"ratio": 1.5}, "--ratio"),
        ({"ratio": 0.5, "round_to": 0}, "--round_to"),
        ({"ratio": 0.5, "importance": "taylor"}, "--importance taylor looks at images"),
        ({"ratio": 0.5, "rounds": 3}, "--rounds is for --recover"),
        ({"ratio": 0.5, "work": "x"}, "--recover and --work belong together"),
        ({"ratio": 0.5, "rounds": 3, "round_to": 8, "recover": "r", "work": "w", "data": "d"}, "would be rounded"),
        ({"target_latency": 0.5, "rounds": 2, "recover": "r", "work": "w"}, "one round"),
    ],
)
def test_wrong_use(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        ChannelsConfig(model=tmp_path / "m.safetensors", out=tmp_path / "o.safetensors", **options)


def test_what_cannot_be_done(file, tmp_path):
    out = tmp_path / "o.safetensors"
    with pytest.raises(UsageError, match=r"cannot be cut to 100 MACs: [0-9,]+ stay with --least 0\.1"):
        channels(ChannelsConfig(model=file, out=out, target_macs=100))
    with pytest.raises(NoEffectError, match="no more than the target"):
        channels(ChannelsConfig(model=file, out=out, target_macs=10**9))
    with pytest.raises(NoEffectError, match="changes nothing"):
        channels(ChannelsConfig(model=file, out=out, ratio=0.0))
    with pytest.raises(UsageError, match="--protect nosuch fits no layer"):
        channels(ChannelsConfig(model=file, out=out, ratio=0.5, protect="nosuch"))
    with pytest.raises(UsageError, match="is the model that is pressed"):
        channels(ChannelsConfig(model=file, out=file, ratio=0.5))
    with pytest.raises(UsageError, match="does not exist"):
        channels(ChannelsConfig(model=tmp_path / "nosuch.safetensors", out=out, ratio=0.5))
    assert not out.exists()


def test_an_architecture_of_which_nothing_can_be_cut_says_why(tmp_path):
    name = "resnetv2_50x1_bit"  # its convolutions standardise their weights over inputs
    save_model(tmp_path / "m.safetensors", create_model(name, 3), card(name, 32))
    with pytest.raises(NoEffectError, match=rf"{name}\).*there is no rule"):
        channels(ChannelsConfig(model=tmp_path / "m.safetensors", out=tmp_path / "o.safetensors", ratio=0.5))


def test_a_network_that_proves_wrong_writes_nothing(file, tmp_path, monkeypatch):
    from compress.channel_map import cutting

    monkeypatch.setattr(cutting, "_still_right", lambda module, order: True)  # leave the shuffles as they are
    with pytest.raises(ProofError, match=r"shufflenet_g3_wd4|does not run"):
        channels(ChannelsConfig(model=file, out=tmp_path / "o.safetensors", ratio=0.5))
    assert not (tmp_path / "o.safetensors").exists()


def test_a_damaged_edit_is_refused(file, tmp_path):
    out = tmp_path / "thin.safetensors"
    channels(ChannelsConfig(model=file, out=out, ratio=0.3))
    model, new = load_model(out)
    edit = json.loads(json.dumps(new.edits[0]))
    edit["masks"] = [f"{text.partition(':')[0]}:ff" for text in edit["masks"]]
    save_model(out, model, ModelCard(**new.__dict__ | {"edits": (edit,)}))
    with pytest.raises(UsageError, match="its edit 'channels' does not fit the model"):
        load_model(out)


def test_rounds_with_recovery_end_in_one_report(cache, tmp_path):  # noqa: F811
    """End to end: cut, train, cut, train; the same command again has nothing left to do."""
    torch.manual_seed(0)
    save_model(tmp_path / "m.safetensors", create_model("mobilenetv3_small_050", 3), card("mobilenetv3_small_050", 32))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {batch_size: 16, engine: cpu, path: elsewhere}\nschedule: {epochs: 1, warmup_epochs: 0}\n"
        "optimizer: {lr: 1.0e-3}\ntrackers: ''\n"
    )
    options = {"target_share": 0.5, "rounds": 2, "recover": recipe, "work": tmp_path / "work", "data": cache}
    config = ChannelsConfig(model=tmp_path / "m.safetensors", out=tmp_path / "o.safetensors", **options)
    report = channels(config)
    assert 0.45 < report["after"]["macs"] / report["before"]["macs"] <= 0.5
    assert report["rounds"] == 2
    assert set(report["macro_f1"]) == {"split", "before", "after"}
    _, new = load_model(tmp_path / "o.safetensors")
    assert [edit["kind"] for edit in new.edits] == ["channels", "channels"]
    first = (tmp_path / "o.safetensors").read_bytes()
    trained = (tmp_path / "work" / "round-02" / "run" / "metrics.jsonl").stat().st_mtime_ns
    again = channels(config)
    assert again["after"] == report["after"]
    assert (tmp_path / "o.safetensors").read_bytes() == first
    assert (tmp_path / "work" / "round-02" / "run" / "metrics.jsonl").stat().st_mtime_ns == trained


class TestRounds:
    def test_shares_are_equal_factors(self):
        assert shares(0.64, 2) == pytest.approx([0.8, 0.64])
        assert shares(0.3, 1) == [0.3]

    def run(self, work, log, stop_at=None, **more):
        def press(model, number, out):
            if stop_at == ("press", number):
                raise KeyboardInterrupt
            log.append(("press", model.read_text(), number))
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(model.read_text() + f" p{number}")

        def recover(pressed, folder):
            number = int(pressed.parent.name[-2:]) - 1
            if stop_at == ("recover", number):
                raise KeyboardInterrupt
            done = folder / "model"
            if not done.is_file():
                folder.mkdir()
                done.write_text(pressed.read_text() + f" r{number}")
                log.append(("recover", number))
            return done

        start = work.parent / "start"
        start.write_text("s")
        return press_in_rounds(start, work, 3, press=press, recover=recover, belongs={"ratio": 0.5} | more)

    @pytest.mark.parametrize("part", ["press", "recover"])
    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_stopped_anywhere_it_goes_on(self, tmp_path, part, number):
        log = []
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path / "work", log, stop_at=(part, number))
        assert self.run(tmp_path / "work", log).read_text() == "s p0 r0 p1 r1 p2 r2"
        assert len(log) == 6  # nothing twice

    def test_a_round_with_nothing_to_do_is_passed(self, tmp_path):
        """The one before took more than it had to, because groups or multiples wanted it so."""
        start = tmp_path / "start"
        start.write_text("s")
        log = []

        def press(model, number, out):
            log.append(number)
            if number in self.idle:
                raise NoEffectError("no more than the target")
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(model.read_text() + f" p{number}")

        def go():
            recover = lambda pressed, run: pressed  # noqa: E731
            return press_in_rounds(start, tmp_path / "w", 3, press=press, recover=recover, belongs={})

        self.idle = (1,)
        assert go().read_text() == "s p0 p2"
        assert go().read_text() == "s p0 p2"
        assert log == [0, 1, 2]
        shutil.rmtree(tmp_path / "w")
        self.idle = (0, 1, 2)
        with pytest.raises(NoEffectError, match="no round changes anything"):
            go()

    def test_another_command_is_refused(self, tmp_path):
        self.run(tmp_path / "work", [])
        with pytest.raises(UsageError, match=r"ratio was 0.5, now 0.6"):
            self.run(tmp_path / "work", [], ratio=0.6)
        (tmp_path / "work" / "plan.json").unlink()
        with pytest.raises(UsageError, match="holds work, but no plan"):
            self.run(tmp_path / "work", [])
