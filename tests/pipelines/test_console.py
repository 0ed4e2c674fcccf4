"""The habits of every job: options, exit statuses, reports, progress and words."""

import errno
import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass, field

import pytest

from pipelines.console import output, progress
from pipelines.console.job import list_jobs, run_job
from pipelines.console.output import human_bytes, human_seconds, render_table
from pipelines.console.progress import ProgressMeter
from pipelines.errors import CorruptSampleError, ProblemFoundError, UsageError

# --- jobs


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes.

    Args:
        image_size: Side in px.
    """

    image_size: int = 32


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the job does.

    Args:
        out_dir: Where to write.
        batch_size: Samples at a time.
        move: Names to move.
        sizes: Of the images.
        force: Do it anyway.
        sure_of_it: Quite.
    """

    out_dir: str = "out"
    batch_size: int = 8
    move: list[str] = field(default_factory=list)
    sizes: Sizes = field(default_factory=Sizes)
    force: bool = False
    sure_of_it: bool = True


def report_of(config):
    return {"out": config.out_dir, "batch": config.batch_size, "move": config.move, "size": config.sizes.image_size}


def run(argv, body=report_of, **options):
    """Exit status of the job."""
    with pytest.raises(SystemExit) as caught:
        run_job(
            Config, body, name="rooms.job", summary="Does it.", example="  python -m rooms.job", argv=argv, **options
        )
    return caught.value.code


def raising(error):
    def body(config):
        raise error

    return body


def test_a_job_that_ends_well(capsys):
    assert run(["--batch_size", "3"], table=lambda report: f"batch {report['batch']}\n\n") == 0
    assert capsys.readouterr() == ("batch 3\n", "")
    assert run([]) == 0  # without a table there is nothing to show
    assert capsys.readouterr() == ("", "")


def test_the_report_as_json(capsys):
    assert run(["--json", "--sizes.image_size", "64"], table=lambda report: "never shown") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"out": "out", "batch": 8, "move": [], "size": 64}
    assert list(json.loads(captured.out)) == ["out", "batch", "move", "size"]
    assert captured.err == ""


@pytest.mark.parametrize("argv", [[], ["--json"]])
def test_an_empty_report_is_not_printed(capsys, argv):
    assert run(argv, body=lambda config: {}, table=lambda report: "never shown") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status"),
    [(UsageError("no --data"), 2), (ProblemFoundError("below the floor"), 1), (CorruptSampleError("a.jpg: torn"), 1)],
)
def test_exit_status_of_an_error(capsys, error, status):
    assert run([], body=raising(error)) == status
    assert capsys.readouterr() == ("", f"rooms.job: {error}\n")


def test_exit_status_of_an_interruption(capsys):
    assert run([], body=raising(KeyboardInterrupt())) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rooms.job: interrupted")


def test_exit_status_of_a_termination(capsys):
    """SIGTERM, as Slurm and `kill` send it, tidies up like Ctrl-C does."""
    tidied = []

    def body(config):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            tidied.append(config)

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run([], body=body) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert tidied
    assert capsys.readouterr() == (
        "",
        "rooms.job: terminated; nothing half-written was left in place of a finished file\n",
    )


@pytest.mark.parametrize(
    ("argv", "force", "sure"),
    [
        ([], False, True),
        (["--force"], True, True),
        (["--force", "--json"], True, True),
        (["--force", "true"], True, True),
        (["--force", "false"], False, True),
        (["--force=true"], True, True),
        (["--force=false", "--sure-of-it"], False, True),
        (["--sure_of_it", "false", "--force"], True, False),
        (["--sure-of-it=false", "--force", "--batch-size", "3"], True, False),
        (["--out-dir", "--force"], None, None),
        (["--force", "perhaps"], None, None),
    ],
)
def test_switches_may_stand_alone(capsys, argv, force, sure):
    seen = []

    def body(config):
        seen.append((config.force, config.sure_of_it))
        return {}

    status = run(argv, body=body)
    assert (status, seen) == ((0, [(force, sure)]) if force is not None else (2, []))
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(capsys):
    assert run([], body=raising(OSError(errno.ENOSPC, "No space left on device", "/big/cache"))) == 1
    captured = capsys.readouterr().err
    assert "No space left on device (/big/cache)" in captured
    assert captured.count("\n") == 1


def test_a_closed_pipe_is_quiet(capsys, monkeypatch):
    turned = []
    monkeypatch.setattr(os, "dup2", lambda new, old: turned.append((new, old)))
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    assert run([], body=raising(BrokenPipeError())) == 1
    os.close(turned[0][0])
    assert len(turned) == 1
    assert capsys.readouterr().err == ""


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run([], body=lambda config: {"x": 1 // 0})


@pytest.mark.parametrize(
    "argv",
    [
        ["--out-dir", "a-b_c", "--batch-size=5", "--sizes.image-size", "16", "--move", '["x-y"]'],
        ["--out_dir", "a-b_c", "--batch_size=5", "--sizes.image_size", "16", "--move", '["x-y"]'],
        ["--out-dir=a-b_c", "--batch_size", "5", "--sizes.image_size=16", "--move+=x-y"],
    ],
)
def test_dashes_are_underscores_in_names_but_not_in_values(capsys, argv):
    assert run([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": "a-b_c", "batch": 5, "move": ["x-y"], "size": 16}


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["--colour", "red"], "colour"),
        (["--sizes.height", "3"], "height"),
        (["--batch_size", "many"], "batch_size"),
        (["stray"], "stray"),
        (["--config", "no/such/file.yaml"], "no/such/file.yaml"),
    ],
)
def test_wrong_options_exit_2_and_are_named(capsys, argv, name):
    assert run(argv, body=raising(AssertionError("the job must not start"))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert name in captured.err


def test_a_config_file_and_options_that_win(capsys, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("batch_size: 5\nout_dir: there\nsizes:\n  image_size: 64\n")
    assert run(["--config", str(file), "--batch-size", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": "there", "batch": 6, "move": [], "size": 64}


@pytest.mark.parametrize("text", ["batchsize: 5\n", "sizes:\n  batchsize: 64\n", "batch_size: 5\nbatchsize: 5\n"])
def test_an_unknown_key_in_a_config_file(capsys, tmp_path, text):
    file = tmp_path / "job.yaml"
    file.write_text(text)
    assert run(["--config", str(file)], body=raising(AssertionError("the job must not start"))) == 2
    assert "batchsize" in capsys.readouterr().err


def test_help_tells_of_every_option(capsys):
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "Does it.",
        "--out_dir",
        "Where to write",
        "Samples at a time",
        "Side in px",
        "python -m rooms.job",
        "--json",
    ):
        assert words in shown


def test_printed_config_can_be_read_back(capsys, tmp_path):
    assert run(["--print_config", "--batch_size", "7"]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert run(["--config", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batch"] == 7


def test_list_of_jobs(capsys, tmp_path, monkeypatch):
    package = tmp_path / "imaginary_rooms"
    (package / "engine").mkdir(parents=True)
    for name, text in {
        "__init__.py": '"""Rooms for tests.\n\nMore.\n"""\n',
        "sweep.py": '"""Sweep the floor.\n\nDetails.\n"""\n\ndef main():\n    raise SystemExit(1 / 0)\n',
        "air.py": '"""Open the windows."""\nimport no_such_module\n\ndef main() -> None:\n    pass\n',
        "helper.py": '"""Not a job."""\n\ndef tidy():\n    pass\n',
        "silent.py": "def main():\n    pass\n\ndef main():\n    pass\n",
        "engine/__init__.py": '"""A sub-room."""\n\ndef main():\n    pass\n',
    }.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    list_jobs("imaginary_rooms")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "imaginary_rooms: Rooms for tests."
    assert [line.split(maxsplit=3)[2:] for line in lines if "python -m" in line] == [
        ["imaginary_rooms.air", "Open the windows."],
        ["imaginary_rooms.sweep", "Sweep the floor."],
    ]
    assert lines[-1] == "Each job explains itself with --help."


def test_a_package_without_jobs(capsys, tmp_path, monkeypatch):
    (tmp_path / "imaginary_library").mkdir()
    (tmp_path / "imaginary_library/__init__.py").write_text('"""Nothing to run."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    list_jobs("imaginary_library")
    assert "no jobs to run" in capsys.readouterr().out


# --- progress


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(progress.time, "monotonic", fake)
    return fake


def test_plain_lines_with_the_time_left(clock, capsys):
    with ProgressMeter("crop", 2000, "photos") as meter:
        meter.advance(10)
        assert capsys.readouterr().err == ""  # nothing before the interval has passed
        clock.now += 20
        meter.advance(490)
        assert capsys.readouterr() == ("", "crop: 500 of 2,000 photos (25 %) · 25.0/s · 1 min 00 s left\n")
        clock.now += 14.9
        meter.advance(1)
        assert capsys.readouterr().err == ""
        clock.now += 5.1
        meter.advance(499, note="loss 0.5")
        assert capsys.readouterr().err == "crop: 1,000 of 2,000 photos (50 %) · 25.0/s · 40.0 s left · loss 0.5\n"
        clock.now += 100
        meter.advance(1000)
        assert capsys.readouterr().err == ""  # the report follows; no line that says 100 %
    assert meter.done == 2000


def test_the_clock_starts_with_the_work(clock, capsys):
    meter = ProgressMeter("build", 100, "rows")
    clock.now += 500
    with meter:
        clock.now += 20
        meter.advance(10)
    assert capsys.readouterr().err == "build: 10 of 100 rows (10 %) · 0.5/s · 3 min 00 s left\n"


@pytest.mark.parametrize(("total", "enabled"), [(100, False), (0, True)])
def test_silence(clock, capsys, total, enabled):
    with ProgressMeter("build", total, "rows", enabled=enabled) as meter:
        clock.now += 100
        meter.advance(1)
    assert meter.done == 1
    assert capsys.readouterr() == ("", "")


def test_an_error_passes_through(clock):
    with pytest.raises(KeyError), ProgressMeter("build", 3, "rows"):
        raise KeyError("x")


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressMeter("build", 4, "rows") as meter:
        meter.advance(4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "build" in captured.err
    assert "4/4" in captured.err


# --- words


def test_a_table():
    text = render_table(("name", ">rows", ">F1", "ok"), [("glass", 12345, 0.5, True), ("can", None, 1 / 3, False)])
    lines = text.splitlines()
    assert [line.split() for line in (lines[0], lines[2], lines[3])] == [
        ["name", "rows", "F1", "ok"],
        ["glass", "12,345", "0.5000", "yes"],
        ["can", "-", "0.3333", "no"],
    ]
    assert lines[2].index("12,345") + 6 == lines[3].index("-") + 1 == lines[0].index("rows") + 4
    assert all(line == line.rstrip() for line in lines)


def test_a_table_says_what_it_is_given(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    text = render_table(("name",), [("[red]can[/red] :bottle: " + "x" * 60,)], title="Run [b] :can:")
    assert text.splitlines()[0] == "Run [b] :can:"
    assert "[red]can[/red] :bottle: " + "x" * 60 in text
    assert "\x1b" not in text
    assert render_table(("a", "b"), []).split()[:2] == ["a", "b"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**41, "2048.0 GiB"),
    ],
)
def test_bytes_in_words(count, text):
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (7.54, "7.5 s"),
        (60, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3599.6, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_seconds_in_words(seconds, text):
    assert human_seconds(seconds) == text


# Once a bug: the unit is chosen before rounding, so values just below the next unit read "60.0 s" and "1024.0 KiB".
def test_rounding_never_shows_a_full_next_unit():
    assert human_seconds(59.96) == "1 min 00 s"
    assert human_bytes(2**20 - 1) == "1.0 MiB"


def test_say_and_emit_do_not_mix(capsys):
    output.say("for people")
    output.emit({"a": 1}, as_json=True, table=None)
    captured = capsys.readouterr()
    assert captured.err == "for people\n"
    assert re.fullmatch(r'\{\n  "a": 1\n\}\n', captured.out)
