"""The evaluate job beyond its scores, ONNX files in it, and the comparison of two evaluations."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.errors import UsageError
from training.compare import CompareConfig, compare
from training.compare import table as compare_table
from training.evaluate import EvaluateConfig, evaluate
from training.measure.bootstrap import bootstrap_macro_f1, paired_bootstrap
from training.measure.competition_macs import count_competition_macs
from training.measure.evaluation_table import table
from training.measure.latency import Timings, summarize
from training.measure.macs import UncountableError
from training.measure.predictions import read_predictions, write_predictions
from training.measure.score import load_preset, score
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.model_file import save_model
from training.model.onnx_file import export_onnx

CLASSES = ("blue", "green", "red")


def make_model(folder, name="test_efficientnet", seed=0):
    """A network that tells classes apart by nothing but luck, in a run folder."""
    torch.manual_seed(seed)
    model = create_model(name, 3).eval()
    torch.nn.init.normal_(model.classifier.weight, std=50.0)
    card = ModelCard(architecture=name, classes=CLASSES, size=32, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3)
    save_model(folder / "best.safetensors", model, card)
    return model, card


def options(model, cache, **changes):
    return EvaluateConfig(model=model, data=cache, split="train", engine="cpu", **{"latency_rounds": 0, **changes})


@pytest.fixture(scope="module")
def evaluated(cache, tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluated")
    model, card = make_model(root / "one")
    make_model(root / "two", seed=1)
    export_onnx(root / "one" / "model.onnx", model, card)
    reports = {name: evaluate(options(root / name, cache, seconds=30.0)) for name in ("one", "two")}
    return root, model, reports


def test_intervals_scores_and_costs_are_those_of_their_modules(evaluated):
    _, model, reports = evaluated
    report = reports["one"]
    interval = bootstrap_macro_f1(np.array(report["confusion"]))
    assert (report["macro_f1_low"], report["macro_f1_high"]) == (interval.low, interval.high)
    assert interval.low < report["macro_f1"] < interval.high
    assert report["competition_macs"] == count_competition_macs(model, 32).macs > report["macs"]
    totals = {entry["preset"]: entry["total"] for entry in report["scores"]}
    expected = score(load_preset("p4-2021"), report["macro_f1"], macs=report["competition_macs"]).total
    assert totals == {
        "p4-2021": expected,
        "level3-2021": score(load_preset("level3-2021"), report["macro_f1"], seconds=30.0).total,
    }
    assert any("macro F1 may lie below 0.5" in note for note in report["notes"])
    assert {finding["rule"] for finding in report["rules"]} >= {"macs_seen", "one_pass"}
    assert report["loss"] == report["calibration"]["nll"]
    text = table(report)
    assert "95 %" in text
    assert "p4-2021" in text


def test_a_score_that_lacks_its_number_is_left_out(evaluated, cache, tmp_path):
    root = evaluated[0]
    report = evaluate(options(root / "one", cache, out=tmp_path))
    assert [entry["preset"] for entry in report["scores"]] == ["p4-2021"]
    assert any(note.startswith("level3-2021 is left out") for note in report["notes"])
    assert report["latency"] is None


def test_an_onnx_file_is_evaluated_like_its_model(evaluated, cache, tmp_path):
    root, _, reports = evaluated
    report = evaluate(options(root / "one" / "model.onnx", cache, out=tmp_path, seconds=30.0))
    same = ("confusion", "macro_f1", "macs", "competition_macs", "parameters", "scores", "samples")
    assert {key: report[key] for key in same} == {key: reports["one"][key] for key in same}
    first, second = (read_predictions(f / "predictions_train.csv") for f in (root / "one", tmp_path))
    np.testing.assert_array_equal(first.ids, second.ids)
    np.testing.assert_allclose(first.shares, second.shares, atol=1e-4)
    assert report["bytes"] == (root / "one" / "model.onnx").stat().st_size


@pytest.mark.parametrize("name", ["one", "one/model.onnx"])
def test_latency_is_compared_with_the_reference(evaluated, cache, tmp_path, name):
    report = evaluate(options(evaluated[0] / name, cache, out=tmp_path, latency_rounds=20))
    latency = report["latency"]
    assert latency["runtime"] == ("onnxruntime-fp32" if "onnx" in name else "torch-eager")
    assert latency["reference"] == "mobilenetv3_small_050, torch-eager"
    assert 0 < latency["ratio_low"] <= latency["ratio_median"] <= latency["ratio_high"]
    assert (latency["median_ms"] > 0, latency["rounds"], latency["batch_size"]) == (True, 20, 1)
    assert "one image" in table(report)


def summarized(rounds):
    """A latency of so many rounds that differ wildly."""
    times = np.linspace(1, 9, rounds)
    subject = SimpleNamespace(name="x", threads=1)
    return summarize(subject, 1, Timings(times, times, 1), times)


def test_latency_that_is_too_noisy_is_not_told(evaluated):
    report = dict(evaluated[2]["one"])
    report["latency"] = {
        "runtime": "torch-eager", "threads": 1, "trusted": False, "ratio_trusted": False, "median_ms": 12.345,
        "p95_ms": 99.0, "ratio_median": 1.5, "ratio_low": 0.5, "ratio_high": 3.0, "reference": "r",
        "complaint": "too noisy: close other programs",
    }  # fmt: skip
    assert "--" not in summarized(10).complaint  # two jobs with other names for their options say it
    text = table(report)
    assert "12.345" not in text
    assert "too noisy" in text


def test_comparing_two_runs(evaluated):
    root, _, reports = evaluated
    report = compare(CompareConfig(runs=f"{root}/one,{root}/two", split="train"))
    assert report["reference"] == str(root / "one")
    rows = {row["run"]: row for row in report["runs"]}
    assert [row["macro_f1"] for row in report["runs"]] == sorted(
        (r["macro_f1"] for r in reports.values()), reverse=True
    )
    one, two = (read_predictions(root / name / "predictions_train.csv") for name in ("one", "two"))
    paired = paired_bootstrap(one.labels, one.predicted, two.predicted, 3)
    found = rows[str(root / "two")]["paired"]
    assert found["p_value"] == paired.p_value
    assert found["difference"] == pytest.approx(reports["two"]["macro_f1"] - reports["one"]["macro_f1"])
    assert rows[str(root / "one")]["paired"] is None
    assert "reference" in compare_table(report)


def test_patterns_and_another_reference(evaluated):
    root = evaluated[0]
    report = compare(CompareConfig(runs=f"{root}/*", split="train", reference=root / "two"))
    assert report["reference"] == str(root / "two")
    assert {row["run"] for row in report["runs"]} == {str(root / "one"), str(root / "two")}


def damaged(folder, tmp_path, change):
    """A copy of an evaluation after a change."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("evaluation_train.json", "predictions_train.csv"):
        (copy / name).write_bytes((folder / name).read_bytes())
    change(copy)
    return copy


def settle(copy):
    """Make the report agree with the predictions again."""
    report = json.loads((copy / "evaluation_train.json").read_text())
    report["confusion"] = read_predictions(copy / "predictions_train.csv").scores.confusion.tolist()
    (copy / "evaluation_train.json").write_text(json.dumps(report))


def drop_rows(copy):
    lines = (copy / "predictions_train.csv").read_text().splitlines(keepends=True)
    (copy / "predictions_train.csv").write_text("".join(lines[:-3]))
    settle(copy)


def change_label(copy):
    with (copy / "predictions_train.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    rows[1][2] = next(name for name in CLASSES if name != rows[1][2])
    with (copy / "predictions_train.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    settle(copy)


def swap_prediction(copy):
    path = copy / "predictions_train.csv"
    before = read_predictions(path)
    write_predictions(path, replace(before, shares=before.shares[:, ::-1]))


def drop_key(copy):
    report = json.loads((copy / "evaluation_train.json").read_text())
    del report["macro_f1_low"]
    (copy / "evaluation_train.json").write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_rows, "of which .* are the same"),
        (change_label, "disagree about true classes"),
        (drop_key, "lacks macro_f1_low"),
        (swap_prediction, "are of different evaluations"),
        (lambda copy: (copy / "evaluation_train.json").write_text("{"), "is no report"),
        (lambda copy: (copy / "evaluation_train.json").unlink(), "run python -m training.evaluate"),
        (lambda copy: (copy / "predictions_train.csv").unlink(), "does not exist"),
    ],
)
def test_evaluations_that_cannot_be_compared(evaluated, tmp_path, change, words):
    copy = damaged(evaluated[0] / "one", tmp_path, change)
    with pytest.raises(UsageError, match=words):
        compare(CompareConfig(runs=f"{evaluated[0]}/one,{copy}", split="train"))


@pytest.mark.parametrize(
    ("runs", "words"),
    [("runs/one", "fewer than two"), ("nosuch/*,a", "no folder that matches"), ("", "fewer than two")],
)
def test_too_few_runs(runs, words):
    with pytest.raises(UsageError, match=words):
        compare(CompareConfig(runs=runs))


def test_relative_and_absolute_folders_together(evaluated, monkeypatch):
    root = evaluated[0]
    monkeypatch.chdir(root)
    report = compare(CompareConfig(runs=f"*,{root}/two", split="train", reference=root / "one"))
    assert len(report["runs"]) == 2
    text = compare_table(report)
    assert " one " in text
    assert " two " in text
    with pytest.raises(UsageError, match="is no pattern"):
        compare(CompareConfig(runs="**x", split="train"))


@pytest.mark.parametrize(
    ("learned", "told"), [("fold 0 of 5", True), ("train+val", True), ("all", True), ("train", False)]
)
def test_a_split_that_was_learned_from_is_no_test(cache, tmp_path, learned, told):
    model, card = make_model(tmp_path)
    save_model(tmp_path / "best.safetensors", model, replace(card, provenance={"learned_from": learned}))
    report = evaluate(EvaluateConfig(model=tmp_path, data=cache, split="val", engine="cpu", latency_rounds=0))
    assert any("this is no test of it" in note for note in report["notes"]) == told


def test_a_network_that_cannot_be_counted_costs_no_time(evaluated, cache, tmp_path, monkeypatch):
    def refuse(*_):
        raise UncountableError("it hides its arithmetic")

    monkeypatch.setattr("training.evaluate.count_macs", refuse)
    monkeypatch.setattr("training.evaluate.gather_predictions", None)  # would fail if it were called
    with pytest.raises(UncountableError):
        evaluate(options(evaluated[0] / "one", cache, out=tmp_path))
