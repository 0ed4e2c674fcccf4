"""The distill job: every method learns, nothing of it stays, and a teacher that does not count changes no bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from augment_cache.build import BuildConfig, build
from compress.export import ExportConfig, export
from pipelines.engines.base import RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.errors import ProblemFoundError, UsageError
from pipelines.loader import Loader, LoaderOptions
from pipelines.opening import OpenOptions
from pipelines.plan import View
from tests.training.runs import config, log_of, same, same_model, stop_at, untimed, weights
from training.distill import distill
from training.distillation import answers as answers_module
from training.distillation.methods.catalogue import METHODS
from training.distillation.methods.ways import WAYS
from training.distillation.options import DistillConfig, MethodConfig, TeacherConfig
from training.distillation.teachers import TorchTeacher, Wanted, open_teacher
from training.engine.config import EmaConfig, MixConfig, ModelConfig
from training.engine.data import open_data
from training.engine.losses import LossConfig
from training.engine.optimization import OptimizerConfig, ScheduleConfig
from training.engine.preemption import PreemptedError
from training.measure.macs import count_macs
from training.measure.rules import check_rules
from training.model.create import create_model
from training.model.model_file import load_model, save_model
from training.train import make_network, train

SHORT = ScheduleConfig(epochs=3, warmup_epochs=0.5)
SUM = "sum:test_efficientnet+test_efficientnet"
ALONE = ("arcface", "auxiliary", "autoencoder")
"""Methods that ask no teacher."""


@pytest.fixture(scope="module")
def teacher(cache, tmp_path_factory):
    """A run that tells the colours apart."""
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    report = train(config(cache, out, schedule=ScheduleConfig(epochs=6, warmup_epochs=0.5)))
    assert report["val_macro_f1"] > 0.8
    return out


def options(cache, out, teacher, method=None, *, asked=None, **changes):
    """Three epochs of seven steps; answers are kept beside the run, not beside the cache that others use, too."""
    plain = config(cache, out)
    base = DistillConfig(
        data=replace(plain.data, views=2),
        model=plain.model,
        optimizer=plain.optimizer,
        schedule=SHORT,
        out=out,
        trackers="",
        teacher=replace(asked or TeacherConfig(), paths=str(teacher or ""), cache=out.parent / "answers"),
        method=method or MethodConfig(),
    )
    return replace(base, **changes)


@pytest.fixture
def questions(monkeypatch):
    """Sizes of the batches that a teacher of PyTorch was asked about."""
    asked = []
    real = TorchTeacher.ask

    def ask(self, levels):
        asked.append(len(levels))
        return real(self, levels)

    monkeypatch.setattr(TorchTeacher, "ask", ask)
    return asked


class TestMethods:
    @pytest.mark.parametrize("name", [*METHODS, "kd,feature,relational", "kd,auxiliary"])
    def test_trains_and_leaves_nothing_behind(self, cache, teacher, tmp_path, name):
        method = MethodConfig(name=name, layers="blocks.1" if "auxiliary" in name else "")
        model = ModelConfig(name=SUM if name == "residual" else "test_efficientnet")
        out = tmp_path / "run"
        found = options(cache, out, None if name in ALONE else teacher, method, model=model)
        report = distill(replace(found, schedule=ScheduleConfig(epochs=5, warmup_epochs=0.5)))
        assert (report["method"], report["teachers"]) == (name, [] if name in ALONE else ["teacher"])
        network, card = load_model(out / "last.safetensors")
        fresh = create_model(model.name, 3)
        assert card.architecture == model.name
        assert card.provenance["method"] == name
        assert network.state_dict().keys() == fresh.state_dict().keys()
        assert count_macs(network, 32).macs == count_macs(fresh, 32).macs
        losses = [line["train_loss"] for line in log_of(out)]
        if name == "autoencoder":
            assert losses[-1] < 0.8 * losses[0]
        else:
            assert report["val_macro_f1"] > 0.6

    @pytest.mark.parametrize("name", ["kd", "feature", "arcface"])
    def test_without_a_share_it_is_plain_training(self, cache, teacher, tmp_path, name):
        """Bit for bit, with mixing, an average of the weights and dropout."""
        changes = {
            "mix": MixConfig(mixup=0.4, probability=0.5) if name != "arcface" else MixConfig(),
            "ema": EmaConfig(decay=0.9),
            "loss": LossConfig(name="f1_focal"),
        }
        method = MethodConfig(name=name, alpha=0.0)
        found = options(cache, tmp_path / "run", None if name in ALONE else teacher, method, **changes)
        distill(found)
        plain = config(cache, tmp_path / "plain", schedule=SHORT, data=found.data, **changes)
        train(plain)
        assert same_model(tmp_path / "run", tmp_path / "plain")
        assert untimed(tmp_path / "run") == untimed(tmp_path / "plain")
        assert not (tmp_path / "answers").exists()

    def test_a_teacher_changes_the_student(self, cache, teacher, tmp_path):
        distill(options(cache, tmp_path / "a", teacher))
        train(config(cache, tmp_path / "b", schedule=SHORT, data=options(cache, tmp_path, teacher).data))
        assert not same_model(tmp_path / "a", tmp_path / "b")

    @pytest.mark.parametrize("balanced", [False, True])
    def test_the_loss_is_what_the_formula_says(self, cache, photos, teacher, tmp_path, balanced):
        """The first step from the same weights, by hand: alpha of KD and the rest of the labels' loss."""
        if balanced:
            shutil.copytree(photos, tmp_path / "photos")
            for path in sorted((tmp_path / "photos" / "red").iterdir())[10:]:
                path.unlink()
            cache = tmp_path / "cache"
            build(BuildConfig(data=tmp_path / "photos", out=cache, size=32, copies=1, engine="cpu"))
        found = options(
            cache,
            tmp_path / "run",
            teacher,
            MethodConfig(alpha=0.3, temperature=2.0, balanced=balanced),
            schedule=ScheduleConfig(epochs=1, warmup_epochs=0),
            optimizer=OptimizerConfig(name="sgd", lr=1e-12, momentum=0.5, weight_decay=0.0),
            model=ModelConfig(name="test_efficientnet"),
            loss=LossConfig(label_smoothing=0.0, class_balance=0.5 * balanced),
        )
        distill(found)
        source, _ = open_data(cache, ("train", "val"), OpenOptions())
        network, card = load_model(tmp_path / "run" / "last.safetensors")
        asked, _ = load_model(teacher / "best.safetensors")
        engine = CpuEngine(RenderSpec(32), threads=1)
        loader = Loader(
            source, engine, LoaderOptions(batch_size=16, train=True, seed=0, view=View(flip=True, min_area=0.6))
        )
        expected = []
        counts = np.bincount(source.labels)
        rarity = torch.from_numpy(counts**-0.5 * len(source.labels) / np.sqrt(counts).sum())
        assert (rarity.max() > 1.3) == balanced
        network.train()
        scale = torch.tensor(card.std).view(1, 3, 1, 1)
        for batch in loader:
            images = (batch.images / 255 - torch.tensor(card.mean).view(1, 3, 1, 1)) / scale
            with torch.no_grad():
                student, taught = network(images).double(), asked(images).double()
            p, q = (taught / 2).softmax(1), (student / 2).log_softmax(1)
            own = rarity[batch.labels] if balanced else torch.ones(len(batch.labels))
            kl = (own * (p * (p.log() - q)).sum(1)).mean()
            labels = (own * torch.nn.functional.cross_entropy(student, batch.labels, reduction="none")).mean()
            expected.append(float(0.3 * 4 * kl + 0.7 * labels))
        engine.close()
        assert log_of(tmp_path / "run")[0]["train_loss"] == pytest.approx(np.mean(expected), rel=1e-4)

    def test_only_where_the_teacher_is_right(self, cache, teacher, tmp_path, monkeypatch):
        """A teacher that is always wrong is not listened to at all."""
        real = TorchTeacher.ask
        monkeypatch.setattr(TorchTeacher, "ask", lambda self, levels: {n: -v for n, v in real(self, levels).items()})
        labels = options(
            cache, tmp_path / "run", teacher, MethodConfig(alpha=0.5), asked=TeacherConfig(only_right=True)
        )
        distill(labels)
        # Half of the labels' loss, and nothing else: AdamW takes the same steps as with all of it, but for its epsilon.
        train(config(cache, tmp_path / "plain", schedule=SHORT, data=labels.data))
        ours, plain = (log_of(tmp_path / name)[0]["train_loss"] for name in ("run", "plain"))
        assert ours == pytest.approx(plain / 2, rel=0.02)

    def test_an_autoencoder_is_where_the_next_run_starts(self, cache, teacher, tmp_path):
        """Its last epoch is its best: macro F1 of a classifier that learns nothing chooses nothing."""
        code = tmp_path / "code"
        report = distill(options(cache, code, None, MethodConfig(name="autoencoder")))
        assert report["best_epoch"] == 3
        assert same(weights(code / "best.safetensors"), weights(code / "last.safetensors"))
        found = options(
            cache, tmp_path / "run", teacher, model=ModelConfig(name="test_efficientnet", weights=str(code))
        )
        source = open_data(cache, ("train",), OpenOptions())[0]
        assert same(make_network(found, source).model.state_dict(), weights(code / "last.safetensors"))

    def test_a_loss_that_is_large_by_nature_is_no_trouble(self, cache, teacher, tmp_path):
        """DIST at T = 20 begins with hundreds."""
        distill(options(cache, tmp_path / "run", teacher, MethodConfig(name="dist", temperature=20.0)))
        assert log_of(tmp_path / "run")[0]["train_loss"] > 50

    def test_several_layers_follow_several(self, cache, teacher, tmp_path):
        method = MethodConfig(name="feature", layer="blocks.0,blocks.2", teacher_layer="blocks.0,blocks.2")
        assert distill(options(cache, tmp_path / "run", teacher, method))["val_macro_f1"] > 0.3
        (path, *_) = (tmp_path / "answers").rglob("*.arrow")
        with pa.memory_map(str(path)) as file:
            assert pa.ipc.open_file(file).schema.names == ["sample_id", "plan", "map0", "map1"]
        with pytest.raises(UsageError, match="name as many of each"):
            distill(options(cache, tmp_path / "b", teacher, replace(method, teacher_layer="")))

    @pytest.mark.parametrize("name", ["kd,feature", "arcface", "relational"])
    def test_in_half_precision(self, cache, teacher, tmp_path, name):
        who = None if name in ALONE else teacher
        report = distill(options(cache, tmp_path / "run", who, MethodConfig(name=name), precision="bf16"))
        assert report["val_macro_f1"] > 0.4


class TestAnswers:
    def test_are_asked_for_once(self, cache, teacher, tmp_path, questions):
        """Three epochs of two views: two passes over all samples; a second run, or another method, asks nothing."""
        distill(options(cache, tmp_path / "a", teacher))
        samples = len(open_data(cache, ("train",), OpenOptions())[0].labels)
        assert sum(questions) == 2 * samples
        files = sorted((tmp_path / "answers").rglob("*.arrow"))
        assert len(files) == 2
        distill(options(cache, tmp_path / "b", teacher, MethodConfig(name="dist")))
        distill(options(cache, tmp_path / "c", teacher))
        assert sum(questions) == 2 * samples
        assert same_model(tmp_path / "a", tmp_path / "c")
        distill(options(cache, tmp_path / "d", teacher, seed=1))
        assert sum(questions) == 4 * samples, "another seed shows other views"

    def test_lie_beside_the_data(self, photos, teacher, tmp_path):
        """Unless they are to be elsewhere; the folder of the data itself is left alone."""
        data = tmp_path / "photos"
        shutil.copytree(photos, data)
        found = options(data, tmp_path / "run", teacher, schedule=ScheduleConfig(epochs=1, warmup_epochs=0))
        found = replace(found, data=replace(found.data, size=32, copies=None))
        distill(replace(found, teacher=replace(found.teacher, cache=None)))
        assert list((tmp_path / "photos.teachers").rglob("*.arrow"))
        assert not list(data.rglob("*.arrow"))

    @pytest.mark.parametrize("name", ["kd", "feature"])
    def test_kept_ones_are_those_of_the_same_images(self, cache, teacher, tmp_path, name, questions):
        """Asked in every step, the teacher says the same, to the bits that other batches cost."""
        method = MethodConfig(name=name)
        for outputs in ("cached", "online"):
            distill(options(cache, tmp_path / outputs, teacher, method, asked=TeacherConfig(outputs=outputs)))
        kept, online = (log_of(tmp_path / outputs) for outputs in ("cached", "online"))
        tolerance = 1e-5 if name == "kd" else 2e-3  # maps are kept in half precision
        assert kept[0]["train_loss"] == pytest.approx(online[0]["train_loss"], rel=tolerance)

    def test_of_a_larger_teacher_are_about_the_same_crop(self, photos, teacher, tmp_path):
        """A file of answers against the teacher, asked by hand about the same views at its own size."""
        size = 24
        found = options(photos, tmp_path / "run", teacher, schedule=ScheduleConfig(epochs=1, warmup_epochs=0))
        distill(replace(found, data=replace(found.data, size=size, copies=None)))
        (path,) = (tmp_path / "answers").rglob("*.arrow")
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
            logits = np.stack(table["logits"].to_numpy())
        source = open_data(photos, ("train",), OpenOptions())[0]
        assert table["sample_id"].to_numpy().tolist() == source.ids.tolist()
        engine = CpuEngine(RenderSpec(32), threads=1)
        view = View(flip=True, min_area=0.6)
        loader = Loader(source, engine, LoaderOptions(batch_size=50, train=False, seed=0, view=view))
        asked = open_teacher(str(teacher), source.classes, RenderSpec(size), Wanted(), torch.device("cpu"))
        for batch in loader:
            said = asked.ask(batch.images)["logits"].numpy()
            np.testing.assert_allclose(logits[batch.rows], said, atol=1e-4)
        engine.close()

    @pytest.mark.parametrize("damage", ["cut", "flipped", "foreign rows", "a text"])
    def test_that_are_damaged_are_asked_for_again(self, cache, teacher, tmp_path, damage, capfd, questions):
        distill(options(cache, tmp_path / "a", teacher))
        path = sorted((tmp_path / "answers").rglob("*.arrow"))[0]
        whole, before = path.read_bytes(), len(questions)
        if damage == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif damage == "flipped":
            place = len(whole) // 2
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        elif damage == "foreign rows":
            other = sorted((tmp_path / "answers").rglob("*.arrow"))[1]
            path.write_bytes(other.read_bytes())
        else:
            path.write_text("answers")
        distill(options(cache, tmp_path / "b", teacher))
        assert "asking the teacher again" in capfd.readouterr().err
        assert len(questions) > before
        assert path.read_bytes() == whole
        assert same_model(tmp_path / "a", tmp_path / "b")

    def test_that_cannot_be_written_do_not_stop_the_run(self, cache, teacher, tmp_path, monkeypatch, capfd):
        distill(options(cache, tmp_path / "a", teacher))

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(answers_module, "write_outputs", full)
        found = options(cache, tmp_path / "b", teacher)
        distill(replace(found, teacher=replace(found.teacher, cache=tmp_path / "nowhere")))
        assert "No space left on device" in capfd.readouterr().err
        assert same_model(tmp_path / "a", tmp_path / "b")

    def test_that_are_missing_are_asked_for_when_the_sample_can_be_read_again(self, photos, teacher, tmp_path, capfd):
        """A damaged sample has no answer and stops nothing; mended, it gets one."""
        data = tmp_path / "photos"
        shutil.copytree(photos, data)
        victim = data / open_data(data, ("train",), OpenOptions())[0].describe(5).split("photos/")[-1]
        whole = victim.read_bytes()
        for name, content in (("damaged", whole[:200]), ("mended", whole)):
            victim.write_bytes(content)
            os.utime(victim, (1e9, 1e9))
            found = options(data, tmp_path / name, teacher, asked=TeacherConfig(only_right=True))
            distill(replace(found, data=replace(found.data, size=32, copies=None, damaged="skip", check="off")))
            said = capfd.readouterr().err
            assert ("1 samples cannot be read" in said) == (name == "damaged")
            assert all(np.isfinite(line["train_loss"]) for line in log_of(tmp_path / name))

    def test_of_mixed_images_are_asked_for_in_every_step(self, cache, teacher, tmp_path, questions):
        mix = {"mix": MixConfig(mixup=0.4, cutmix=1.0)}
        distill(options(cache, tmp_path / "run", teacher, **mix))
        assert questions == [16] * 21
        with pytest.raises(UsageError, match="mixed images are new in each batch"):
            distill(options(cache, tmp_path / "b", teacher, asked=TeacherConfig(outputs="cached"), **mix))

    def test_without_views_that_come_again_are_asked_for_in_every_step(self, cache, teacher, tmp_path, questions):
        found = options(cache, tmp_path / "run", teacher)
        distill(replace(found, data=replace(found.data, views=0)))
        assert questions == [16] * 21

    def test_of_fixed_images_are_of_one_round(self, cache, teacher, tmp_path, questions):
        found = options(cache, tmp_path / "run", teacher)
        distill(replace(found, data=replace(found.data, views=0, flip=False, min_area=1.0)))
        assert len(list((tmp_path / "answers").rglob("*.arrow"))) == 1


class TestTeachers:
    def test_several_are_one(self, cache, teacher, tmp_path, questions):
        both = f"{teacher},{teacher / 'last.safetensors'}"
        for combine, given in (("mean", ""), ("weighted", "2,1"), ("best", "")):
            asked = TeacherConfig(paths=both, combine=combine, weights=given)
            report = distill(options(cache, tmp_path / combine, both, asked=asked))
            assert len(report["teachers"]) == 2
            assert report["val_macro_f1"] > 0.5

    def test_an_onnx_file_teaches_like_its_model(self, cache, teacher, tmp_path):
        export(ExportConfig(model=teacher, out=tmp_path / "teacher.onnx"))
        distill(options(cache, tmp_path / "a", teacher))
        distill(options(cache, tmp_path / "b", tmp_path / "teacher.onnx"))
        a, b = (log_of(tmp_path / name)[0]["train_loss"] for name in "ab")
        assert a == pytest.approx(b, rel=1e-4)

    def test_a_chain_learns_link_by_link(self, cache, teacher, tmp_path, questions):
        found = options(cache, tmp_path / "run", teacher, chain="test_efficientnet")
        report = distill(found)
        assert report["teachers"] == ["chain-0"]
        assert json.loads((tmp_path / "run" / "chain-0" / "run.json").read_text())
        before = len(questions)
        distill(found)
        assert len(questions) == before, "what is finished is not done again"

    def test_a_chain_whose_end_cannot_be_shows_before_it_begins(self, cache, teacher, tmp_path, questions):
        for changes, message in (
            ({"model": ModelConfig(name="test_resnettt")}, "test_resnettt"),
            ({"method": MethodConfig(name="feature", layer="layer9")}, "layer9: the network has no such"),
            ({"method": MethodConfig(name="auxiliary", layers="layer9")}, "layer9"),
        ):
            found = options(cache, tmp_path / "run", teacher, chain="test_efficientnet")
            if changes.get("method", found.method).name == "auxiliary":
                changes = {"method": replace(changes["method"], name="kd,auxiliary")}
            with pytest.raises(UsageError, match=message):
                distill(replace(found, **changes))
            assert questions == []
            assert not (tmp_path / "run" / "chain-0" / "run.json").exists()

    # Once a bug: what was finished asked for the weights that it had started from.
    def test_a_chain_that_goes_on_needs_no_starting_weights(self, cache, teacher, tmp_path):
        start = tmp_path / "start.safetensors"
        model, card = load_model(teacher / "best.safetensors")
        save_model(start, model, card)
        from_there = ModelConfig(name=card.architecture, weights=str(start))
        found = options(cache, tmp_path / "run", teacher, chain=card.architecture, model=from_there)
        report = distill(found)
        start.unlink()
        assert distill(found)["val_macro_f1"] == report["val_macro_f1"]

    # Once a bug: 0 · nan is no gradient, and the message spoke of samples that cannot be read.
    def test_answers_that_are_no_numbers_are_left_out(self, cache, teacher, tmp_path, monkeypatch, capfd):
        ask = TorchTeacher.ask

        def sometimes(self, levels):
            first = torch.tensor([0])
            return {name: values.index_fill(0, first, float("nan")) for name, values in ask(self, levels).items()}

        monkeypatch.setattr(TorchTeacher, "ask", sometimes)
        distill(options(cache, tmp_path / "run", teacher))
        said = capfd.readouterr().err
        assert "samples get no finite numbers for an answer: there the student hears no teacher" in said
        assert "cannot be read" not in said
        assert all(np.isfinite(line["train_loss"]) for line in log_of(tmp_path / "run"))
        assert all(value.isfinite().all() for value in weights(tmp_path / "run" / "last.safetensors").values())

        def never(self, levels):
            return {name: values * float("nan") for name, values in ask(self, levels).items()}

        monkeypatch.setattr(TorchTeacher, "ask", never)
        with pytest.raises(UsageError, match="gives no answer that is a finite number"):
            distill(options(cache, tmp_path / "other", teacher))

    def test_one_that_has_learned_from_other_samples_is_named(self, cache, teacher, tmp_path, capfd):
        found = options(cache, tmp_path / "run", teacher, schedule=ScheduleConfig(epochs=1, warmup_epochs=0))
        distill(replace(found, data=replace(found.data, train_on="train+val")))
        assert "only the teacher knows" not in capfd.readouterr().err, "it knows less than the student"
        model, card = load_model(teacher / "best.safetensors")
        path = tmp_path / "all.safetensors"
        save_model(path, model, replace(card, provenance={**card.provenance, "learned_from": "all"}))
        distill(replace(found, out=tmp_path / "b", teacher=replace(found.teacher, paths=str(path))))
        assert "the teacher all has learned from all" in capfd.readouterr().err
        student, card = load_model(tmp_path / "b" / "best.safetensors")
        assert {finding.rule: finding.ok for finding in check_rules(student, card)}["test_unused"] is False


class TestGoingOn:
    @pytest.mark.parametrize("kind", ["kept", "online", "features", "arcface and average"])
    @pytest.mark.parametrize("step", [3, 9])
    def test_a_stopped_run_ends_with_the_same_weights(self, cache, teacher, tmp_path, monkeypatch, kind, step):
        method = {"features": MethodConfig(name="kd,feature"), "arcface and average": MethodConfig(name="arcface")}
        asked = TeacherConfig(outputs="online" if kind == "online" else "auto")
        changes = {"ema": EmaConfig(decay=0.9)} if kind == "arcface and average" else {}
        who = None if kind == "arcface and average" else teacher

        def found(out):
            return options(cache, out, who, method.get(kind), asked=asked, **changes)

        distill(found(tmp_path / "straight"))
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(PreemptedError):
                distill(found(tmp_path / "run"))
        distill(found(tmp_path / "run"))
        assert same_model(tmp_path / "run", tmp_path / "straight")
        assert untimed(tmp_path / "run") == untimed(tmp_path / "straight")

    def test_a_signal_while_the_teacher_is_asked(self, cache, teacher, tmp_path, monkeypatch):
        """The run is saved, and goes on; what the teacher had said by then is asked again."""
        distill(options(cache, tmp_path / "straight", teacher))
        real, asked = TorchTeacher.ask, []

        def ask(self, levels):
            asked.append(1)
            if len(asked) == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            return real(self, levels)

        found = options(cache, tmp_path / "run", teacher)
        found = replace(found, teacher=replace(found.teacher, cache=tmp_path / "other", batch_size=16))
        with monkeypatch.context() as patch:
            patch.setattr(TorchTeacher, "ask", ask)
            with pytest.raises(PreemptedError):
                distill(found)
        assert len(asked) < 8, "it did not wait for the end of the pass"
        assert not list((tmp_path / "other").rglob("*"))
        distill(found)
        assert log_of(tmp_path / "run")[-1]["step"] == 21

    def test_with_another_place_for_the_answers(self, cache, teacher, tmp_path, monkeypatch):
        """As a full disk advises; and the teacher may have moved."""
        distill(options(cache, tmp_path / "straight", teacher))
        moved = tmp_path / "moved" / "teacher"
        moved.mkdir(parents=True)
        (moved / "best.safetensors").write_bytes((teacher / "best.safetensors").read_bytes())
        with monkeypatch.context() as patch:
            stop_at(patch, 3)
            with pytest.raises(PreemptedError):
                distill(options(cache, tmp_path / "run", teacher))
        found = options(cache, tmp_path / "run", moved)
        distill(replace(found, teacher=replace(found.teacher, cache=tmp_path / "other", batch_size=50)))
        assert log_of(tmp_path / "run")[-1]["step"] == 21

    def test_with_another_teacher_is_refused(self, cache, teacher, tmp_path, monkeypatch):
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "best.safetensors").write_bytes((teacher / "best.safetensors").read_bytes())
        with monkeypatch.context() as patch:
            stop_at(patch, 3)
            with pytest.raises(PreemptedError):
                distill(options(cache, tmp_path / "run", mine))
        (mine / "best.safetensors").write_bytes((teacher / "last.safetensors").read_bytes())
        if same(weights(teacher / "best.safetensors"), weights(teacher / "last.safetensors")):
            pytest.fail("the two files of the teacher are meant to differ")
        with pytest.raises(UsageError, match="the teacher is not the one"):
            distill(options(cache, tmp_path / "run", mine))


WRONG = {
    "no teacher": ({}, "kd needs a teacher; name one with --teacher.paths"),
    "a teacher for nothing": ({"method": MethodConfig(name="arcface")}, "asks no teacher"),
    "no such method": ({"method": MethodConfig(name="kdd")}, "kdd is unknown; there are kd, dkd"),
    "a method twice": ({"method": MethodConfig(name="kd,kd")}, "each once"),
    "balance of nothing": ({"method": MethodConfig(balanced=True)}, "which is 0; give 0.5 or 1"),
    "balance of images that are compared": (
        {"method": MethodConfig(name="kd,dist", balanced=True), "loss": LossConfig(class_balance=0.5)},
        "dist compares images, which count alike",
    ),
    "no such layer": ({"method": MethodConfig(name="feature", layer="blocks.9")}, "blocks.9: the network has no such"),
    "no sum": ({"method": MethodConfig(name="residual")}, "name both"),
    "mixed arcface": ({"method": MethodConfig(name="arcface"), "mix": MixConfig(mixup=1.0)}, "leave out --mix"),
    "not there": ({"teacher": TeacherConfig(paths="runs/nobody")}, "neither a run folder"),
    "arcface and logits": ({"method": MethodConfig(name="arcface,kd")}, "nothing that the classifier learns reaches"),
    "arcface of a sum": ({"method": MethodConfig(name="arcface"), "model": ModelConfig(name=SUM)}, "or several"),
    "inside of several": (
        {"method": MethodConfig(name="feature"), "teacher": TeacherConfig(paths="A,A")},
        "only logits",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_refused_before_anything_is_written(cache, teacher, tmp_path, case):
    changes, message = WRONG[case]
    found = replace(options(cache, tmp_path / "run", None if case == "no teacher" else teacher), **changes)
    if "paths" in str(changes.get("teacher", "")):
        paths = found.teacher.paths.replace("A", str(teacher))
        found = replace(found, teacher=replace(found.teacher, paths=paths))
    elif case in ("mixed arcface", "arcface of a sum"):
        found = replace(found, teacher=TeacherConfig())
    with pytest.raises((UsageError, ProblemFoundError), match=message):
        distill(found)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["", "best.safetensors"])
def test_a_teacher_is_not_replaced_by_its_student(cache, teacher, tmp_path, name):
    out = tmp_path / "run"
    out.mkdir()
    (out / "best.safetensors").write_bytes((teacher / "best.safetensors").read_bytes())
    with pytest.raises(UsageError, match=r"lies in --out .*take another"):
        distill(options(cache, out, out / name, overwrite=True))
    assert (out / "best.safetensors").is_file()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TeacherConfig(paths="a,b", combine="weighted", weights="1"), "names 1 weights for 2 teachers"),
        (lambda: TeacherConfig(paths="a,b", combine="weighted"), "give both or none"),
        (lambda: TeacherConfig(paths="a,b", weights="1,2"), "give both or none"),
        (lambda: TeacherConfig(paths="a,b", combine="weighted", weights="1,x"), "write for example 2,1"),
        (lambda: TeacherConfig(paths="a,b", combine="weighted", weights="1,0"), "each must be above 0"),
        (lambda: TeacherConfig(paths="a,b", combine="weighted", weights="1,nan"), "each must be above 0"),
        (lambda: TeacherConfig(batch_size=0), "batch_size must be"),
        (lambda: MethodConfig(alpha=1.5), "alpha must be 0 to 1"),
        (lambda: MethodConfig(temperature=0.0), "temperature must be"),
        (lambda: MethodConfig(margin=float("nan")), "margin must be"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_the_methods_explain_themselves():
    shown = subprocess.run([sys.executable, "-m", "training.distill", "--methods"], capture_output=True, text=True)
    assert shown.returncode == 0
    cards = [*(kind.card for kind in METHODS.values()), *WAYS]
    for card in cards:
        assert f"{card.name} · {card.title}" in shown.stdout
    assert shown.stdout.count("measured  macro F1 of") == len(cards)
    assert max(map(len, shown.stdout.splitlines())) <= 120
