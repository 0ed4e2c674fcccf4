"""The score job: presets, numbers from options and from evaluations, intervals, what is left out."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pipelines.console.parser import make_parser, parse
from pipelines.errors import UsageError
from training.engine.metrics import Scores
from training.measure.bootstrap import bootstrap_macro_f1
from training.score import ScoreConfig, score, table

CONFUSION = np.array([[30, 10, 10], [12, 30, 8], [9, 14, 27]], np.int64)
"""Macro F1 of 0.58."""
P4_PRESETS = ["p4-2021", "p4-2021-seed", "p4-2021-teams"]


def evaluation(folder, confusion=CONFUSION, name="evaluation_test.json", **changes):
    classes = tuple("abcdefghi"[: len(confusion)])
    report = {**Scores(confusion).as_dict(classes), "competition_macs": 1_083_210, "seconds": 12.5} | changes
    report = {key: value for key, value in report.items() if value is not None}
    path = folder / name
    path.write_text(json.dumps(report))
    return path


def totals(report):
    return {entry["preset"]: entry["total"] for entry in report["scores"]}


class TestPresets:
    @pytest.mark.parametrize("config", [ScoreConfig(), ScoreConfig(list=True)])
    def test_are_shown_without_anything_to_score(self, config):
        report = score(config)
        assert report["kind"] == "presets"
        assert [preset["name"] for preset in report["presets"]] == ["level3-2021", *P4_PRESETS]
        assert report["presets"][1]["constants"] == {
            "macs_ref": 13_863_553, "f1_ref": 0.8366, "cliff": 0.5, "cliff_term": 1.0, "slope_above": 0.5,
        }  # fmt: skip
        shown = table(report)
        for text in ("level3-2021 (f1_time)", "macs_ref 13,863,553", "seconds_ref 43.157", "best joint fit"):
            assert text in shown
        assert max(map(len, shown.splitlines())) <= 120

    def test_some(self):
        report = score(ScoreConfig(list=True, preset="level3-2021, p4-2021"))
        assert [preset["name"] for preset in report["presets"]] == ["level3-2021", "p4-2021"]


class TestNumbers:
    def test_all_presets_that_the_numbers_allow(self):
        report = score(ScoreConfig(f1=0.6149, macs=1_083_210))
        assert list(totals(report)) == P4_PRESETS
        assert totals(report)["p4-2021"] == pytest.approx(0.3431, abs=1e-4)
        assert [entry["preset"] for entry in report["left_out"]] == ["level3-2021"]
        assert "--seconds" in report["left_out"][0]["needs"]
        assert [entry["low"] for entry in report["scores"]] == [None] * 3
        shown = table(report)
        assert "left out: level3-2021 needs the seconds" in shown
        assert "1,083,210 MACs" in shown
        assert max(map(len, shown.splitlines())) <= 120

    def test_time(self):
        report = score(ScoreConfig(f1=0.7, seconds=60.0))
        assert totals(report) == {"level3-2021": pytest.approx(1.195, abs=3e-4)}
        assert [entry["preset"] for entry in report["left_out"]] == P4_PRESETS
        assert list(totals(score(ScoreConfig(f1=0.7, seconds=60.0, macs=10)))) == ["level3-2021", *P4_PRESETS]

    def test_smooth(self):
        official, smooth = (score(ScoreConfig(f1=0.4, macs=10, smooth=smooth)) for smooth in (False, True))
        assert totals(official)["p4-2021"] == pytest.approx(1.0, abs=1e-5)
        assert totals(smooth)["p4-2021"] == pytest.approx(1 - 0.4 / 0.8366, abs=1e-5)
        assert "smooth variant" in table(smooth)
        assert "smooth variant" not in table(official)

    def test_own_preset(self, tmp_path):
        path = tmp_path / "own.yaml"
        path.write_text("kind: f1_time\nsource: mine\nseconds_ref: 10\nf1_ref: 0.5\nsteepness: 20\nweight: 1\n")
        report = score(ScoreConfig(preset=f"{path},level3-2021", f1=0.5, seconds=20.0))
        assert totals(report)[str(path)] == 2.5
        assert score(ScoreConfig(preset=(str(path),), f1=0.5, seconds=20.0))["scores"][0]["total"] == 2.5

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"f1": 0.6}, "no score can be computed: level3-2021 needs the seconds.*p4-2021 needs MACs"),
            ({"f1": 0.6, "macs": 5, "preset": "level3-2021"}, "preset level3-2021 needs the seconds.*--seconds"),
            ({"f1": 0.6, "seconds": 5, "preset": "p4-2021"}, "preset p4-2021 needs MACs.*--macs"),
            ({"f1": 0.6, "preset": "p4"}, "no preset 'p4'"),
            ({"f1": 0.6, "preset": ","}, "--preset names none"),
            ({"f1": 61.4, "macs": 5}, "macro F1 must be from 0 to 1"),
            ({"f1": 0.6, "macs": 0}, "MACs must be more than 0"),
            ({"macs": 5}, "a score needs macro F1"),
            ({"preset": "p4-2021"}, "a score needs macro F1"),
            ({"smooth": True}, "a score needs macro F1"),
            ({"f1": 0.6, "evaluation": "x"}, "--f1 and --evaluation"),
            ({"resamples": 99}, "--resamples must be"),
            ({"seed": -1}, "--seed must be"),
            ({"confidence": 95.0}, "--confidence must lie"),
        ],
    )
    def test_wrong_use(self, options, message):
        with pytest.raises(UsageError, match=message):
            score(ScoreConfig(**options))


class TestEvaluation:
    def test_interval(self, tmp_path):
        path = evaluation(tmp_path)
        report = score(ScoreConfig(evaluation=path, preset="p4-2021"))
        f1 = bootstrap_macro_f1(CONFUSION)
        assert (report["f1"], report["f1_low"], report["f1_high"]) == (f1.estimate, f1.low, f1.high)
        (entry,) = report["scores"]
        # Above the cliff the score is a falling line of F1, so its ends are those of F1.
        assert entry["low"] == pytest.approx(entry["cost_term"] + 1 - f1.high / 0.8366)
        assert entry["low"] < entry["total"] < entry["high"]
        shown = table(report)
        assert "95 % intervals" in shown
        assert f"{f1.low:.4f} to {f1.high:.4f}" in shown
        assert score(ScoreConfig(evaluation=path, preset="p4-2021")) == report
        assert score(ScoreConfig(evaluation=tmp_path, preset="p4-2021"))["scores"] == report["scores"]
        assert score(ScoreConfig(evaluation=path, preset="p4-2021", seed=1))["scores"] != report["scores"]
        narrow = score(ScoreConfig(evaluation=path, preset="p4-2021", confidence=0.5))
        assert entry["low"] < narrow["scores"][0]["low"]

    def test_cliff(self, tmp_path):
        near = score(ScoreConfig(evaluation=evaluation(tmp_path), preset="p4-2021"))
        assert 0.01 < near["scores"][0]["below_cliff"] < 0.2
        (note,) = near["notes"]
        assert "below 0.5" in note
        assert note in table(near)
        assert near["scores"][0]["high"] > 1
        smooth = score(ScoreConfig(evaluation=evaluation(tmp_path), preset="p4-2021", smooth=True))["scores"][0]
        assert near["scores"][0]["low"] == smooth["low"] < smooth["total"] < smooth["high"] < 0.7
        far = score(ScoreConfig(evaluation=evaluation(tmp_path, CONFUSION * 50), preset="p4-2021"))
        assert (far["scores"][0]["below_cliff"], far["notes"]) == (0, [])

    def test_the_seconds_of_an_evaluation_are_no_program_time(self, tmp_path):
        with pytest.raises(UsageError, match="level3-2021 needs the seconds"):
            score(ScoreConfig(evaluation=evaluation(tmp_path), preset="level3-2021"))

    def test_seconds_from_the_record_of_predict(self, tmp_path):
        record = tmp_path / "p.timing.json"
        record.write_text('{"timing": {"all": 12.5, "start_up": 1}}')
        report = score(ScoreConfig(evaluation=evaluation(tmp_path), preset="level3-2021", timing=record))
        assert report["seconds"] == 12.5
        assert report == score(ScoreConfig(evaluation=tmp_path, preset="level3-2021", seconds=12.5)) | {
            "evaluation": report["evaluation"]
        }

    @pytest.mark.parametrize("text", [None, "[]", "{", "{}", '{"timing": 3}', '{"timing": {"all": "x"}}'])
    def test_records_that_are_none(self, tmp_path, text):
        record = tmp_path / "p.timing.json"
        if text is not None:
            record.write_text(text)
        with pytest.raises(UsageError, match=r"p\.timing\.json"):
            score(ScoreConfig(f1=0.6, timing=record))

    def test_seconds_are_given_once(self, tmp_path):
        with pytest.raises(UsageError, match="--timing"):
            ScoreConfig(f1=0.6, seconds=3.0, timing=tmp_path / "p.timing.json")

    def test_options_win(self, tmp_path):
        report = score(ScoreConfig(evaluation=evaluation(tmp_path), macs=5, preset="p4-2021"))
        assert report["macs"] == 5

    def test_an_old_file_has_no_competition_macs(self, tmp_path):
        path = evaluation(tmp_path, competition_macs=None, macs=937_830)
        report = score(ScoreConfig(evaluation=path, seconds=12.5))
        assert list(totals(report)) == ["level3-2021"]
        assert [entry["preset"] for entry in report["left_out"]] == P4_PRESETS
        with pytest.raises(UsageError, match="p4-2021 needs MACs by the competition's convention"):
            score(ScoreConfig(evaluation=path, preset="p4-2021"))

    def test_without_a_confusion_matrix(self, tmp_path):
        report = score(ScoreConfig(evaluation=evaluation(tmp_path, confusion_=1), preset="p4-2021"))
        assert report["f1_low"] is not None
        path = tmp_path / "plain.json"
        path.write_text(json.dumps({"macro_f1": 0.6149, "competition_macs": 1_083_210}))
        plain = score(ScoreConfig(evaluation=path, preset="p4-2021"))
        assert plain["f1_low"] is None
        assert totals(plain)["p4-2021"] == pytest.approx(0.3431, abs=1e-4)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[", "is no JSON"),
            ("[]", "holds no report"),
            ("{}", "macro_f1 must be a number from 0 to 1"),
            ('{"macro_f1": 61.4}', "macro_f1 must be a number from 0 to 1"),
            ('{"macro_f1": "0.6"}', "macro_f1 must be a number"),
            ('{"macro_f1": NaN}', "macro_f1 must be a number"),
            ('{"macro_f1": 0.6, "competition_macs": "many"}', "competition_macs must be a number"),
            ('{"macro_f1": 0.6, "competition_macs": true}', "competition_macs must be a number"),
            ('{"macro_f1": 0.6, "competition_macs": 1' + "0" * 400 + "}", "competition_macs must be a number"),
            ('{"macro_f1": 0.6, "confusion": [[1, 2]]}', "confusion must be a square matrix"),
            ('{"macro_f1": 0.6, "confusion": [[1, -2], [3, 4]]}', "confusion must be a square matrix"),
            ('{"macro_f1": 0.6, "confusion": 7}', "confusion must be a square matrix"),
            ('{"macro_f1": 0.6, "confusion": [[1, 0], [0, 1]]}', "its confusion matrix gives 1.000000"),
        ],
    )
    def test_damaged_files(self, tmp_path, text, message):
        path = tmp_path / "evaluation_test.json"
        path.write_text(text)
        with pytest.raises(UsageError, match=message) as caught:
            score(ScoreConfig(evaluation=path))
        assert str(path) in str(caught.value)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            score(ScoreConfig(evaluation=tmp_path))


@pytest.mark.parametrize(
    ("words", "preset"),
    [
        (["--preset", "p4-2021"], "p4-2021"),
        (["--preset", "[p4-2021, level3-2021]"], ("p4-2021", "level3-2021")),
        ([], None),
    ],
)
def test_preset_on_the_command_line(words, preset):
    parser = make_parser(ScoreConfig, name="training.score", summary="", example="")
    config, _ = parse(parser, ScoreConfig, [*words, "--f1", "0.5", "--list"])
    assert config.preset == preset
    assert config.list is True


def test_command():
    run = [sys.executable, "-m", "training.score"]
    done = subprocess.run(
        [*run, "--f1", "0.4892", "--macs", "1862490", "--preset", "p4-2021", "--json"], capture_output=True, check=True
    )
    assert json.loads(done.stdout)["scores"][0]["total"] == pytest.approx(1.1343, abs=1e-4)
    wrong = subprocess.run([*run, "--f1", "0.5", "--preset", "p4-2012"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "did you mean p4-2021" in wrong.stderr
