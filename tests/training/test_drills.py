"""Drills: runs that are killed, disks that are full, other numbers of processes; real processes.

The rule that all of them hold a run to: whoever runs the same command again gets the weights of a run that nobody
disturbed.
"""

import multiprocessing
import os
import random
import signal
import sys
from dataclasses import replace

import pytest

from tests.small_disk import as_root as as_root
from tests.small_disk import small_disk
from tests.training.interrupted import at
from tests.training.runs import config, log_of, same_model, srun, untimed
from training.engine.checkpoint import Checkpoints
from training.engine.config import EmaConfig, MixConfig, SaveConfig
from training.engine.preemption import PreemptedError
from training.train import train

pytestmark = pytest.mark.slow

KILLS = 15
PATIENCE = 400.0


def drilled(cache, out, **changes):
    """A run with everything that could be lost: an average, mixing, a plan of saving."""
    more = {"ema": EmaConfig(decay=0.9), "mix": MixConfig(cutmix=1.0), "save": SaveConfig(steps=2)}
    return config(cache, out, **{**more, **changes})


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(drilled(cache, out))
    return out


def _train_and_die(options, plan):
    """In a process of its own: die of a signal at some moment, or end with the status of the job."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the process ends with it
    if plan is not None:
        moment, count, number = plan
        at(moment, count, lambda: os.kill(os.getpid(), number))
    try:
        train(options)
    except PreemptedError as error:
        sys.exit(error.exit_status)


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported everything already, and have used no threads yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.train", "tests.training.interrupted"])

    def status_of(options, plan=None):
        process = context.Process(target=_train_and_die, args=(options, plan))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode is not None, "stuck"
        return process.exitcode

    return status_of


def assert_same(out, undisturbed):
    assert untimed(out) == untimed(undisturbed)
    for name in ("best.safetensors", "last.safetensors"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not [path for path in out.rglob(".*") if path.is_file()]


def test_killed_at_15_random_moments(processes, cache, undisturbed, tmp_path):
    """In steps, in evaluations, between the writing of a checkpoint and its renaming."""
    draw, killed = random.Random(5), 0
    for run in range(5):
        options = drilled(cache, tmp_path / str(run))
        for _ in range(KILLS // 5):
            done = [int(path.name[5:13]) for path in Checkpoints(options.out).paths()][-1:] or [0]
            moment = draw.choice(["step", "write", "evaluate"])
            count = draw.randrange(done[0], min(done[0] + 12, 28)) if moment == "step" else draw.randrange(3)
            killed += processes(options, (moment, count, signal.SIGKILL)) == -signal.SIGKILL
        assert processes(options) == 0
        assert_same(options.out, undisturbed)
    assert killed >= KILLS - 2  # a run may have come to its end before its moment


@pytest.mark.parametrize("moment", ["step", "evaluate", "write"])
def test_sigterm_in_training_evaluation_and_checkpoint(processes, cache, undisturbed, tmp_path, moment):
    options = drilled(cache, tmp_path / "run")
    assert processes(options, (moment, 2, signal.SIGTERM)) == 75
    assert Checkpoints(options.out).paths()
    assert processes(options) == 0
    assert_same(options.out, undisturbed)


@pytest.mark.parametrize(
    ("plan", "status"), [(None, 1), (("step", 26, signal.SIGUSR1), 75)], ids=["at the end", "when told to stop"]
)
def test_the_disk_is_full(as_root, processes, cache, undisturbed, tmp_path, plan, status):
    if not as_root:
        return
    options = drilled(cache, tmp_path / "disk" / "run", save=SaveConfig(steps=3))
    with small_disk(tmp_path / "disk", 1400) as resize:
        # Room for a checkpoint or two, but not for all that the end of the run wants.
        assert processes(options, plan) == status
        left = [path for path in options.out.rglob("*") if path.is_file()]
        assert not [path for path in left if ".partial-" in path.name]
        resize(20_000)
        assert processes(options) == 0
        assert_same(options.out, undisturbed)


def arguments(cache, out, *more):
    """The same options for the command line."""
    return [
        *("--data.path", cache, "--data.engine", "cpu", "--data.batch_size", "16", "--data.min_area", "0.6"),
        *("--trackers", "", "--model.name", "convnext_atto", "--optimizer.lr", "2e-4"),
        *("--schedule.epochs", "2", "--schedule.warmup_epochs", "0.5", "--out", out, *more),
    ]


def test_a_signal_to_one_process_stops_all_and_others_go_on(cache, tmp_path):
    """Two processes, of which the second alone hears the signal; then one goes on; then three."""
    straight = tmp_path / "straight"
    srun(1, "training.train", *arguments(cache, straight))
    out = tmp_path / "run"
    _, errors = srun(
        2,
        "tests.training.interrupted",
        '{"step": 4, "rank": 1, "signal": "SIGUSR1"}',
        *arguments(cache, out),
        expect=75,
    )
    assert "stopped by a signal to another process" in errors[0]
    assert "stopped by SIGUSR1" in errors[1]
    saved = Checkpoints(out).load(pytest.fail)
    assert saved["state"]["step"] in (5, 6)
    assert saved["loader"]["position"] == 16 * saved["state"]["step"]
    srun(1, "tests.training.interrupted", '{"step": 9, "signal": "SIGTERM"}', *arguments(cache, out), expect=75)
    # Other trackers than TensorBoard once ended the group of the processes before the others were through.
    srun(
        3,
        "tests.training.interrupted",
        '{"step": 999, "signal": "SIGTERM"}',
        *arguments(cache, out, "--trackers", "diary"),
    )
    for line, expected in zip(log_of(out), log_of(straight), strict=True):
        assert line["step"] == expected["step"]
        assert line["lr"] == expected["lr"]
        assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert line["val_macro_f1"] == pytest.approx(expected["val_macro_f1"], abs=0.2)


def test_beyond_the_cap_no_requeue_is_asked_for(cache, tmp_path):
    plan = '{"step": 1, "signal": "SIGUSR1"}'
    more = arguments(cache, tmp_path, "--max_requeues", "3")
    _, (error,) = srun(1, "tests.training.interrupted", plan, *more, expect=1, SLURM_RESTART_COUNT="3")
    assert "all that max_requeues (3) allows" in error
    assert Checkpoints(tmp_path).paths()


def test_it_is_the_same_model_that_the_fixture_compares(undisturbed, cache, tmp_path):
    """The comparison can fail: another seed is another model."""
    train(replace(drilled(cache, tmp_path), seed=1))
    assert not same_model(tmp_path, undisturbed)
