"""Cross-validation: every sample is predicted once, by the run that did not see it."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from augment_cache.format.source import CacheSource
from pipelines.errors import UsageError
from pipelines.sources import FolderSource, Joined, open_folder
from tests.training.runs import config, stop_at
from training.engine.config import DataConfig
from training.engine.data import training_sources
from training.engine.folds import out_of_fold
from training.engine.groups import find_photos, fold_of_rows, read_photos
from training.engine.optimization import ScheduleConfig
from training.engine.preemption import PreemptedError
from training.evaluate import EvaluateConfig, evaluate
from training.train import table, train

SHORT = ScheduleConfig(epochs=1, warmup_epochs=0)
FOLDS = 3


def folded(cache, out, fold=None, **changes):
    data = DataConfig(path=cache, batch_size=16, engine="cpu", folds=FOLDS, fold=fold)
    return config(cache, out, data=data, schedule=SHORT, **changes)


@pytest.fixture(scope="module")
def everything(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("folds")
    return out, train(folded(cache, out))


def predictions(out):
    lines = []
    for number in range(FOLDS):
        with (out / f"fold-{number}" / "predictions_out_of_fold.csv").open(newline="") as file:
            lines.append(list(csv.DictReader(file)))
    return lines


def test_each_sample_is_predicted_once(everything, cache):
    out, report = everything
    ids = [line["sample_id"] for lines in predictions(out) for line in lines]
    sources = [CacheSource(cache, split) for split in ("train", "val")]
    originals = np.concatenate([source.ids[source.copies == 0] for source in sources])
    assert sorted(ids) == sorted(f"{number:016x}" for number in originals.tolist())
    assert report["samples"] == len(ids) == 76


def test_the_report_is_what_the_predictions_say(everything):
    out, report = everything
    lines = [line for lines in predictions(out) for line in lines]
    right = np.mean([line["label"] == line["predicted"] for line in lines])
    assert report["accuracy"] == pytest.approx(right)
    for line in lines:
        shares = {name: float(line[name]) for name in ("blue", "green", "red")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=shares.get) == line["predicted"]
    assert len(report["fold_macro_f1"]) == FOLDS
    assert report["mean"] == pytest.approx(np.mean(report["fold_macro_f1"]))
    assert report["std"] == pytest.approx(np.std(report["fold_macro_f1"], ddof=1))
    assert json.loads((out / "out_of_fold.json").read_text()) == report
    assert (out / "confusion_out_of_fold.png").read_bytes()[:4] == b"\x89PNG"
    assert "out of fold" in table(report)


def test_no_copy_of_a_held_out_sample_is_learned_from(cache):
    both = [CacheSource(cache, split) for split in ("train", "val")]
    sample = {row: name for source in both for row, name in zip(source.ids, source.sample_ids, strict=True)}
    for number in range(FOLDS):
        learned, held = training_sources(DataConfig(path=cache, folds=FOLDS, fold=number))
        learned_samples, held_samples = ([sample[row] for row in part.ids] for part in (learned, held))
        assert not set(learned_samples) & set(held_samples)
        assert len(set(held_samples)) == len(held_samples)
        assert len(learned_samples) > len(set(learned_samples))  # with their augmented copies
        for label in range(3):
            assert abs((held.labels == label).sum() - 76 / 3 / FOLDS) < 2


def test_one_fold_alone_and_the_last_one_writes_the_report(cache, tmp_path, everything):
    """As array jobs do it, in any order, into one folder."""
    for number in (2, 0):
        train(folded(cache, tmp_path, number))
        assert not (tmp_path / "out_of_fold.json").exists()
    train(folded(cache, tmp_path, 1))
    report = json.loads((tmp_path / "out_of_fold.json").read_text())
    assert report["confusion"] == everything[1]["confusion"]
    again = train(folded(cache, tmp_path / "fold-1", 1))
    assert again["run"] == str(tmp_path / "fold-1")


def test_it_goes_on_in_the_middle(cache, tmp_path, monkeypatch, everything):
    with monkeypatch.context() as patch:
        train(folded(cache, tmp_path, 0))
        stop_at(patch, 1)
        with pytest.raises(PreemptedError):
            train(folded(cache, tmp_path))
    report = train(folded(cache, tmp_path))
    assert report["confusion"] == everything[1]["confusion"]


def test_without_resident_images(cache, tmp_path, everything):
    """Once the engine was closed before the predictions were made."""
    options = folded(cache, tmp_path)
    train(replace(options, data=replace(options.data, resident="off")))
    assert json.loads((tmp_path / "out_of_fold.json").read_text())["confusion"] == everything[1]["confusion"]


def test_a_folder_that_is_named_like_a_fold(cache, tmp_path):
    train(folded(cache, tmp_path / "fold-1"))
    assert sorted(path.name for path in (tmp_path / "fold-1").glob("fold-*")) == ["fold-0", "fold-1", "fold-2"]


def test_too_many_folds(cache, tmp_path):
    data = DataConfig(path=cache, batch_size=16, engine="cpu", folds=900, fold=899)
    with pytest.raises(UsageError, match=r"too few photos for --data\.folds 900"):
        train(config(cache, tmp_path, data=data))


def test_folds_that_were_trained_otherwise_give_no_report(everything, cache, tmp_path):
    out = Path(shutil.copytree(everything[0], tmp_path / "folds"))
    train(folded(cache, out, fold=1, overwrite=True, seed=5))
    assert not (out / "out_of_fold.json").exists()
    train(folded(cache, out, fold=1, overwrite=True))
    assert json.loads((out / "out_of_fold.json").read_text())["confusion"] == everything[1]["confusion"]


def test_an_evaluation_of_a_fold_leaves_its_predictions_alone(everything, cache, tmp_path):
    out = Path(shutil.copytree(everything[0], tmp_path / "folds"))
    evaluate(EvaluateConfig(model=out / "fold-0", data=cache, split="val", engine="cpu", latency_rounds=0))
    assert out_of_fold(out, FOLDS)["confusion"] == everything[1]["confusion"]


def test_folds_of_several_data_sets(everything, tmp_path):
    out = Path(shutil.copytree(everything[0], tmp_path / "folds"))
    shutil.copyfile(out / "fold-0" / "predictions_out_of_fold.csv", out / "fold-1" / "predictions_out_of_fold.csv")
    with pytest.raises(UsageError, match="several data sets"):
        out_of_fold(out, FOLDS)


def test_predictions_of_something_else(everything, tmp_path):
    (tmp_path / "fold-0").mkdir()
    (tmp_path / "fold-0" / "predictions_out_of_fold.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="holds no predictions"):
        out_of_fold(tmp_path, 1)


def test_joined_sources(photos, cache):
    folder = open_folder(photos)
    first, second = folder.subset(np.arange(0, 90, 2)), folder.subset(np.arange(1, 90, 2))
    both = Joined([first, second])
    assert len(both.labels) == 90
    assert sorted(both.ids.tolist()) == sorted(folder.ids.tolist())
    rows = np.array([0, 44, 45, 89, 3])
    images = both.fetch(rows)
    for row, image in zip(rows.tolist(), images, strict=True):
        part, own = (first, row) if row < 45 else (second, row - 45)
        assert np.array_equal(image, part.fetch(np.array([own]))[0])
        assert both.describe(row) == part.describe(own)
        assert both.ids[row] == part.ids[own]
    assert both.fingerprint != Joined([second, first]).fingerprint
    assert both.image_size is None
    assert Joined([CacheSource(cache, "train"), CacheSource(cache, "val")]).image_size == 32
    stranger = FolderSource(photos, ("a",), folder.files[:1], folder.labels[:1], folder.ids[:1])
    for wrong in ([], [folder, stranger]):
        with pytest.raises(ValueError, match="same classes"):
            Joined(wrong)


def test_folds_differ_from_training_on_all(cache, tmp_path):
    one = replace(folded(cache, tmp_path).data, folds=0, train_on="all")
    learned, held = training_sources(one)
    assert held is None
    assert len(learned.labels) == 126 + 13 + 14


def test_crops_of_one_photo_stay_together(photos, tmp_path):
    """Or the photo's light and ground are learned from the one, and recognised in the other."""
    source = open_folder(photos)
    crops = [{"file": f"train/{file}", "photo": f"photo {number // 7}"} for number, file in enumerate(source.files)]
    (tmp_path / "crops.json").write_text(json.dumps({"crops": crops}))
    table_ = read_photos(find_photos(tmp_path, None))
    folds, original = fold_of_rows([source], table_, folds=FOLDS, seed=0)
    assert original.all()
    assert np.bincount(folds).min() > 20
    for photo in range(13):
        assert len(set(folds[7 * photo : 7 * photo + 7].tolist())) == 1
    alone, _ = fold_of_rows([source], {}, folds=FOLDS, seed=0)
    assert len(set(alone[:7].tolist())) > 1


def test_photos_of_the_crops_in_a_cache(cache, photos, tmp_path):
    """A cache names its crops without their split, crops.json with it."""
    files = open_folder(photos).files
    crops = [{"file": f"val/{file}", "photo": f"photo {number // 7}"} for number, file in enumerate(files)]
    (tmp_path / "crops.json").write_text(json.dumps({"crops": crops}))
    photo_of = {file: number // 7 for number, file in enumerate(files)}
    sides = {}
    for number in range(FOLDS):
        data = DataConfig(path=cache, folds=FOLDS, fold=number, groups=tmp_path)
        for side, part in enumerate(training_sources(data)):
            for row in range(len(part.labels)):
                sides.setdefault((number, photo_of[part.describe(row).split("(")[1].rstrip(")")]), set()).add(side)
    assert len(sides) == FOLDS * 13
    assert all(len(seen) == 1 for seen in sides.values())
    (tmp_path / "crops.json").write_text(json.dumps({"crops": crops[:5]}))
    with pytest.raises(UsageError, match=r"--data\.groups does not say which photo"):
        training_sources(data)


def test_groups_without_folds(cache, tmp_path):
    with pytest.raises(UsageError, match=r"--data\.groups .* is for cross-validation"):
        config(cache, tmp_path, data=DataConfig(path=cache, groups=tmp_path))


def test_groups_that_cannot_be_read(tmp_path):
    assert read_photos(None) == {}
    (tmp_path / "crops.json").write_text('{"crops": [{}]}')
    for path in (tmp_path, tmp_path / "crops.json", tmp_path / "none.json"):
        with pytest.raises(UsageError, match=r"--data\.groups .*cannot be read.*augment_cache\.crop"):
            read_photos(path)
