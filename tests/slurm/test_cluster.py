"""The jobs on a real cluster of two nodes: same results as at home, and nothing that stops them for good."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from tests.slurm.cluster import ROOT, start
from tests.training.runs import free_port, log_of, same_model, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PID_FILES = ("slurmctld.pid", "slurmd-n1.pid", "slurmd-n2.pid", "munge/pid")
EPOCHS, SECONDS = 10, 15.0
"""Of the undisturbed run; how long the run that is disturbed is to last, however fast this machine is."""


@pytest.fixture(scope="module")
def recipe(cache, tmp_path_factory):
    """No batch normalisation, no dropout, and as many threads everywhere: what remains is what Slurm changes."""
    options = {
        "data": {"path": str(cache), "batch_size": 16, "min_area": 0.6, "engine": "cpu", "threads": 1},
        "model": {"name": "test_efficientnet_gn", "channels_last": False},
        "optimizer": {"name": "sgd", "lr": 0.005},
        "schedule": {"epochs": EPOCHS, "warmup_epochs": 0.5},
        "trackers": "",
        "threads": 1,
    }
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def at_home(recipe, out, *words):
    """Seconds of the epochs; the run is at `out`."""
    command = [sys.executable, "-m", "training.train", "--config", recipe, "--out", out, "--json", *words]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["seconds"]


@pytest.fixture(scope="module")
def pace(recipe, tmp_path_factory):
    """(an undisturbed run, its seconds per epoch)."""
    out = tmp_path_factory.mktemp("home") / "run"
    return out, at_home(recipe, out) / EPOCHS


@pytest.fixture(scope="module")
def undisturbed(pace):
    return pace[0]


@dataclass(frozen=True)
class Timed:
    """A run of about so many seconds, and what it comes to if nothing disturbs it."""

    recipe: Path
    epochs: int
    undisturbed: Path

    def submit(self, cluster, folder, *sbatch, **more):
        run, log = folder / "run", folder / "log"
        words = (self.recipe, "--schedule.epochs", self.epochs, "--out", run)
        return run, log, cluster.submit("train", *words, log=log, sbatch=sbatch, **more)


@pytest.fixture(scope="module")
def timed(recipe, pace, tmp_path_factory):
    out, epochs = tmp_path_factory.mktemp("home") / "timed", round(SECONDS / pace[1])
    at_home(recipe, out, "--schedule.epochs", epochs)
    return Timed(recipe, epochs, out)


def epochs_done(run):
    return len(log_of(run)) if (run / "metrics.jsonl").exists() else 0


@pytest.mark.parametrize("launch", ["srun", "accelerate"])
def test_two_nodes_are_one(cluster, recipe, undisturbed, tmp_path, launch):
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.submit("train", recipe, "--out", run, log=log, sbatch=["--nodes=2"], TACOPRESS_LAUNCH=launch)
    cluster.completed(job, log)
    assert "2 processes on cpu" in log.read_text()
    one, two = log_of(undisturbed), log_of(run)
    exact = ("epoch", "step", "lr", "val_macro_f1", "val_accuracy")
    assert [[line[name] for name in exact] for line in two] == [[line[name] for name in exact] for line in one]
    assert [line["train_loss"] for line in two] == pytest.approx([line["train_loss"] for line in one], rel=1e-5)
    alone, together = weights(undisturbed / "last.safetensors"), weights(run / "last.safetensors")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)


def test_one_node_is_this_machine(cluster, recipe, undisturbed, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    cluster.completed(cluster.submit("train", recipe, "--out", run, log=log), log)
    assert same_model(undisturbed, run)


def test_evaluation(cluster, undisturbed, cache, tmp_path):
    log = tmp_path / "log"
    words = (undisturbed, "--data", cache, "--out", tmp_path / "found", "--latency_rounds", "0")
    cluster.completed(cluster.submit("evaluate", *words, log=log), log)
    assert "macro F1" in log.read_text()
    assert (tmp_path / "found" / "evaluation_test.json").is_file()


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_array_builds_the_same_cache(cluster, photos, tmp_path):
    options = ("--size", "32", "--copies", "2", "--engine", "cpu", "--shard_mib", "0.02")
    build = [sys.executable, "-m", "augment_cache.build", "--data", photos, "--out", tmp_path / "home", *options]
    subprocess.run(list(map(str, build)), cwd=ROOT, check=True, capture_output=True)
    log, out = tmp_path / "log-%a", tmp_path / "cluster"
    job = cluster.submit("cache", photos, "--out", out, *options, log=log, sbatch=["--array=0-3"])
    tasks = [f"{job}_{number}" for number in range(4)]
    for number, task in enumerate(tasks):
        cluster.completed(task, tmp_path / f"log-{number}")
    assert len(files(out)) > 6
    assert files(out) == files(tmp_path / "home")


def own_site(cluster, folder, words):
    """A site.env of a test's own."""
    text = Path(cluster.environment["TACOPRESS_SITE"]).read_text()
    (folder / "site.env").write_text(f"{text}\n{words}\n")
    return {"TACOPRESS_SITE": str(folder / "site.env")}


def test_the_cache_is_staged_once_and_read_there(cluster, recipe, undisturbed, cache, tmp_path):
    site = own_site(cluster, tmp_path, f"scratch={tmp_path / 'scratch'}")
    mine, said = tmp_path / "cache", []
    shutil.copytree(cache, mine)
    for name in ("first", "second"):
        log = tmp_path / f"{name}.log"
        words = (recipe, "--data.path", mine, "--out", tmp_path / name)
        cluster.completed(cluster.submit("train", *words, log=log, **site), log)
        assert same_model(undisturbed, tmp_path / name)
        said.append(log.read_text())
        for shard in mine.rglob("*.arrow"):  # from now on only the copy has the images
            shard.unlink()
    assert f"{mine} copied to" in said[0]
    assert "is there already" in said[1]


def test_a_time_limit_is_survived(cluster, timed, tmp_path):
    run, log, job = timed.submit(cluster, tmp_path, "--time=60", "--signal=USR1@60")
    with frozen(cluster, run, log, job):  # or it would have finished by then; Slurm wakes up what it signals
        # Not before it trains: on a busy machine it would not listen yet.
        hours, minutes, _ = map(int, cluster.show(job)["RunTime"].split(":"))
        limit = 60 * hours + minutes + 2
        late = f"{(limit - 1) // 60:02}:{(limit - 1) % 60:02}:05"
        cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
        cluster.until(lambda: cluster.restarts(job) or cluster.show(job)["RunTime"] > late, 120, job, log)
    cluster.until(lambda: cluster.restarts(job), 120, job, log)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    cluster.completed(job, log, 600)
    assert cluster.restarts(job) >= 1
    assert "stopped by SIGUSR1" in log.read_text()
    assert "resuming" in log.read_text()
    assert same_model(timed.undisturbed, run)


@pytest.mark.parametrize("launch", ["srun", "accelerate"])
def test_a_signal_reaches_all_nodes(cluster, timed, tmp_path, launch):
    run, log, job = timed.submit(cluster, tmp_path, "--nodes=2", TACOPRESS_LAUNCH=launch)
    cluster.until(lambda: epochs_done(run) > 2, 120, job, log)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.until(lambda: cluster.restarts(job) == 1, 60, job, log)
    cluster.completed(job, log, 600)
    assert "resuming" in log.read_text()
    assert [line["step"] for line in log_of(run)] == [7 * (epoch + 1) for epoch in range(timed.epochs)]


def test_preemption_is_survived(cluster, timed, tmp_path):
    run, log, job = timed.submit(cluster, tmp_path, "--exclusive", "--nodelist=n1")
    with frozen(cluster, run, log, job):  # or it would have finished before Slurm makes room
        urgent = cluster.run(
            *("sbatch", "--parsable", "--partition=urgent", "--nodelist=n1", "--exclusive", "--output=/dev/null"),
            *("--wrap", "sleep 3"),
        ).strip()
        cluster.until(lambda: cluster.restarts(job) >= 1, 120, job, log)
    cluster.ended(urgent, log, 120)
    cluster.completed(job, log, 600)
    assert "stopped by SIGTERM" in log.read_text()
    assert same_model(timed.undisturbed, run)


def test_a_dead_node_is_survived(cluster, timed, tmp_path):
    run, log, job = timed.submit(cluster, tmp_path)
    with without_node(cluster, "fail", run, log, job):
        cluster.completed(job, log, 600)
    assert cluster.restarts(job) == 1
    assert same_model(timed.undisturbed, run)


def test_a_node_that_lives_on_out_of_sight_is_not_disturbed(cluster, timed, tmp_path):
    """The job, started again elsewhere, finds its first start still at work, and comes back until that has finished."""
    run, log, job = timed.submit(cluster, tmp_path)
    with ExitStack() as first:
        first.enter_context(frozen(cluster, run, log, job))  # or it would have finished before Slurm has noticed
        with without_node(cluster, "lose", run, log, job):
            cluster.said("still being trained", job, log)
            first.close()
            cluster.completed(job, log, 600)
    assert len(log_of(run)) == timed.epochs
    assert same_model(timed.undisturbed, run)


@contextmanager
def frozen(cluster, run, log, job):
    """The processes of a job that has begun to train stand still."""
    cluster.until(lambda: epochs_done(run) > 2, 120, job, log)
    processes = [int(line.split()[0]) for line in cluster.processes(job) if "python" in line]
    assert processes
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


@contextmanager
def without_node(cluster, how, run, log, job):
    """The node of a job that has begun to train is gone; Slurm has started the job again."""
    cluster.until(lambda: epochs_done(run) > 2, 120, job, log)
    node = cluster.show(job)["NodeList"]
    cluster.run("slurm/local_cluster.sh", how, node)
    try:
        cluster.until(lambda: cluster.restarts(job) >= 1, 180, job, log)
        yield
        assert cluster.show(job)["NodeList"] != node
    finally:
        cluster.run("slurm/local_cluster.sh", "recover", node)
        cluster.until(lambda: cluster.run("sinfo", "-h", "-n", node, "-o", "%T").split()[0] in ("idle", "mixed"), 90)


def test_what_was_cancelled_stays_cancelled(cluster, timed, tmp_path):
    run, log, job = timed.submit(cluster, tmp_path)
    cluster.until(lambda: epochs_done(run) > 2, 120, job, log)
    cluster.run("scancel", job)
    cluster.ended(job, log, 60)
    time.sleep(12)  # longer than a job that is queued again has to wait
    assert cluster.state(job) == "CANCELLED"
    assert cluster.restarts(job) == 0
    assert cluster.processes(job) == []
    assert list((run / "checkpoints").glob("step-*.pt")), "it could not go on"


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_bad_recipe_fails_in_seconds_and_leaves_nothing_behind(cluster, recipe, tmp_path, nodes):
    log, bad = tmp_path / "log", tmp_path / "bad.yaml"
    bad.write_text(recipe.read_text() + "no_such_option: 1\n")
    job = cluster.submit("train", bad, "--out", tmp_path / "run", log=log, sbatch=[f"--nodes={nodes}"])
    cluster.said("no_such_option", job, log)
    assert cluster.ended(job, log, 12) == "FAILED"  # the other node is not waited for, which srun does for 90 s
    assert "Traceback" not in log.read_text()
    assert cluster.show(job)["ExitCode"] == "2:0"
    assert cluster.restarts(job) == 0
    assert cluster.processes(job) == []
    assert not (tmp_path / "run").exists()


def test_wrong_data_on_two_nodes_fails_on_both(cluster, recipe, tmp_path):
    log = tmp_path / "log"
    words = (recipe, "--data.path", tmp_path / "nothing", "--out", tmp_path / "run")
    job = cluster.submit("train", *words, log=log, sbatch=["--nodes=2"])
    cluster.said(str(tmp_path / "nothing"), job, log)
    assert cluster.ended(job, log, 12) == "FAILED"
    assert cluster.processes(job) == []


def pretending(cluster, folder, script):
    """A site where `python` is something else."""
    (folder / "python").write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / "python").chmod(0o755)
    return own_site(cluster, folder, f"activate() {{ PATH={folder}:$PATH; }}\nscratch= max_requeues=2")


def test_nobody_is_queued_again_for_ever(cluster, recipe, tmp_path):
    log = tmp_path / "log"
    job = cluster.submit("train", recipe, log=log, **pretending(cluster, tmp_path, "exit 75"))
    cluster.said("stopped after 2 restarts", job, log)
    assert cluster.ended(job, log, 60) == "FAILED"
    assert cluster.restarts(job) == 2
    assert log.read_text().count("queued again, restart") == 2  # appended, not begun anew


def test_all_tasks_of_an_array_are_queued_again(cluster, photos, tmp_path):
    """One of them has the number of the whole array."""
    site = pretending(cluster, tmp_path, "exit $(( SLURM_RESTART_COUNT > 0 ? 0 : 75 ))")
    job = cluster.submit("cache", photos, log=tmp_path / "log-%a", sbatch=["--array=0-3"], **site)
    for number in range(4):
        cluster.completed(f"{job}_{number}", tmp_path / f"log-{number}")
        assert cluster.restarts(f"{job}_{number}") == 1


def test_runs_are_listed(cluster, timed, tmp_path):
    run, log, job = timed.submit(cluster, tmp_path)
    with frozen(cluster, run, log, job):
        shown = cluster.run(sys.executable, "-m", "training.runs", "--runs", tmp_path, "--json")
    cluster.run("scancel", job)
    entry = yaml.safe_load(shown)["runs"][0]
    assert entry["state"] == "running"
    assert entry["job"] == job
    assert entry["epochs"] == timed.epochs
    assert entry["epoch"] >= 2
    assert entry["last"].startswith("epoch ")


@pytest.mark.real
def test_the_road(cluster, taco_folder, tmp_path):
    """All of it, timed, on crops of real photos."""
    crops, out = tmp_path / "crops", tmp_path / "out"
    crop = [sys.executable, "-m", "augment_cache.crop", "--data", taco_folder, "--out", crops]
    subprocess.run(list(map(str, crop)), cwd=ROOT, check=True, capture_output=True)
    recipe = tmp_path / "ladder.yaml"
    rungs = [{"press": "channels", "target_share": 0.75}]
    recipe.write_text(yaml.safe_dump({"recover": "recover", "options": {"schedule.epochs": 1}, "rungs": rungs}))
    short = "--schedule.epochs 2 --schedule.warmup_epochs 0.5"
    settings = {"CACHE": "--size 80 --copies 1", "TEACHER": f"quick {short}", "STUDENT": f"quick {short}", "NODES": "2"}
    shown = subprocess.run(
        ["slurm/road.sh", str(crops), str(out)],
        cwd=ROOT,
        env={**cluster.environment, **settings, "LADDER": f"{recipe} --latency_rounds 0"},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    jobs = dict(line.split() for line in shown.stderr.splitlines()[:-1])
    for name, job in jobs.items():
        if name != "cache":
            cluster.completed(job, out / "logs" / f"{name}-{job}.log", 1500)
    assert (out / "ladder" / "model.safetensors").is_file()
    assert (out / "ladder" / "evaluation_test.json").is_file()


def local_cluster(*words, folder, **more):
    environment = {**os.environ, "TACOPRESS_CLUSTER": str(folder), **more}
    script = ROOT / "slurm" / "local_cluster.sh"
    return subprocess.run([script, *words], env=environment, capture_output=True, text=True, timeout=60)


def test_a_cluster_touches_no_folder_but_its_own(cluster, tmp_path):
    (tmp_path / "slurm.conf").write_text("somebody's\n")
    for word in ("up", "down"):
        done = local_cluster(word, folder=tmp_path, TACOPRESS_CLUSTER_PORT=str(free_port()))
        assert done.returncode == 2
        assert str(tmp_path) in done.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("slurm.conf", "somebody's\n")]


def test_a_cluster_is_started_once_and_beside_others(cluster, tmp_path):
    mine, port = Path(cluster.conf).parent, cluster.environment["TACOPRESS_CLUSTER_PORT"]
    assert "is up already" in local_cluster("up", folder=mine, TACOPRESS_CLUSTER_PORT=port).stderr
    done = local_cluster("up", folder=tmp_path / "other", TACOPRESS_CLUSTER_PORT=port)
    assert done.returncode == 2
    assert f"port {port} is taken" in done.stderr
    assert not (tmp_path / "other").exists()


def test_down_ends_all_daemons_before_it_deletes_the_folder(cluster):
    """Munge writes to the folder when it ends; here it takes for ever."""
    folder = Path(tempfile.mkdtemp(prefix="tacopress-"))
    own = start(folder, free_port(), sys.prefix)
    daemons = {name: int((folder / name).read_text()) for name in PID_FILES}
    for name, pid in daemons.items():
        os.kill(pid, signal.SIGSTOP if name == "munge/pid" else signal.SIGKILL)
    own.run("slurm/local_cluster.sh", "down")
    assert not folder.exists()
    for pid in daemons.values():
        cluster.until(lambda pid=pid: not running(pid), 5)


def running(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
