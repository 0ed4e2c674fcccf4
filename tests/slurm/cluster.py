"""The local cluster as tests see it."""

import os
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm" / "local_cluster.sh"
SLOWEST = 5
"""How many times as long as usual anything may take: other work may be going on beside these tests."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        environment: For all commands that talk to it.
    """

    environment: dict[str, str]

    def run(self, *words, check=True, **more):
        command = [str(word) for word in words]
        environment = {**self.environment, **more}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script, *words, log, sbatch=(), **more):
        command = ["sbatch", "--parsable", f"--output={log}", *sbatch, f"slurm/{script}.sbatch", *words]
        return self.run(*command, **more).strip()

    def show(self, job):
        text = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()[0]
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def until(self, what, seconds, job=None, log=None):
        """Wait for something to come true, or fail with what there is to see.

        Args:
            what: Gives something true in the end.
            seconds: That it may take on a machine which is not busy.
            job: To tell of, if it fails.
            log: The job's output.
        """
        seconds *= SLOWEST
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := what():
                return found
            time.sleep(0.5)
        text = log.read_text() if log is not None and log.exists() else ""
        raise AssertionError(f"waited {seconds} s in vain\n{self.show(job) if job else ''}\n{text[-4000:]}")

    def state(self, job):
        return self.show(job)["JobState"]

    def restarts(self, job):
        return int(self.show(job)["Restarts"])

    def ended(self, job, log, seconds=300):
        return self.until(lambda: (state := self.state(job)) in ENDED and state, seconds, job, log)

    def said(self, words, job, log, seconds=180):
        """Wait until something is in the output of a job."""
        self.until(lambda: log.exists() and words in log.read_text(), seconds, job, log)

    def completed(self, job, log, seconds=300):
        state = self.ended(job, log, seconds)
        assert state == "COMPLETED", f"{state}\n{log.read_text()[-4000:]}"

    def processes(self, job):
        """Processes that belong to a job, wherever they have got to."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
                name = (entry / "comm").read_text().strip()
            except OSError:
                continue
            if f"SLURM_JOB_ID={job}".encode() in words and f"SLURM_CONF={self.conf}".encode() in words:
                found.append(f"{entry.name} {name}")
        return found

    def left(self):
        """Processes of Slurm itself that work in the folder of the cluster."""
        folder = os.path.realpath(Path(self.conf).parent)
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                place = str((entry / "cwd").readlink()).removesuffix(" (deleted)")
                if place == folder and (entry / "comm").read_text().startswith("slurm"):
                    found.append(entry.name)
        return found

    @property
    def conf(self):
        return self.environment["SLURM_CONF"]


def start(folder, port, prefix):
    """Start a cluster whose jobs use the Python environment at `prefix`."""
    place = {"TACOPRESS_CLUSTER": str(folder), "TACOPRESS_CLUSTER_PORT": str(port), "VIRTUAL_ENV": str(prefix)}
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "TACOPRESS_"))
    }
    environment = {**clean, **place, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(SCRIPT), "up"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    site = {"SLURM_CONF": str(folder / "slurm.conf"), "TACOPRESS_SITE": str(folder / "site.env")}
    return Cluster(environment | site)
