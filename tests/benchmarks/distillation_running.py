"""What `tests.benchmarks.distillation` runs: the rows of the table, teachers, students, and the files of results."""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from augment_cache.format.manifest import file_sha256
from pipelines.console.files import write_json
from tests.benchmarks.real_data import RECIPES, job, prepare
from tests.benchmarks.rivals.facts import circumstances
from training.measure.predictions import read_predictions

RESULTS = Path(__file__).parent / "results" / "distillation.json"
PACKAGES = ("torch", "timm", "pytorchcv", "opencv-python-headless", "simplejpeg", "numpy")
CACHE_SIZE, VIEWS = 112, 8
TEACHER_EPOCHS = 5
DATA = ("trashnet", "taco")
STUDENTS = {"shufflenet_g3_wd4": "competition", "mobilenetv3_small_050": "quick"}
SUMS = {
    "shufflenet_g3_wd4": "sum:shufflenet_g3_x025_2_5_2+shufflenet_g3_x025_1_1_1",
}
"""Student and assistant within the MACs of the student; of mobilenetv3_small, timm has nothing smaller."""
MAIN, FEWER = (0, 1, 2, 3, 4), (0, 1, 2)
T, T2, INNER = "{teacher}.onnx", "{teacher}.onnx,{second}.onnx", "{teacher}"
"""Teachers are asked through onnxruntime, which answers 2.5 times as fast, except for what is inside of them."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        card: The method whose card tells of it; empty for none.
        words: Options of the distill job; `{teacher}` and `{second}` stand for runs; with .onnx for their exports.
        seeds: How many.
        before: Share of the epochs that an autoencoder gets before.
    """

    card: str
    words: tuple[str, ...]
    seeds: tuple[int, ...] = FEWER
    before: float = 0.0


def _method(name, teacher=T, *words):
    return ("--method.name", name, *(("--teacher.paths", teacher) if teacher else ()), *words)


ROWS = {
    "none": Row("", ("--method.alpha", "0", "--teacher.paths", T), MAIN),
    "kd": Row("kd", _method("kd"), MAIN),
    "kd, balanced": Row("--method.balanced true", _method("kd", T, "--method.balanced", "true"), MAIN),
    "dist": Row("dist", _method("dist")),
    "dkd": Row("dkd", _method("dkd")),
    "kd, T = 20, alpha = 0.3 (the competition's)": Row(
        "", _method("kd", T, "--method.temperature", "20", "--method.alpha", "0.3")
    ),
    "kd, only where the teacher is right": Row(
        "--teacher.only_right", _method("kd", T, "--teacher.only_right", "true")
    ),
    "kd, mean of two teachers": Row("--teacher.paths A,B", _method("kd", T2)),
    "kd, the better of two teachers": Row("--teacher.combine best", _method("kd", T2, "--teacher.combine", "best")),
    "kd, chain through mobilenetv3_small_100": Row("--chain B", _method("kd", T, "--chain", "mobilenetv3_small_100")),
    "feature": Row("feature", _method("feature", INNER)),
    "kd + feature": Row("", _method("kd,feature", INNER)),
    "kd + feature, 320 channels": Row("", _method("kd,feature", INNER, "--method.teacher_layer", "blocks.6")),
    "relational": Row("relational", _method("relational", INNER)),
    "residual": Row("residual", _method("residual")),
    "arcface": Row("arcface", _method("arcface", "")),
    "auxiliary": Row("auxiliary", _method("auxiliary", "")),
    "autoencoder": Row("autoencoder", ("--method.alpha", "0", "--teacher.paths", T), before=0.3),
}
BASE = "none"
PLACE = ("data", "student", "row", "seed")
"""Where a run stands in the table."""


@dataclass(frozen=True)
class Task:
    """One run."""

    data: str
    student: str
    row: str
    seed: int

    def key(self):
        """A name for files."""
        return "-".join([self.data, self.student, "".join(c if c.isalnum() else "_" for c in self.row), str(self.seed)])


def tasks(options):
    """What there is to do, the main comparison first."""
    wanted = [
        Task(data, student, name, seed)
        for name in options.rows
        for seed in ROWS[name].seeds
        for student in options.students
        for data in options.names
        if name != "residual" or student in SUMS
    ]
    main = [task for task in wanted if task.row in (BASE, "kd")]
    main.sort(key=lambda task: (options.students.index(task.student), options.names.index(task.data), task.seed))
    return main + [task for task in wanted if task not in main]


def words_of(task, options):
    """The options of the run, but for where it lies."""
    recipe = RECIPES / f"{STUDENTS[task.student]}.yaml"
    row = ROWS[task.row]
    teachers = {"teacher": teacher(options, task.data, 0), "second": teacher(options, task.data, 1)}
    model = SUMS[task.student] if task.row == "residual" else task.student
    words = ["--config", recipe, "--data.path", options.out / f"{task.data}-{CACHE_SIZE}"]
    words += ["--data.train_on", "train+val", "--data.views", VIEWS, "--model.name", model, "--seed", task.seed]
    words += ["--threads", 1, "--data.threads", 1, "--trackers", "", "--save.minutes", 5]
    return words + [word.format(**teachers) for word in row.words]


def teacher(options, data, seed):
    """The run that teaches."""
    return options.out / f"{data}-teacher-{seed}"


def make_teacher(data, seed, options):
    """Train and export it, unless that has been done."""
    cache = options.out / f"{data}-{CACHE_SIZE}"
    teach(teacher(options, data, seed), cache, options.teacher_weights, "--seed", seed, "--data.train_on", "train+val")


def teach(run, cache, weights, *words):
    """Train a teacher without label smoothing, and export it, unless that has been done."""
    onnx = Path(f"{run}.onnx")
    common = ["--config", RECIPES / "pretrained.yaml", "--data.path", cache, "--model.weights", weights]
    common += ["--loss.label_smoothing", 0, "--schedule.epochs", TEACHER_EPOCHS]
    common += ["--threads", 1, "--data.threads", 1, "--trackers", ""]
    if not (run / "last.safetensors").is_file():
        job("training.train", *common, *words, "--out", run)
    if not onnx.is_file():
        job("compress.export", "--model", run / "last.safetensors", "--out", onnx)


def run_one(task, options):
    """Train and test, and write down the row for the results."""
    out = options.out / "distillation" / task.key()
    epochs = options.epochs[task.data]
    words, before = words_of(task, options), round(ROWS[task.row].before * epochs)
    began = time.monotonic()
    if before:
        first = [word for word in words if word not in ("--method.alpha", "0")]
        place = first.index("--teacher.paths")
        first = first[:place] + first[place + 2 :]
        first += ["--method.name", "autoencoder", "--schedule.epochs", before, "--out", f"{out}-before"]
        job("training.distill", *first)
        words += ["--model.weights", f"{out}-before/last.safetensors"]
    job("training.distill", *words, "--schedule.epochs", epochs - before, "--out", out)
    seconds = time.monotonic() - began
    found, answers = tested(out, options.out / f"{task.data}-{CACHE_SIZE}")
    kept = {key: found[key] for key in ("macro_f1", "accuracy", "samples", "macs", "parameters", "input_size")}
    write_json(
        out / "result.json",
        {"data": task.data, "student": task.student, "row": task.row, "seed": task.seed}
        | kept
        | {
            "steps": steps_of(out) + (steps_of(Path(f"{out}-before")) if before else 0),
            "epochs": epochs,
            "seconds": round(seconds, 1),
            "classes": found["classes"],
            "teacher": file_sha256(teacher(options, task.data, 0) / "last.safetensors")[:16],
            "about": provenance(),
        }
        | {"steps_of_links": sum(steps_of(link) for link in out.glob("chain-*"))}
        | answers,
    )
    sys.stderr.write(f"{task.key()}: macro F1 {kept['macro_f1']:.4f}, {seconds:.0f} s\n")


def tested(run, cache):
    """What training.evaluate says of the last weights of a run; ids, labels and answers in the order of the ids."""
    model = run / "last.safetensors"
    found, _ = job("training.evaluate", "--model", model, "--data", cache, "--out", run, "--latency_rounds", 0)
    said = read_predictions(run / "predictions_test.csv")
    order = np.argsort(said.ids)
    answers = {"ids": said.ids[order].tolist(), "labels": letters(said.labels[order])}
    return found, answers | {"predicted": letters(said.predicted[order])}


def letters(classes):
    """Numbers of classes, as one letter each."""
    return "".join(chr(ord("a") + number) for number in classes.tolist())


def provenance():
    """Commit, date, machine and versions of a run."""
    return {key: value for key, value in circumstances(PACKAGES).items() if key != "command"}


def steps_of(run):
    """Optimizer steps of a run."""
    return json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"]


def work(queue, body, options):
    """Make calls until there are none, or nobody is left who wants them."""
    parent = os.getppid()
    while True:
        call = queue.get()
        if call is None or os.getppid() != parent:
            return
        try:
            body(*call, options)
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"{call} failed with status {error.returncode}; the others go on\n")


def measure(options):
    """Do what is left to do, several at a time."""
    for name, path in options.data.items():
        prepare(path, name, options.out, CACHE_SIZE)
    in_parallel(options, make_teacher, [(name, seed) for seed in (0, 1) for name in options.names])
    done = gathered(options)[1]
    in_parallel(options, run_one, [(task,) for task in tasks(options) if astuple(task) not in done])


def in_parallel(options, body, calls):
    """`body(*call, options)` for all calls, several at a time."""
    context = get_context("spawn")
    queue = context.Queue()
    for call in calls:
        queue.put(call)
    count = min(options.jobs, len(calls))
    for _ in range(count):
        queue.put(None)
    workers = [context.Process(target=work, args=(queue, body, options)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def gathered(options):
    """(data → its test set, place → run): what the results file has, and what is newer below --out."""
    return gather(RESULTS, options.out.glob("distillation/*/result.json"), PLACE)


def gather(results, paths, keys):
    """The same for any benchmark of this kind: a file of results, one file a run, and the keys that are its place."""
    kept = json.loads(results.read_text("utf-8")) if results.is_file() else {"tests": {}, "runs": []}
    tests, runs = kept["tests"], {tuple(run[key] for key in keys): run for run in kept["runs"]}
    for path in paths:
        run = json.loads(path.read_text("utf-8"))
        test = {"classes": run.pop("classes"), "labels": run.pop("labels")}
        test["ids"] = hashlib.sha256(json.dumps(run.pop("ids")).encode()).hexdigest()
        if tests.setdefault(run["data"], test) != test:
            raise SystemExit(f"{path} has another test set than the other runs; delete {path.parent}, or {results}")
        runs[tuple(run[key] for key in keys)] = run
    return tests, runs


def collect(options):
    """All results so far into one file."""
    write_results(RESULTS, *gathered(options), views=VIEWS, cache=CACHE_SIZE)


def write_results(path, tests, runs, **settings):
    """The file that `gather` reads."""
    if not runs:
        raise SystemExit("nothing has been measured yet; run it with --data and --teacher_weights")
    write_json(path, {**settings, "tests": tests, "runs": [runs[place] for place in sorted(runs)]})
