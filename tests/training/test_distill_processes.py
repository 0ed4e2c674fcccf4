"""Distillation on one process and on two is the same: no method takes a part of the batch for the whole of it."""

import pytest

from tests.training.runs import config, log_of, srun
from training.engine.optimization import ScheduleConfig
from training.train import train

pytestmark = pytest.mark.slow

GROUPED = "test_efficientnet_gn"
"""No batch normalisation, no dropout: nothing depends on how a batch is cut."""
EXACT = ("epoch", "step", "lr", "val_macro_f1", "val_accuracy")


@pytest.fixture(scope="module")
def teacher(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    train(config(cache, out, schedule=ScheduleConfig(epochs=2, warmup_epochs=0.5)))
    return out


def distilled(processes, cache, out, teacher, *more, model=GROUPED):
    """Two epochs of seven steps; SGD, for which a gradient of twice the size is another step.

    Returns:
        Standard error of the first process.
    """
    asked = ("--teacher.paths", teacher, "--teacher.cache", out.parent / f"answers-{out.name}") if teacher else ()
    _, errors = srun(
        processes,
        "training.distill",
        *("--data.path", cache, "--data.engine", "cpu", "--data.batch_size", "16", "--data.min_area", "0.6"),
        *("--data.views", "2", "--model.name", model, "--model.channels_last", "false"),
        *("--optimizer.name", "sgd", "--optimizer.lr", "0.005", "--schedule.epochs", "2"),
        *("--schedule.warmup_epochs", "0.5", "--trackers", "", "--save.steps", "1000", "--out", out, *asked, *more),
    )
    assert f"{processes} process" in errors[0]
    return errors[0]


VARIANTS = {
    "kd": ["--method.name", "kd"],
    "kd of mixed images": [
        *("--method.name", "kd", "--teacher.outputs", "online", "--mix.mixup", "0.4", "--teacher.only_right", "true")
    ],
    "dist": [
        *("--method.name", "dist", "--method.alpha", "0.9", "--method.temperature", "1"),
        *("--optimizer.lr", "0.002"),  # correlations of almost equal probabilities make much of the last bits
    ],
    "relational": ["--method.name", "relational", "--teacher.batch_size", "16", "--accumulate", "2"],
    "kd,feature": ["--method.name", "kd,feature", "--model.sync_batchnorm", "true"],
    "arcface": ["--method.name", "arcface", "--ema.decay", "0.9"],
    "auxiliary": ["--method.name", "auxiliary", "--method.layers", "blocks.1,blocks.2", "--method.alpha", "0.6"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_processes_changes_neither_loss_nor_rate_nor_score(cache, teacher, tmp_path, variant):
    """Each run has a teacher's answers of its own: those that two processes gather are those of one."""
    model = "test_efficientnet" if "sync_batchnorm" in " ".join(VARIANTS[variant]) else GROUPED
    who = None if variant in ("arcface", "auxiliary") else teacher
    for processes in (1, 2):
        said = distilled(processes, cache, tmp_path / str(processes), who, *VARIANTS[variant], model=model)
        if who is not None:
            assert ("answers are kept beside the data" in said) != ("online" in VARIANTS[variant])
    one, two = (log_of(tmp_path / str(processes)) for processes in (1, 2))
    assert len(one) == len(two) == 2
    for alone, together in zip(one, two, strict=True):
        assert {name: together[name] for name in EXACT} == {name: alone[name] for name in EXACT}
        assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)
        assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-4)


def test_what_two_processes_wrote_down_one_need_not_ask_again(cache, teacher, tmp_path):
    """One file a round, whoever asked; a file that is written anew has another time and another place on the disk."""
    answers = tmp_path / "answers"
    options = ("--method.name", "kd", "--teacher.outputs", "cached", "--teacher.cache", answers)

    def files():
        found = {path.name: path.stat() for path in answers.rglob("*") if path.is_file()}
        return {name: (about.st_mtime_ns, about.st_ino, about.st_size) for name, about in found.items()}

    said = distilled(2, cache, tmp_path / "two", teacher, *options)
    written = files()
    assert sorted(name.rpartition("-")[2] for name in written) == ["00000.arrow", "00001.arrow"]
    again = distilled(1, cache, tmp_path / "one", teacher, *options)
    assert files() == written
    for text in (said, again):
        assert "answers are kept beside the data" in text
        assert "asking the teacher again" not in text
    assert "images/s" in again
    one, two = (log_of(tmp_path / name) for name in ("one", "two"))
    assert [line["train_loss"] for line in one] == pytest.approx([line["train_loss"] for line in two], rel=1e-5)
