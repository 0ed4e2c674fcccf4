"""The loader benchmark's own arithmetic, tables and fairness; nothing is measured here."""

import importlib.util
import io
import json
import os
import sys
import textwrap
import time
from contextlib import ExitStack

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.benchmarks import cache_build, loaders, loaders_report, loaders_running
from tests.benchmarks.cache_memory import draw_folder
from tests.waiting import wait_until

PEERS = loaders.PEERS
RAW, JPEG = ("raw", 64), ("jpeg", 64)


def load_protocol():
    """The scripts' shared module, found by its path as the scripts find it."""
    specification = importlib.util.spec_from_file_location("protocol", PEERS / "protocol.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["protocol"] = module
    specification.loader.exec_module(module)
    return module


protocol = load_protocol()


def runs_of(name, rates, group=RAW, cpu=0.5):
    place = {"read": group[0], "size": group[1], "name": name, "turn": 0, "load": 0.5, "epochs": 1}
    return [
        {**place, "round": number, "images": int(rate), "seconds": 1.0, "cpu": cpu, "peak_bytes": 300_000_000 + number}
        for number, rate in enumerate(rates)
    ]


def entry_of(runs, absent=(), images=100, repeats=1):
    names = {(run["read"], run["size"], run["name"]) for run in runs}
    begun = {"first": {"images": 100, "seconds": 2.0}, "conversion_seconds": 1.25, "bytes": 5_000_000}
    return {
        "date": "2026-01-02",
        "git": "abc",
        "machine": {"cpu": "Some CPU", "cores": 2, "python": "3.11"},
        "set": {"name": "trashnet", "images": images, "of": 100},
        **{"batch": 128, "workers": 2, "seconds": 1.0, "repeats": {"64": repeats}},
        "titles": {name: contestant.title for name, contestant in loaders.CONTESTANTS.items()},
        "started": [
            {"read": read, "size": size, "name": name, **begun, "versions": {"torch": "2.9", name: "1"}}
            for read, size, name in names
        ],
        "absent": list(absent),
        "runs": list(runs),
    }


RUNS = [
    *runs_of("ours", (3000, 6000, 4000)),
    *runs_of("ours-dali", (500, 500, 500)),
    *runs_of("ffcv", (2000, 3000, 2000)),
    *runs_of("webdataset", (250, 750)),
    *runs_of("ours", (1000,), JPEG),
    *runs_of("torchvision", (600,), JPEG),
]
ABSENT = [{"read": "raw", "size": 64, "name": "litdata", "reason": "not installed"}]


def test_ratios_are_taken_within_rounds_both_took_part_in():
    assert loaders_report.ratios(RUNS, RAW, "ours", "ffcv") == [1.5, 2.0, 2.0]
    assert loaders_report.ratios(RUNS, RAW, "ours", "webdataset") == [12.0, 8.0]
    assert loaders_report.ratios(RUNS, RAW, "ours", "torchvision") == []
    assert loaders_report.ratios(RUNS, JPEG, "ours", "torchvision") == [1000 / 600]


def test_the_quoted_one_is_the_fastest_of_ours():
    assert loaders_report.quoted(RUNS, RAW) == "ours"
    slower = [run for run in RUNS if run["name"] != "ours"]
    assert loaders_report.quoted(slower, RAW) == "ours-dali"
    assert loaders_report.quoted(slower, JPEG) is None
    assert loaders_report.ranked(RUNS, RAW) == ["ours", "ffcv", "ours-dali", "webdataset"]


def test_goals_are_those_that_were_promised():
    goal = loaders_report.goal_of
    assert [goal(("raw", 64), name) for name in ("ffcv", "litdata", "ours", "ours-dali")] == [1.5, 10.0, None, None]
    assert [goal(("jpeg", size), "ffcv") for size in (64, 224)] == [1.2, 1.2]
    assert [goal(("jpeg", size), "timm") for size in (64, 224)] == [2.0, 2.0]
    assert goal(("op", 64), "randaugment") == 5.0
    assert goal(("raw", 224), "ffcv") is None


def test_every_goal_can_be_met_by_somebody():
    for read, _ in loaders_report.GOALS:
        names = [name for name, contestant in loaders.CONTESTANTS.items() if read in contestant.reads]
        assert any(loaders_report.is_ours(name) for name in names)
        assert any(not loaders_report.is_ours(name) for name in names)
    for contestant in loaders.CONTESTANTS.values():
        assert (PEERS / f"{contestant.script}.py").is_file()
        assert set(contestant.reads) <= set(loaders_report.READS)


def test_every_environment_can_be_installed():
    text = (PEERS / "install.sh").read_text(encoding="utf-8")
    names = text.split("ALL=(")[1].split(")")[0].split()
    assert {contestant.environment for contestant in loaders.CONTESTANTS.values()} - {None} == set(names)


def test_tables_show_everybody_and_what_is_missing():
    text = loaders_report.render(entry_of(RUNS, ABSENT))
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert rows["| **Tacopress, resident**"].startswith("| **Tacopress, resident** | 1 | 1,000 |")
    assert "| **Tacopress, resident** | 3 | 4,000 (3,000-6,000) |" in text
    assert rows["| FFCV"] == (
        "| FFCV | 3 | 2,000 (2,000-3,000) | 0.250 (0.167-0.250) | 50 | 1.2 | 5.0 | 300 | 2.00 (1.50-2.00) | 1.5: met |"
    )
    assert rows["| WebDataset"].endswith("| 10.00 (8.00-12.00) | 10: met |")
    assert rows["| Tacopress, streamed, DALI on the CPU"].endswith("| 300 |  |  |")
    assert rows["| torchvision ImageFolder"].endswith("| 1.67 | 2: missed |")
    assert rows["| LitData"] == "| LitData | not installed | | | | | | | | |"
    assert text.index("raw pixels, 64 px") < text.index("JPEG, 64 px")
    assert text.endswith("Versions: ffcv 1, ours 1, ours-dali 1, torch 2.9, torchvision 1, webdataset 1.")
    assert "a try" not in text
    assert "times |" not in text
    assert "| JPEG, 64 px, every image 4 times | rounds |" in loaders_report.render(entry_of(RUNS, repeats=4))
    assert "Only 50 of 100" in loaders_report.render(entry_of(RUNS, images=50))
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_tables_without_ours_compare_nothing():
    text = loaders_report.render(entry_of([run for run in RUNS if run["name"] == "ffcv"]))
    assert "met" not in text
    assert "missed" not in text


def test_tables_where_nobody_ran():
    assert "not installed" in loaders_report.render(entry_of([], ABSENT))


@pytest.mark.filterwarnings("error:constrained_layout")
def test_chart_has_a_bar_for_everybody_and_words_for_the_absent(tmp_path):
    entry = entry_of(RUNS, ABSENT)
    assert [name for name, _, _ in loaders_report.bars(entry, RAW)] == [
        *("ours", "ffcv", "ours-dali", "webdataset", "litdata"),
    ]
    assert loaders_report.bars(entry, RAW)[1] == ("ffcv", "FFCV", (2000.0, 2000.0, 3000.0))
    assert loaders_report.bars(entry, RAW)[-1] == ("litdata", "LitData", None)
    loaders_report.draw(entry, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 600
    wordy = [{**ABSENT[0], "reason": "failed: " + "words " * 100}]
    loaders_report.draw(entry_of([], wordy), tmp_path / "wordy.png")
    with Image.open(tmp_path / "wordy.png") as picture:
        assert picture.width < 2000


def test_everybody_is_first_once():
    names = list(loaders.CONTESTANTS)
    orders = [cache_build.turns(names, number) for number in range(len(names))]
    assert [order[0] for order in orders] == names
    assert {order[-1] for order in orders} == set(names)


TRUTH = {"labels": {"0": 200, "1": 100}, "means": [100.0, 90.0, 80.0], "asymmetry": 12.0}
FOUND = {
    "shape": [128, 3, 64, 64],
    **{"dtype": "torch.uint8", "label_dtype": "torch.int64", "channels_last": True},
    **{"images": 300, "labels": {"0": 200, "1": 100}, "shuffled": True},
    **{"means": [100.2, 89.8, 80.0], "asymmetry": 12.3, "lean": [0.4, -0.7], "left_heavy": [0.48, 0.53]},
}


def test_what_everybody_delivers_is_right():
    assert loaders.problem(FOUND, TRUTH, 64, tolerance=0.5) is None
    fewer = {**FOUND, "images": 256, "labels": {"0": 170, "1": 86}}
    assert loaders.problem(fewer, TRUTH, 64, tolerance=0.5) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [128, 64, 64, 3]}, "shape"),
        ({"shape": [128, 3, 32, 32]}, "shape"),
        ({"shape": [256, 3, 64, 64]}, "shape"),
        ({"dtype": "torch.float32"}, "float32"),
        ({"label_dtype": "torch.int32"}, "int32"),
        ({"shuffled": False}, "order"),
        ({"images": 172}, "172 images"),
        ({"images": 301}, "301 images"),
        ({"labels": {"0": 201, "1": 99}}, "labels"),
        ({"labels": {"0": 200, "2": 100}}, "labels"),
        ({"left_heavy": [0.7, 0.5]}, "mirrored"),
        ({"lean": [0.4, 0.4]}, "mirrored"),
        ({"means": [80.0, 90.0, 100.0]}, "other pixels"),
        ({"asymmetry": 11.0}, "other pixels"),
    ],
)
def test_nobody_is_fast_by_doing_less(change, words):
    assert words in loaders.problem({**FOUND, **change}, TRUTH, 64, tolerance=0.5)


def test_who_decodes_less_exactly_may_miss_by_more():
    found = {**FOUND, "means": [101.2, 89.8, 80.0]}
    assert "other pixels" in loaders.problem(found, TRUTH, 64, tolerance=0.5)
    assert loaders.problem(found, TRUTH, 64, tolerance=1.5) is None


def test_random_ops_may_change_pixels_but_nothing_else():
    assert loaders.problem({**FOUND, "means": [1.0, 2.0, 3.0]}, TRUTH, 64, tolerance=None) is None
    assert "order" in loaders.problem({**FOUND, "shuffled": False}, TRUTH, 64, tolerance=None)


def fake_epochs(images=300, size=8, flip=True, seed=0):
    """An honest loader of the protocol, in memory."""
    numbers = np.random.default_rng(seed)
    pixels = torch.from_numpy(numbers.integers(0, 256, (images, 3, size, size), dtype=np.uint8))
    pixels[:, :, :, : size // 2] //= 2  # all lean the same way
    labels = torch.arange(images) % 3

    def epochs():
        order = torch.from_numpy(numbers.permutation(images))
        for rows in order.split(128):
            batch = pixels[rows]
            if flip:
                mirrored = torch.from_numpy(numbers.random(len(rows)) < 0.5)
                batch[mirrored] = batch[mirrored].flip(-1)
            yield batch, labels[rows]

    return epochs, pixels, labels


def test_description_of_an_honest_loader():
    epochs, pixels, _ = fake_epochs()
    halves = [part.float().mean((1, 2, 3)) for part in (pixels[..., :4], pixels[..., 4:])]
    found = protocol.describe(epochs)
    truth = {
        "labels": {str(label): 100 for label in range(3)},
        "means": pixels.float().mean((0, 2, 3)).tolist(),
        "asymmetry": float((halves[0] - halves[1]).abs().mean()),
    }
    assert found["means"] == pytest.approx(truth["means"], abs=1e-3)
    assert found["asymmetry"] == pytest.approx(truth["asymmetry"], abs=1e-3)
    assert found["shape"] == [128, 3, 8, 8]
    assert not found["channels_last"]
    assert loaders.problem(found, truth, 8, tolerance=0.5) is None
    json.dumps(found)


def test_description_gives_a_lazy_loader_away():
    epochs, _, _ = fake_epochs(flip=False)
    found = protocol.describe(epochs)
    assert found["left_heavy"] == [0.0, 0.0]
    assert found["lean"][0] == pytest.approx(found["lean"][1], abs=1e-3)
    kept = list(epochs())
    assert not protocol.describe(lambda: kept)["shuffled"]
    last = [(images.contiguous(memory_format=torch.channels_last), labels) for images, labels in epochs()]
    assert protocol.describe(lambda: last)["channels_last"]


@given(st.integers(1, 400), st.integers(0, 1))
def test_consumption_counts_what_came(images, seconds_wanted):
    epochs, _, labels = fake_epochs(images=images)
    found = protocol.consume(epochs, seconds_wanted * 1e-4)
    assert found["seconds"] >= seconds_wanted * 1e-4
    assert found["images"] == images * found["epochs"]
    assert found["labels"] == {
        str(label): int((labels == label).sum()) * found["epochs"] for label in range(min(images, 3))
    }


def test_consumption_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="without a batch"):
        protocol.consume(lambda: [], 1.0)


def options(tmp_path, **changes):
    words = [
        "--images",
        str(tmp_path / "images"),
        "--work",
        str(tmp_path / "work"),
        "--size",
        "8",
        "--encoding",
        "jpeg",
    ]
    return protocol.parse([*words, *(word for name, value in changes.items() for word in (f"--{name}", str(value)))])


def talk(tmp_path, commands, **peer):
    (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
    (tmp_path / "images" / "a" / "1.jpg").write_bytes(b"12345")
    opened = []

    def open_epochs(given):
        opened.append(given)
        return fake_epochs()[0]

    session = protocol.Session(protocol.Peer(packages=("torch",), open=open_epochs, **peer), options(tmp_path))
    out = io.StringIO()
    status = protocol.converse(session, commands, out)
    return status, [json.loads(line) for line in out.getvalue().splitlines()], opened


def test_conversation(tmp_path):
    status, answers, opened = talk(tmp_path, ["epoch\n", "seconds 0.001\n", "describe\n", "quit\n", "epoch\n"])
    ready, first, second, described = answers
    assert status == 0
    assert (
        ready
        == {
            **{"ready": True, "conversion_seconds": 0.0, "bytes": 5, "images": 1},
            "versions": {"torch": torch.__version__.partition("+")[0]},
        }
        or ready["versions"]["torch"] == torch.__version__
    )
    assert (first["images"], first["epochs"]) == (300, 1)
    assert second["images"] == 300 * second["epochs"]
    assert described["shuffled"]
    assert len(opened) == 1


def test_conversion_is_timed_and_weighed(tmp_path):
    def convert(given):
        time.sleep(0.02)
        (given.work / "deep").mkdir()
        (given.work / "deep" / "file").write_bytes(b"1234567")

    _, (ready,), opened = talk(tmp_path, [], convert=convert)
    assert ready["bytes"] == 7
    assert ready["conversion_seconds"] >= 0.02
    assert opened == []


def test_errors_are_answered(tmp_path, capsys):
    status, answers, _ = talk(tmp_path, ["dance\n", "epoch\n"])
    assert status == 1
    assert answers[1:] == [{"error": "ValueError: no such command: 'dance'"}]
    status, answers, _ = talk(tmp_path, [], encodings=("raw",))
    assert (status, list(answers[0])) == (1, ["error"])
    assert "Traceback" in capsys.readouterr().err


def test_samples_are_those_of_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    data = draw_folder(tmp_path / "data", 12)
    assert protocol.samples(data) == [(str(path), label) for path, label in ImageFolder(str(data)).samples]


def test_options_have_defaults(tmp_path):
    given = options(tmp_path)
    assert (given.batch, given.workers, given.seed, given.variant) == (128, 2, 0, "")
    assert options(tmp_path, batch=32, variant="ops").variant == "ops"


FAKE = """
import json, os, subprocess, sys, time
if "--noise" in sys.argv:
    print("Welcome!", file=sys.stderr)
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    command = line.strip()
    if command == "quit":
        break
    if command == "die":
        sys.exit("the reason")
    if command == "sleep":
        time.sleep(30)
    if command == "work":
        code = "import time\\nend = time.process_time() + 0.15\\nwhile time.process_time() < end: pass"
        subprocess.run([sys.executable, "-S", "-E", "-c", code])
    if command == "child":
        code = "import time\\nprint('started', flush=True)\\ntime.sleep(30)"
        child = subprocess.Popen([sys.executable, "-S", "-E", "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
    print(json.dumps({"error": "no"} if command == "complain" else {"did": command}), flush=True)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setattr(loaders_running, "PATIENCE", 0.3)
    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE), encoding="utf-8")
    words = [sys.executable, "-S", "-E", str(script), "--noise"]
    running = loaders_running.Running(words, environment=os.environ, log=tmp_path / "log.txt")
    yield running
    running.close()


def test_a_started_loader_answers(fake):
    assert fake.hear() == {"ready": True}
    assert fake.ask("epoch") == {"did": "epoch"}
    with pytest.raises(loaders_running.PeerFailedError, match=r"^no$"):
        fake.ask("complain")


def test_a_dead_loader_is_told_with_its_last_words(fake):
    fake.hear()
    with pytest.raises(loaders_running.PeerFailedError, match="died: the reason"):
        fake.ask("die")
    with pytest.raises(loaders_running.PeerFailedError, match="died"):
        fake.ask("epoch")


def test_a_hanging_loader_is_not_waited_for(fake):
    fake.hear()
    with pytest.raises(loaders_running.PeerFailedError, match="did not answer"):
        fake.ask("sleep", longest=0.05)


def test_cpu_seconds_of_processes_that_ended_are_not_lost(fake):
    fake.hear()
    before = fake.cpu_seconds()
    fake.ask("work")
    assert 0.12 < fake.cpu_seconds() - before < 1.0
    assert fake.settle()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_whole_tree(fake):
    fake.hear()
    fake.forget_peaks()
    alone = fake.peak_bytes()
    fake.ask("child")
    assert alone > 1e6
    assert fake.peak_bytes() > alone + 1e6


def test_closing_ends_children_too(fake):
    fake.hear()
    fake.ask("child")
    tree = fake.tree()
    assert len(tree) == 2
    fake.close()
    assert wait_until(lambda: all(map(gone, tree)), 30)


def gone(process):
    """Ended; perhaps nobody has asked how yet."""
    try:
        return process.status() == "zombie"
    except psutil.NoSuchProcess:
        return True


def test_squares_are_the_same_pixels_twice(tmp_path):
    data = draw_folder(tmp_path / "data", 24)
    truth = loaders.make_squares(data, tmp_path / "squares", 32)
    jpeg, raw = (protocol.samples(tmp_path / "squares" / kind) for kind in ("jpeg", "raw"))
    assert len(jpeg) == len(raw) == 24
    pixels = []
    for (photo, label), (png, same_label) in zip(jpeg, raw, strict=True):
        assert label == same_label
        with Image.open(photo) as one, Image.open(png) as other:
            assert one.size == other.size == (32, 32)
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 4  # Pillow's own libjpeg
            pixels.append(np.asarray(other))
    assert truth["means"] == pytest.approx(np.mean(pixels, axis=(0, 1, 2)), abs=1e-6)
    assert sum(truth["labels"].values()) == 24


def test_repeated_squares_change_numbers_only(tmp_path):
    data = draw_folder(tmp_path / "data", 12)
    once, thrice = (loaders.make_squares(data, tmp_path / str(times), 16, times) for times in (1, 3))
    assert {label: 3 * count for label, count in once["labels"].items()} == thrice["labels"]
    assert {**once, "labels": {}} == {**thrice, "labels": {}}
    for kind in ("jpeg", "raw"):
        assert len(protocol.samples(tmp_path / "3" / kind)) == 36


def test_who_is_not_installed_is_named(tmp_path, capsys):
    entry = {"started": [], "absent": [], "runs": []}
    run = loaders.GroupRun(RAW, tmp_path, TRUTH, tmp_path, entry)
    with ExitStack() as stack:
        assert run.begin("ffcv", tmp_path / "nowhere", stack) is None
        assert run.begin("litdata", None, stack) is None
    assert entry["absent"] == [
        {"read": "raw", "size": 64, "name": "ffcv", "reason": "not installed"},
        {"read": "raw", "size": 64, "name": "litdata", "reason": "not installed"},
    ]
    assert "LEFT OUT, not installed" in capsys.readouterr().err


def test_who_fails_later_loses_its_runs(tmp_path):
    entry = {"started": [], "absent": [], "runs": [*RUNS]}
    run = loaders.GroupRun(RAW, tmp_path, TRUTH, tmp_path, entry)
    run.lose("ffcv", loaders_running.PeerFailedError("died: a | b"))
    assert not loaders_report.speeds(entry["runs"], RAW, "ffcv")
    assert len(entry["runs"]) == len(RUNS) - 3
    assert entry["absent"][0]["reason"] == "failed: died: a / b"


def test_scripts_import_nothing_of_the_house():
    for script in PEERS.glob("*.py"):
        text = script.read_text(encoding="utf-8")
        assert ("from pipelines" in text or "from augment_cache" in text) == (script.name == "ours.py"), script
        assert "tests.benchmarks.peers" not in text


def test_no_script_hides_a_package():
    """Python looks into a script's folder first: `peers/timm.py` would be what `import timm` finds."""
    for script in PEERS.glob("*.py"):
        found = importlib.util.find_spec(script.stem)
        assert found is None or found.origin == str(PEERS / "protocol.py"), script
