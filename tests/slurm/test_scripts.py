"""The scripts without a cluster: their text, what they start, and when they ask to be queued again."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT

SLURM = ROOT / "slurm"
JOBS = ("cache", "train", "distill", "ladder", "evaluate")
SCRIPTS = sorted([*SLURM.glob("*.sh"), *SLURM.glob("*.sbatch"), SLURM / "site.env"])
GOLDEN = Path(__file__).parent / "goldens" / "road.txt"

FAKES = {
    "srun": 'printf "%s\\n" "$*" >>"$CALLS/srun"; env >"$CALLS/env"; exit "${STATUS:-0}"',
    "squeue": 'case "$*" in *--jobs="$ASKED "*) echo "${STATE:-RUNNING}" ;; *) echo "COMPLETING of others" ;; esac',
    "scontrol": 'case "$1 $2" in "show hostnames") printf "n1\\nn2\\n" ;; '
    '"show job") echo " PreemptTime=${PREEMPT:-None}" ;; *) printf "%s\\n" "$*" >>"$CALLS/scontrol" ;; esac',
    "sbatch": 'printf "%s\\n" "$*" >>"$CALLS/sbatch"; n=$(wc -l <"$CALLS/sbatch"); echo "$n"; [ "$n" != "$REFUSE" ]',
}


@pytest.fixture
def fake(tmp_path):
    """Run a script among commands that only write down how they were called."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in FAKES.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)
    site = tmp_path / "site.env"
    site.write_text("max_requeues=3\n")

    def run(script, *words, **more):
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NAME": "job"}
        job |= {
            "SLURM_CPUS_ON_NODE": "8",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "CALLS": str(tmp_path),
            "ASKED": "7",
            "REFUSE": "",
        }
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "TACO"))
        }
        path = f"{commands}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", SLURM / script, *map(str, words)],
            env={**clean, **job, "PATH": path, "TACOPRESS_SITE": str(site), **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    run.site = site
    run.calls = lambda name: (tmp_path / name).read_text().splitlines() if (tmp_path / name).exists() else []
    run.env = lambda: dict(line.split("=", 1) for line in run.calls("env") if "=" in line)
    return run


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="NOT CHECKED: shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("job", JOBS)
def test_what_every_job_says_to_slurm(job):
    text = (SLURM / f"{job}.sbatch").read_text()
    said = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert said["job-name"] == job
    assert job == "evaluate" or re.fullmatch(r"USR1@\d+", said["signal"])  # an evaluation has nothing to save
    assert said["open-mode"] == "append"
    assert "requeue" in said
    assert said["output"] == ("slurm/logs/%x-%A_%a.log" if job == "cache" else "slurm/logs/%x-%j.log")
    assert len(text.splitlines()) <= 25


def test_nothing_stands_between_srun_and_python():
    last = (SLURM / "rank.sh").read_text().splitlines()[-1]
    assert last == 'exec "$@"'
    for script in (*SLURM.glob("*.sbatch"), SLURM / "common.sh"):
        assert not re.search(r"^\s*(exec )?python ", script.read_text(), re.MULTILINE), script


def test_a_rank_becomes_its_job(tmp_path):
    """Signals reach the process that srun has started; only if that is Python itself does it hear them."""
    (tmp_path / "python").write_text(
        '#!/usr/bin/env bash\necho "$$ $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $*"\n'
    )
    (tmp_path / "python").chmod(0o755)
    place = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "TACOPRESS_WORLD": "4", "TACOPRESS_PER_NODE": "2"}
    environment = {**os.environ, **place, "TACOPRESS_CONTAINER": "none", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", SLURM / "rank.sh", "ranks", "training.train", "--out", "a b"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        said = process.communicate()[0]
    assert said == f"{process.pid} 3 4 1 2 -m training.train --out a b\n"


def test_the_chain_is_this():
    done = subprocess.run(
        ["bash", SLURM / "road.sh", "--dry-run", "/data/crops", "/data/out"],
        env={"PATH": os.environ["PATH"], "TACOPRESS_SITE": os.devnull},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr == GOLDEN.read_text()


def test_each_job_of_the_chain_waits_for_the_one_before(fake, tmp_path):
    (tmp_path / "crops").mkdir()
    done = fake("road.sh", "crops", "out", NODES="2", EACH="--time=10", TEACHER="demo --schedule.epochs 3")
    assert done.returncode == 0, done.stderr
    calls = fake.calls("sbatch")
    after = [re.findall(r"--dependency=afterok:(\d+)", call) for call in calls]
    assert after == [[], ["1"], ["2"], ["2"], ["4"], ["4"], ["6"]]
    assert all("--time=10" in call for call in calls)
    assert "--nodes=2 slurm/train.sbatch demo --schedule.epochs 3 --data.path" in calls[1]
    assert str(tmp_path / "out" / "cache") in calls[0]
    names = [line.split()[0] for line in done.stderr.splitlines()[:-1]]
    assert names == [
        *("cache", "teacher", "evaluate-teacher", "student", "evaluate-student", "ladder", "evaluate-ladder"),
    ]


@pytest.mark.parametrize(
    ("status", "more", "again", "ends"),
    [
        ("0", {}, False, 0),
        ("2", {}, False, 2),
        ("75", {}, True, 75),
        ("138", {}, True, 138),  # USR1, while Python was being started
        ("143", {}, False, 143),
        ("143", {"PREEMPT": "2026-01-01T00:00:00"}, True, 143),
        ("75", {"STATE": "COMPLETING"}, False, 75),  # cancelled
        ("75", {"STATE": "CANCELLED"}, False, 75),
        ("75", {"STATE": ""}, True, 75),  # the controller is busy
        ("75", {"SLURM_RESTART_COUNT": "2"}, True, 75),
        ("75", {"SLURM_RESTART_COUNT": "3"}, False, 1),
    ],
)
def test_who_is_queued_again(fake, status, more, again, ends):
    done = fake("train.sbatch", "demo", STATUS=status, **more)
    assert fake.calls("scontrol") == (["requeue 7"] if again else [])
    assert done.returncode == ends, done.stderr


def test_a_task_of_an_array_is_queued_again_by_its_own_name(fake):
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "3", "ASKED": "5_2"}
    fake("cache.sbatch", "crops", "--out", "cache", STATUS="138", **array)
    assert fake.calls("scontrol") == ["requeue 5_2"]
    assert fake.calls("srun")[0].endswith("augment_cache.build --data crops --out cache --part 2 --of 4")


def test_more_processes_than_cores_are_refused(fake):
    """srun would wait for ever, with the whole allocation."""
    cores = {"SLURM_JOB_CPUS_PER_NODE": "8(x3),2"}
    done = fake("train.sbatch", "demo", SLURM_GPUS_ON_NODE="4", **cores)
    assert done.returncode == 2
    assert "4 processes per node, but 2 cores" in done.stderr
    assert fake.calls("srun") == []
    assert fake("train.sbatch", "demo", SLURM_GPUS_ON_NODE="2", **cores).returncode == 0
    assert "--cpus-per-task=1 " in fake.calls("srun")[0]


def test_a_job_that_is_refused_ends_the_chain(fake, tmp_path):
    (tmp_path / "crops").mkdir()
    done = fake("road.sh", "crops", "out", REFUSE="3")
    assert done.returncode == 1
    assert "evaluate-teacher was refused" in done.stderr
    assert len(fake.calls("sbatch")) == 3


def test_options_of_the_cache(fake, tmp_path):
    (tmp_path / "crops").mkdir()
    fake("road.sh", "crops", "out", PARTS="16%4", SBATCH_GPUS_PER_NODE="4")
    assert "--gpus-per-node=1 --array=0-15%4 slurm/cache.sbatch" in fake.calls("sbatch")[0]


def test_one_part_alone(fake):
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "2", "PARTS": "8"}
    fake("cache.sbatch", "build.yaml", **array)
    assert fake.calls("srun")[0].endswith("augment_cache.build --config build.yaml --part 2 --of 8")


def test_a_task_per_gpu_and_its_share_of_the_cores(fake):
    fake(
        "train.sbatch", "demo", "--seed", "1", SLURM_GPUS_ON_NODE="4", SLURM_NTASKS_PER_NODE="1", SLURM_CPUS_PER_GPU="2"
    )
    call, env = fake.calls("srun")[0], fake.env()
    assert "--nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=2 " in call
    assert call.endswith("slurm/rank.sh ranks training.train --config training/recipes/demo.yaml --seed 1")
    assert "--gpus-per-node=4 " in call
    assert "ACCELERATE_USE_CPU" not in env
    assert "SLURM_CPUS_PER_GPU" not in env
    assert env["OMP_NUM_THREADS"] == "2"
    assert (env["TACOPRESS_WORLD"], env["TACOPRESS_PER_NODE"], env["MASTER_ADDR"]) == ("8", "4", "n1")


def test_one_process_knows_of_no_other(fake):
    fake("train.sbatch", "demo", SLURM_JOB_NUM_NODES="1")
    assert "slurm/rank.sh alone training.train" in fake.calls("srun")[0]
    assert fake.env()["ACCELERATE_USE_CPU"] == "true"


def test_accelerate_gets_a_task_per_node(fake):
    fake.site.write_text("launch=accelerate\n")
    fake("train.sbatch", "demo", SLURM_GPUS_ON_NODE="4")
    call = fake.calls("srun")[0]
    assert "--ntasks=2 --ntasks-per-node=1 --cpus-per-task=8 " in call
    assert "rank.sh accelerate" in call
    assert fake.env()["TACOPRESS_GPUS"] == "4"


@pytest.mark.parametrize("job", ["ladder", "evaluate"])
def test_jobs_of_one_process(fake, job):
    fake(f"{job}.sbatch", *(["small", "--model", "run"] if job == "ladder" else ["run"]), SLURM_GPUS_ON_NODE="4")
    call = fake.calls("srun")[0]
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=8 " in call
    assert ("--recipe compress/recipes/small.yaml --model run" if job == "ladder" else "--model run") in call


def test_ports_differ_between_jobs_and_restarts(fake):
    ports = set()
    for job, restarts in (("7", "0"), ("8", "0"), ("7", "1"), ("8", "1")):
        fake("train.sbatch", "demo", SLURM_JOB_ID=job, SLURM_RESTART_COUNT=restarts)
        ports.add(int(fake.env()["MASTER_PORT"]))
    assert len(ports) == 4
    assert all(12000 <= port < 26000 for port in ports)


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (
            "pyxis",
            "--container-image=image.sqsh --container-mounts={root}:{root},/s:/s,/a:/a --container-workdir={root} bash",
        ),
        ("none", "--wait=90 bash slurm/rank.sh"),
        ("apptainer", "--wait=90 bash slurm/rank.sh"),
    ],
)
def test_containers(fake, container, words):
    fake.site.write_text(f"container={container} image=image.sqsh mounts=/a:/a scratch=/s\n")
    fake("train.sbatch", "demo", "--data.path", "nowhere")
    assert words.format(root=ROOT) in fake.calls("srun")[-1]
    assert fake.env()["TACOPRESS_MOUNTS"] == f"{ROOT}:{ROOT},/s:/s,/a:/a"


def test_apptainer_becomes_the_job(tmp_path):
    (tmp_path / "apptainer").write_text('#!/usr/bin/env bash\necho "$$ $*"\n')
    (tmp_path / "apptainer").chmod(0o755)
    place = {"TACOPRESS_CONTAINER": "apptainer", "TACOPRESS_IMAGE": "a.sif", "TACOPRESS_MOUNTS": "/a:/a"}
    environment = {**os.environ, **place, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", SLURM / "rank.sh", "alone", "training.train"]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        said = process.communicate()[0]
    assert said == f"{process.pid} exec --nv --bind /a:/a --pwd {ROOT} a.sif python -m training.train\n"


def test_the_cache_is_staged_where_there_is_a_scratch_disk(fake, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "manifest.json").write_text("{}")
    fake.site.write_text("scratch=/local/me\n")
    fake("train.sbatch", "demo", f"--data.path={tmp_path / 'cache'}")
    stage, train = fake.calls("srun")
    assert "--wait=0 " in stage  # a node that has the copy already ends at once
    assert "--wait=90 " in train
    assert f"rank.sh alone augment_cache.stage --cache {tmp_path / 'cache'} --scratch /local/me" in stage
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 " in stage
    assert "training.train" in train
    assert fake.env()["TACOPRESS_SCRATCH"] == "/local/me"


@pytest.mark.parametrize("path", ["a b", '"a b"', "'a b'  # of today"])
@pytest.mark.parametrize("words", [(), ("--data.path", "c"), ("--data.path=a", "--data.path=c")])
def test_the_cache_of_a_recipe_is_found(fake, tmp_path, path, words):
    for name in ("a b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model:\n  path: x\ndata:\n  size: 8\n  path: {path}\nout: y\n")
    fake.site.write_text("scratch=/s\n")
    text = (SLURM / "train.sbatch").read_text().replace('cd "$SLURM_SUBMIT_DIR"', f'cd "{tmp_path}"')
    (tmp_path / "train.sbatch").write_text(text)
    (tmp_path / "slurm").symlink_to(SLURM)
    done = fake(tmp_path / "train.sbatch", recipe, *words)
    assert f"augment_cache.stage --cache {'c' if words else 'a b'} --scratch /s" in fake.calls("srun")[0], done.stderr


def test_what_is_not_staged_is_said(fake):
    fake.site.write_text("scratch=/s\n")
    assert "not staged: there is no cache at 'nowhere'" in fake("train.sbatch", "demo", "--data.path", "nowhere").stderr


@pytest.mark.parametrize("script", ["train", "ladder"])
def test_an_unknown_recipe_ends_at_once_with_the_choice(fake, script):
    done = fake(f"{script}.sbatch", "no_such_recipe")
    assert done.returncode == 2
    assert "there is no recipe no_such_recipe" in done.stderr
    assert f" {'quick' if script == 'train' else 'small'}" in done.stderr
    assert fake.calls("srun") == []


def test_a_forgotten_site_is_noticed(fake):
    fake.site.write_text("export SBATCH_PARTITION=gpu\n")
    assert "before sbatch" in fake("train.sbatch", "demo", SLURM_JOB_PARTITION="cpu").stderr
    assert "before sbatch" not in fake("train.sbatch", "demo", SLURM_JOB_PARTITION="gpu").stderr
    asked = fake("train.sbatch", "demo", SLURM_JOB_PARTITION="cpu", SBATCH_PARTITION="gpu")
    assert "before sbatch" not in asked.stderr  # then the command line has said otherwise


@pytest.mark.parametrize(
    ("raised", "status"), [("exit", 75), ("usr1", 75), ("term", 75), ("int", 130), ("killed", 137)]
)
def test_accelerate_ends_with_the_status_of_its_processes(raised, status):
    import signal

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    sys.path.insert(0, str(SLURM))
    try:
        from accelerate_launch import status_of
    finally:
        sys.path.pop(0)
    signals = {"usr1": signal.SIGUSR1, "term": signal.SIGTERM, "int": signal.SIGINT}
    if raised in signals:
        error = SignalException("told to stop", signals[raised])
    else:
        code = {"exit": 75, "killed": -9}[raised]
        error = ChildFailedError("job", {0: ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="none")})
    assert status_of(error) == status
