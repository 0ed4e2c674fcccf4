"""The suite's own parts: what a table says, who gets how much time, and what is left of a section that is cut off."""

import json
import sys
import threading
import time

import numpy as np
import pytest
import torch

from pipelines.engines.base import Job, RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.engines.device import DeviceRows
from pipelines.plan import Stage, View, draw
from tests.gpu import suite
from tests.gpu.common import Record, Setting
from tests.gpu.engines import GatherEngine
from tests.gpu.idle import LATE, Idle, words
from tests.gpu.memory import slope
from tests.gpu.report import number, render, verdict
from tests.gpu.rivals import shifted
from tests.gpu.sampling import Sampler
from tests.waiting import wait_until

ROW = {"what": "resident", "unit": "images/s", "spread": None, "goal": 100.0, "at_most": False, "note": ""}


def results(*sections, **changes):
    """Of a machine that does not exist."""
    card = {"name": "NVIDIA Test", "driver_version": "580.1", "memory.total": "1 MiB", "cuda": "13.0"}
    machine = {"cpu": "a CPU", "cores": 16, "memory_gib": 128, "kernel": "6", "python": "3.12"}
    facts = {"card": card, "machine": machine, "versions": {"torch": "2.11"}, "commit": "abc", "date": "2026-01-01"}
    more = {"command": "bash x", "minutes": 9, "rehearsal": False, "sections": list(sections)}
    return {**facts, **more, **changes}


def section(**changes):
    """One that went well."""
    return {"name": "throughput", "title": "Loader", "state": "done", "seconds": 60.0, **changes}


@pytest.mark.parametrize(
    ("measured", "goal", "at_most", "expected"),
    [
        *((100.0, 100, False, "met"), (99.9, 100, False, "missed"), (0, 0, True, "met"), (1, 0, True, "missed")),
        *((None, 1, False, "missed"), (None, 1, True, "missed"), (5.0, None, False, "")),
    ],
)
def test_verdicts(measured, goal, at_most, expected):
    assert verdict({"measured": measured, "goal": goal, "at_most": at_most}) == expected


def test_a_report_says_card_versions_goals_and_failures():
    failure = {"name": "JPEG 224", "message": "no | room", "tail": ["first line", "last line"]}
    rows = [{**ROW, "measured": 250.0, "spread": [200.0, 300.0]}, {**ROW, "what": "raw", "measured": 7.25}]
    tables = [{"title": "Ops", "headers": ["op", "largest"], "rows": [["Invert", 1], ["Solarize", None]]}]
    ended = section(
        state="cut off", rows=rows, tables=tables, notes=["a note"], failures=[failure], facts={"images": "TACO"}
    )
    text = render(results(ended, {"name": "memory", "title": "Memory", "state": "skipped", "seconds": 0}))
    for part in ("NVIDIA Test, 1 MiB", "580.1", "13.0", "torch 2.11", "| images | TACO |", "1.0 of 9 min"):
        assert part in text
    assert "| resident | 250 images/s | 200 - 300 | at least 100 images/s | met |  |" in text
    assert "| raw | 7.25 images/s |  | at least 100 images/s | missed |  |" in text
    assert "| Loader | cut off | 60 | 1 of 2 |" in text
    assert "| Solarize | - |" in text
    assert "- a note" in text
    assert "**JPEG 224 failed**: no \\| room" in text
    assert "last line" in text
    assert "| Memory | skipped | 0 |  |" in text


def test_a_rehearsal_judges_nothing():
    text = render(results(section(rows=[{**ROW, "measured": 250.0}]), rehearsal=True))
    assert "rehearsal" in text
    assert "at least 100 images/s |  |" in text
    assert "| Loader | done | 60 |  |" in text


def test_figures_have_as_many_digits_as_they_deserve():
    found = [number(value) for value in (None, 3, 12345, 1234567.8, 12.345, 0.012345, 2.0, "text", True)]
    assert found == ["-", "3", "12,345", "1,234,568", "12.35", "0.0123", "2", "text", "True"]


def test_time_is_shared_by_weight_and_what_is_left_goes_on():
    names = list(suite.SECTIONS)
    everything = sum(suite.SECTIONS[name][1] for name in names)
    assert everything * suite.weigh(names, 1.0) == pytest.approx(suite.SECTIONS[names[0]][1])
    assert suite.weigh(names[-1:], 77.0) == 77.0
    left, spent = 540.0, []
    for index in range(len(names)):  # everybody takes all that it may
        spent.append(suite.weigh(names[index:], left))
        left -= spent[-1]
    assert sum(spent) == pytest.approx(540)
    assert min(spent) > 20


def run_fake(monkeypatch, tmp_path, code, seconds):
    """A section that is this code, with RECORD for the path of its record."""
    record = tmp_path / "record.json"
    source = f"RECORD = {str(record)!r}\n{code}"
    monkeypatch.setattr(suite, "command", lambda name, setting: [sys.executable, "-c", source])
    monkeypatch.setattr(suite, "GRACE", 0.5)
    with (tmp_path / "log.txt").open("a", encoding="utf-8") as log:
        log.write("what others said\n")
        log.flush()
        return suite.run_section("memory", {"record": str(record)}, seconds, log)


def test_a_section_that_hangs_is_ended_with_its_children_and_keeps_what_it_had(monkeypatch, tmp_path):
    alive = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)"
    code = (
        "import json, signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "json.dump({'rows': [1], 'failures': []}, open(RECORD, 'w'))\nprint('so far', flush=True)\ntime.sleep(600)"
    )
    began = time.monotonic()
    entry = run_fake(monkeypatch, tmp_path, code, 8.0)
    assert time.monotonic() - began < 120
    assert (entry["state"], entry["rows"]) == ("cut off", [1])
    assert entry["failures"][0]["tail"] == ["so far"]
    time.sleep(0.3)
    alive.unlink(missing_ok=True)
    time.sleep(0.5)
    assert not alive.exists(), "its child goes on"


def test_a_section_that_dies_says_its_last_words(monkeypatch, tmp_path):
    entry = run_fake(monkeypatch, tmp_path, "import sys\nprint('out of memory')\nsys.exit(9)", 30.0)
    assert (entry["state"], entry["failures"][0]["message"]) == ("failed", "exit status 9")
    assert entry["failures"][0]["tail"] == ["out of memory"]


def test_a_record_is_on_the_disk_after_every_line(tmp_path):
    path = tmp_path / "record.json"
    record = Record(path)
    record.row("a", None, "s", values=[3.0, 1.0, 2.0])
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["what"], row["measured"], row["spread"]) == ("a", 2.0, [1.0, 3.0])
    with record.attempt("b"):
        raise ValueError("broken")
    record.table("t", ["x"], [[1]])
    record.table("t", ["x"], [[1], [2]])
    found = json.loads(path.read_text())
    assert found["failures"][0]["name"] == "b"
    assert found["failures"][0]["message"] == "ValueError: broken"
    assert [table["rows"] for table in found["tables"]] == [[[1], [2]]]


def test_a_setting_travels_as_text(tmp_path):
    text = {"work": str(tmp_path), "record": str(tmp_path / "r"), "gpu": False, "rehearsal": True, "deadline": 0.0}
    setting = Setting.parse(json.dumps(text))
    assert (setting.px(64), setting.pick(1, 2), setting.where, setting.late()) == (32, 2, "cpu", True)


def test_idle_share_over_windows():
    with Idle(lambda: 25.0, seconds=0.01) as idle:
        start = time.perf_counter()
        assert wait_until(lambda: any(when >= start + LATE for when, _ in idle._seen), 60)
        end = time.perf_counter()
    assert idle.share([(start, end)]) == pytest.approx(0.75)
    assert idle.share([(start - 10, start - 9)]) is None
    assert (words(None), words(0.75)) == ("-", "75%")

    def broken():
        raise RuntimeError("no NVML")

    with Idle(broken, seconds=0.01) as none:
        assert wait_until(lambda: none.obstacle, 60)
    assert none.obstacle.endswith("RuntimeError: no NVML")
    assert not idle.obstacle
    assert none.share([(0.0, time.perf_counter())]) is None


def test_a_sampler_sees_only_the_thread_that_opened_it():
    def elsewhere():
        while not done.is_set():
            sum(range(1000))

    def here():
        sum(number for number in range(100_000))  # much longer than the sampler waits
        return any("test_report.py: " in place for place in tuple(sampler.seen))

    done = threading.Event()
    other = threading.Thread(target=elsewhere, daemon=True)
    other.start()
    try:
        with Sampler() as sampler:
            assert wait_until(here, 60)
    finally:
        done.set()
        other.join()
    assert not any("elsewhere" in place for place in sampler.seen)
    shares = sampler.shares(3)
    assert 0 < sum(share for _, share in shares) <= 1
    assert shares == sorted(shares, key=lambda pair: -pair[1])


def test_the_rival_shows_a_window_of_each_image():
    torch.manual_seed(0)
    padded = torch.arange(12 * 12 * 50).view(50, 1, 12, 12).expand(-1, 3, -1, -1)
    found = set()
    for image, window in zip(padded, shifted(padded, 8), strict=True):
        top, left = divmod(int(window[0, 0, 0] - image[0, 0, 0]), 12)
        assert torch.equal(window, image[:, top : top + 8, left : left + 8])
        found.add((top, left))
    assert len(found) > 10


def test_without_dali_rows_on_the_device_are_gathered_and_mirrored():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    rows = np.array([5, 0, 3, 3, 1, 2, 4, 0])
    plan = draw(None, rows.astype(np.uint64), seed=1, stage=Stage.LOAD, rounds=(0,), view=View(flip=True))
    gather, cpu = GatherEngine(RenderSpec(8), torch.device("cpu")), CpuEngine(RenderSpec(8), threads=1)
    (mine,) = gather.stream([Job(DeviceRows(torch.from_numpy(pixels), rows), plan)])
    (theirs,) = cpu.stream([Job([pixels[row] for row in rows], plan)])
    assert plan.flip.any()
    assert not plan.flip.all()
    assert torch.equal(mine.pixels, theirs.pixels)
    gather.close()
    cpu.close()


def test_slope_of_a_leak():
    assert slope([100.0, 150.0, 160.0, *[170.0 + 2 * number for number in range(6)]]) == pytest.approx(2.0)
