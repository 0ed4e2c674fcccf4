"""The list of runs: what state each is in, from its folder and from Slurm's queue."""

import fcntl
import json

import pytest

from pipelines.errors import UsageError
from training import runs as job
from training.runs import RunsConfig, any_alive, held_files, look, queued_jobs, runs, state_of, table

QUEUE = "7|7|RUNNING|/a/slurm/train.sbatch|train|n1\n12|9_3|PENDING|/a/slurm/cache.sbatch|cache|(Dependency)\n"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run of two epochs that has been started twice by job 7, and a queue."""
    monkeypatch.setattr(job, "_squeue", lambda: QUEUE)
    run, log = tmp_path / "runs" / "a", tmp_path / "log"
    run.mkdir(parents=True)
    log.write_text("epoch 1\nepoch 2/4 · loss 0.5\n\nsrun: error: n1: task 0: Exited with exit code 75\n")
    starts = [{"started": "then"}, {"started": "now", "slurm": {"job": "7", "restarts": 1, "log": str(log)}}]
    (run / "run.json").write_text(json.dumps({"id": "x", "starts": starts}, indent=1))
    (run / "config.yaml").write_text("schedule:\n  epochs: 4\n")
    lines = [{"epoch": 1, "val_macro_f1": 0.75}, {"epoch": 2, "val_macro_f1": 0.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epo')
    return run


def test_a_run_in_slurm(made):
    report = look(made.parent, QUEUE)
    assert report["runs"] == [
        {
            "run": str(made),
            "state": "running",
            "job": "7",
            "epoch": 2,
            "epochs": 4,
            "macro_f1": 0.5,
            "best_macro_f1": 0.75,
            "starts": 2,
            "requeues": 1,
            "last": "epoch 2/4 · loss 0.5",
        }
    ]
    assert report["jobs"] == [{"job": "9_3", "name": "cache", "state": "pending", "reason": "(Dependency)"}]
    shown = table(report)
    assert "2/4" in shown
    assert "9_3" in shown


def test_waiting_after_a_preemption(made):
    waiting = "7|7|PENDING|/a/slurm/train.sbatch|train|(BeginTime)\n"
    assert look(made.parent, waiting)["runs"][0]["state"] == "waiting"


def test_finished_and_stopped(made, monkeypatch):
    monkeypatch.setattr(job, "_squeue", lambda: "")
    assert look(made.parent, "")["runs"][0]["state"] == "stopped"
    (made / "last.safetensors").write_bytes(b"")
    report = runs(RunsConfig(runs=made.parent, watch=True))  # ends, for nothing can change any more
    assert report["runs"][0]["state"] == "finished"
    assert not any_alive(report)


def test_a_run_of_this_machine_holds_its_lock(made):
    assert state_of(made, None, held_files()) == "stopped"
    with (made / ".lock").open("w") as file:
        assert state_of(made, None, held_files()) == "stopped"
        fcntl.flock(file, fcntl.LOCK_EX)
        if (made / ".lock").stat().st_ino not in {inode for _, inode in held_files()}:
            pytest.skip("this machine hides its locks (/proc/locks)")
        assert state_of(made, None, held_files()) == "running"
    assert state_of(made, None, held_files()) == "stopped"


def test_watching_shows_what_changes(made, monkeypatch, capsys):
    queues = iter([QUEUE, None, QUEUE.splitlines()[0], ""])  # once it does not answer
    monkeypatch.setattr(job, "_squeue", lambda: next(queues))
    report = runs(RunsConfig(runs=made.parent, watch=True, every=0.01))
    said = capsys.readouterr()
    assert said.err.count("running") == 3
    assert said.out == ""
    assert report["runs"][0]["state"] == "stopped"


def test_reasons_may_hold_anything():
    found = queued_jobs("5|5|PENDING|/a/slurm/train.sbatch|a|(Nodes | down)\n6|6|RUNNING|/opt/notebook.sh|b|n1\n")
    assert list(found) == ["5"]
    assert found["5"].reason == "(Nodes | down)"
    assert queued_jobs("") == {}


def test_a_half_written_run_is_listed_all_the_same(made):
    (made / "run.json").write_text("{")
    (made / "config.yaml").unlink()
    entry = look(made.parent, QUEUE)["runs"][0]
    assert (entry["epochs"], entry["starts"], entry["job"]) == (None, 0, None)


@pytest.mark.parametrize("starts", ["[1]", "1", "[{}]", '[{"slurm": 1}]', "null"])
def test_an_odd_run_is_listed_all_the_same(made, starts):
    (made / "run.json").write_text(f'{{"starts": {starts}}}')
    assert look(made.parent, QUEUE)["runs"][0]["job"] is None


def test_no_folder(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        runs(RunsConfig(runs=tmp_path / "nothing"))
