"""Drills: builders that are killed, disks that are full, bytes that flip, two builders at once; real processes.

The rule that all of them hold a cache to: what is there under its name is whole, and whoever runs the same command
again gets the bytes of a build that nobody disturbed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from augment_cache.format.manifest import file_sha256, read_manifest
from augment_cache.format.shards import Shard
from augment_cache.verifying.check import check_cache
from tests.augment_cache.test_verify import flip, name_in, one_sentence, places
from tests.small_disk import as_root as as_root
from tests.small_disk import small_disk
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="NOT DRILLED: needs /proc to see who is alive"),
]

PHOTOS = 300
OPTIONS = ("--engine", "cpu", "--size", "96", "--copies", "30", "--shard_mib", "0.4", "--batch", "8", "--threads", "2")
PATIENCE = 400.0
"""Seconds after which a process that should have ended is taken for stuck."""
ORPHANS = 60.0
"""Seconds within which the helpers of a killed builder must have ended."""
PROGRESS = re.compile(r"^(build|repair|verify): [\d,]+ of [\d,]+ \w+ \(\d+ %\) .* left\n", re.MULTILINE)


def _draw(root):
    for number in range(PHOTOS):
        draw = np.random.Generator(np.random.Philox(number))
        small = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        path = root / f"class {number % 3}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(small, (320, 256), interpolation=cv2.INTER_CUBIC))
    return root


def _copy_real(folder, root):
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir())[:3]:
        (root / name).mkdir(parents=True)
        for path in sorted((folder / name).glob("*.jpg"))[: PHOTOS // 3]:
            shutil.copyfile(path, root / name / path.name)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A few hundred photos: real ones where there are any."""
    root = tmp_path_factory.mktemp("drill") / "photos"
    real = Path(os.environ.get("TACOPRESS_DATA", "/nowhere")) / "trashnet"
    return _copy_real(real, root) if real.is_dir() else _draw(root)


def words(photos, out, *more):
    return [sys.executable, "-m", "augment_cache.build", "--data", photos, "--out", out, "--json", *OPTIONS, *more]


def hear_ctrl_c():
    """Whoever is started in the background of a script ignores it, and so would all of these."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(command):
    """A process in a session of its own, so that its children can be found."""
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
        cwd=Path(__file__).parents[2],
    )


def end(process):
    """Exit status, standard output, standard error but for lines of progress, which only slow machines see."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, PROGRESS.sub("", err)


def run(command):
    return end(start(command))


def alive(session):
    """Processes of a session, without those that only wait to be buried."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


@dataclass(frozen=True)
class Undisturbed:
    """What a build gives that nobody disturbs, and how many seconds it takes from its first trace to its end."""

    files: dict[str, str]
    seconds: float
    cache: Path


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory, hashes):
    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    process = start(words(photos, cache, "--processes", 1))
    assert wait_until((cache / "build.json").exists, PATIENCE)
    begun = time.monotonic()
    status, out, err = end(process)
    assert status == 0, err
    assert json.loads(out)["built_shards"] >= 20
    return Undisturbed(hashes(cache), time.monotonic() - begun, cache)


def assert_whole_so_far(cache, undisturbed):
    """Whatever has its final name is the very file that an undisturbed build makes."""
    for path in cache.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            name = name_in(cache, path)
            assert file_sha256(path) == undisturbed.files[name], name
    if (cache / "manifest.json").exists():
        assert check_cache(cache, lambda count: None).damage == []


def assert_all_there(cache, undisturbed, hashes):
    assert hashes(cache) == undisturbed.files  # hidden files too, so none was left
    assert {path.name for path in cache.parent.iterdir()} == {"cache"}


# --- a) killed


@dataclass(frozen=True)
class Blow:
    """How a builder is hit: the signal, whether its helpers get it too, and when.

    The moment is a share of the shards that are still to be built, and a few milliseconds more: not a share of seconds,
    which pass at another speed on each machine.
    """

    number: signal.Signals
    group: bool
    moment: float
    delay: float


def blows(seed, count):
    """Mostly kill -9; at random moments, evenly spread over the first and middle parts of a build."""
    draw = np.random.Generator(np.random.Philox(seed))
    kinds = [signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
    moments, delays = draw.uniform(0, 0.6, count).tolist(), draw.uniform(0, 0.03, count).tolist()
    return [Blow(kinds[turn % 5], turn % 2 == 0, moments[turn], delays[turn]) for turn in range(count)]


def strike(command, cache, blow, shards):
    """Start a builder, hit it; returns whether it was still building. Nobody of it is left then.

    Args:
        shards: Those that this builder has to make.
    """

    def there():
        return sum((cache / name).exists() for name in shards)

    goal = there() + int(blow.moment * (len(shards) - there()))
    process = start(command)
    # The lock is removed at the end of each build, so it shows that this one has begun.
    assert wait_until(lambda: (cache / ".lock").exists() or process.poll() is not None, PATIENCE)
    wait_until(lambda: there() >= goal or process.poll() is not None, PATIENCE)
    time.sleep(blow.delay)
    if process.poll() is None:
        (os.killpg if blow.group else os.kill)(process.pid, blow.number)
    status, out, err = end(process)
    assert wait_until(lambda: not alive(process.pid), ORPHANS), f"left behind: {alive(process.pid)}"
    if out:  # it had finished, and was hit on its way out or not at all
        return False
    # Where Ctrl-C meets an exec() of text, as in an import, CPython itself ends by the signal, after all was tidied and
    # said: -2 here, and 130 for any shell.
    expected = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {143}, signal.SIGINT: {130, -signal.SIGINT}}
    assert status in expected[blow.number], err
    if blow.number is not signal.SIGKILL:
        assert one_sentence(err), err
    return True


def shards_of(undisturbed):
    """Paths of the shards, in the order in which parts take them."""
    manifest = read_manifest(undisturbed.cache)
    return list(manifest.shards)


def unlock(cache):
    """A lock file that a killed builder left says nothing: the lock is gone with its holder."""
    for path in cache.glob(".lock*"):
        path.unlink()


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_twenty_random_moments(photos, undisturbed, tmp_path, hashes, processes):
    cache = tmp_path / "alone" / "cache"
    command = words(photos, cache, "--processes", processes)
    hits, resumed = 0, 0
    for turn, blow in enumerate(blows(processes, 20)):
        # Now and then it begins anew, so that early and late moments are hit alike.
        if turn % 3 == 0 or (cache / "manifest.json").exists():
            shutil.rmtree(cache, ignore_errors=True)
        unlock(cache)
        hits += strike(command, cache, blow, shards_of(undisturbed))
        assert_whole_so_far(cache, undisturbed)
        resumed += len(list(cache.glob("*/shard-*.arrow"))) > 0
    assert hits >= 16, "too many blows came too late: the build is too short for this machine"
    assert resumed >= 10
    there = {name_in(cache, path) for path in cache.glob("*/shard-*.arrow")}
    status, out, err = run(command)
    assert (status, err) == (0, "")
    assert json.loads(out)["reused_shards"] == len(there)
    assert_all_there(cache, undisturbed, hashes)


def test_parts_killed_at_ten_random_moments(photos, undisturbed, tmp_path, hashes):
    cache = tmp_path / "alone" / "cache"
    commands = [words(photos, cache, "--processes", 1, "--part", part, "--of", 2) for part in (0, 1)]
    hits = 0
    for turn, blow in enumerate(blows(3, 10)):
        unlock(cache)
        hits += strike(commands[turn % 2], cache, blow, shards_of(undisturbed)[turn % 2 :: 2])
        assert_whole_so_far(cache, undisturbed)
    assert hits >= 5
    reused = 0
    for command in commands:
        status, out, err = run(command)
        assert (status, err) == (0, "")
        reused += json.loads(out)["reused_shards"]
    assert json.loads(out)["complete"]
    assert reused > 0
    assert_all_there(cache, undisturbed, hashes)


def test_a_killed_repair_does_no_harm(photos, undisturbed, tmp_path, hashes):
    """What it built aside stays beside the cache, under a hidden name; each file is as it was or mended."""
    cache = Path(shutil.copytree(undisturbed.cache, tmp_path / "alone" / "cache"))
    shards = sorted(cache.glob("train/*.arrow"))
    for path in shards[::2]:
        flip(path, path.stat().st_size // 2)
    before = hashes(cache)
    command = [sys.executable, "-m", "augment_cache.verify", "--cache", cache, "--repair", "--data", photos, "--json"]
    for moment in (0.0, 0.05, 0.2):
        if not check_cache(cache, lambda count: None).damage:
            break
        process = start(command)
        assert wait_until(lambda: any(cache.parent.glob(".cache.repair-*/train/*.arrow")), PATIENCE)
        time.sleep(moment * undisturbed.seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        end(process)
        seen = {name: value for name, value in hashes(cache).items() if not name.startswith(".")}
        assert set(seen) == set(before)
        assert all(value in (before[name], undisturbed.files[name]) for name, value in seen.items())
        for path in cache.parent.glob(".cache.repair-*"):
            shutil.rmtree(path)
    status, out, err = run(command)
    assert (status, err) == (0, "")
    assert 0 <= len(json.loads(out)["restored"]) <= len(shards[::2])
    assert_all_there(cache, undisturbed, hashes)


# --- b) disk full


def assert_full(status, out, err):
    assert (status, out) == (1, ""), err
    assert one_sentence(err), err
    assert "No space left on device" in err


def kibibytes(undisturbed):
    return sum(path.stat().st_size for path in undisturbed.cache.rglob("*") if path.is_file()) // 1024


@pytest.mark.parametrize("processes", [1, 2])
def test_the_disk_is_full(as_root, photos, undisturbed, tmp_path, hashes, processes):
    if not as_root:
        return
    needed = kibibytes(undisturbed)
    cache = tmp_path / "disk" / "cache"
    command = words(photos, cache, "--processes", processes)
    with small_disk(cache.parent, 4) as resize:
        assert_full(*run(command))  # not even build.json
        resize(needed // 4)
        assert_full(*run(command))
        assert_whole_so_far(cache, undisturbed)
        first = set(hashes(cache))
        assert len(first) >= 5
        assert not any(Path(name).name.startswith(".") for name in first)
        resize(needed // 2)
        assert_full(*run(command))
        assert_whole_so_far(cache, undisturbed)
        assert first < set(hashes(cache))
        resize(2 * needed)
        status, out, err = run(command)
        assert (status, err) == (0, "")
        assert json.loads(out)["reused_shards"] >= len(first) // 2
        assert_all_there(cache, undisturbed, hashes)


def test_the_disk_is_full_at_the_very_end(as_root, photos, undisturbed, tmp_path, hashes):
    """All shards fit, the manifest does not."""
    if not as_root:
        return
    cache = tmp_path / "disk" / "cache"
    with small_disk(cache.parent, 2 * kibibytes(undisturbed)) as resize:
        shutil.copytree(undisturbed.cache, cache)
        (cache / "manifest.json").unlink()
        used = shutil.disk_usage(cache).used // 1024
        resize(used + 8)
        assert_full(*run(words(photos, cache)))
        assert {**hashes(cache), "manifest.json": undisturbed.files["manifest.json"]} == undisturbed.files
        resize(2 * used)
        status, out, err = run(words(photos, cache))
        assert (status, err) == (0, "")
        assert json.loads(out)["built_shards"] == 0
        assert_all_there(cache, undisturbed, hashes)


@pytest.mark.parametrize("where", ["disk/cache", "disk"])
def test_repairing_on_a_full_disk(as_root, photos, undisturbed, tmp_path, hashes, where):
    """Also where the cache is a mount itself, beside which lies another disk."""
    if not as_root:
        return
    cache = tmp_path / where
    with small_disk(tmp_path / "disk", 3 * kibibytes(undisturbed)) as resize:
        shutil.copytree(undisturbed.cache, cache, dirs_exist_ok=True)
        for path in sorted(cache.glob("train/*.arrow"))[:4]:
            flip(path, path.stat().st_size // 2)
        before = hashes(cache)
        used = shutil.disk_usage(cache).used // 1024
        resize(used + 400)
        repair = [
            sys.executable,
            "-m",
            "augment_cache.verify",
            "--cache",
            cache,
            "--repair",
            "--data",
            photos,
            "--json",
        ]
        assert_full(*run(repair))
        assert hashes(cache) == before
        assert all(path == cache for path in (tmp_path / "disk").iterdir() if where == "disk/cache")
        resize(3 * used)
        status, out, err = run(repair)
        assert (status, err) == (0, "")
        assert len(json.loads(out)["restored"]) == 4
        assert hashes(cache) == undisturbed.files


# --- c) flipped bytes


@pytest.mark.parametrize("kind", ["cache", "raw_cache"])
def test_a_hundred_flipped_bytes_found_and_repaired(request, tmp_path_factory, command, hashes, kind):
    """100 in each encoding; the row is named wherever the byte belongs to one."""
    photos = request.getfixturevalue("flip_photos")
    cache = Path(shutil.copytree(request.getfixturevalue(kind), tmp_path_factory.mktemp("flips") / "cache"))
    wanted = hashes(cache)
    files = [cache / name for name in wanted]
    edges = np.cumsum([0, *(path.stat().st_size for path in files)])
    where = {path: places(path) for path in files if path.suffix == ".arrow"}
    draw = np.random.Generator(np.random.Philox(100))
    hurt_rows = 0
    for turn in range(100):
        # Half anywhere, so mostly in pixels; half in a file drawn first and near its edges, so in words and numbers.
        if turn % 2:
            at = int(draw.integers(edges[-1]))
            path = files[int(np.searchsorted(edges, at, side="right")) - 1]
            position = at - int(edges[files.index(path)])
        else:
            path = files[int(draw.integers(len(files)))]
            position = int(draw.integers(min(8000, path.stat().st_size)))
            position = position if turn % 4 else path.stat().st_size - 1 - position
        flip(path, position, int(draw.integers(1, 256)))
        status, out, err = command("verify", "--cache", cache, "--json")
        assert (status, one_sentence(err)) == (1, True)
        damage = json.loads(out)["damage"]
        assert {found["file"] for found in damage} == {name_in(cache, path)}
        hit = [place for place in where.get(path, []) if place.start <= position < place.stop]
        if hit:
            assert {found["row"] for found in damage} == frozenset().union(*(place.rows for place in hit))
            hurt_rows += 1
        status, out, err = command("verify", "--cache", cache, "--json", "--repair", "--data", photos)
        assert (status, err) == (0, "")
        assert json.loads(out)["restored"] == [name_in(cache, path)]
        assert hashes(cache) == wanted
        assert list(cache.parent.iterdir()) == [cache]
    assert hurt_rows >= 50


@pytest.fixture(scope="module")
def flip_photos(tmp_path_factory, jpeg):
    root = tmp_path_factory.mktemp("flip") / "photos"
    for number in range(40):
        path = root / f"class {number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


@pytest.fixture(scope="module")
def cache(flip_photos, build_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("flip_jpeg") / "cache"
    build_cache(flip_photos, out)
    return out


@pytest.fixture(scope="module")
def raw_cache(flip_photos, build_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("flip_raw") / "cache"
    build_cache(flip_photos, out, encoding="raw", shard_mib=0.1)
    return out


# --- d) several at once


HOLDER = re.compile(r"is being built by process (\d+) on \S+, since 20\d\d-")


def test_two_builders_at_once(photos, undisturbed, tmp_path, hashes):
    """One builds; the other says who, or comes so late that all is there already."""
    losers = 0
    for turn in range(3):
        cache = tmp_path / f"turn {turn}" / "cache"
        both = [start(words(photos, cache, "--processes", 1 + turn % 2)) for _ in range(2)]
        ends = [end(process) for process in both]
        assert 0 in {status for status, _, _ in ends}, ends
        for index, (status, out, err) in enumerate(ends):
            if status == 0:
                assert json.loads(out)["complete"]
            else:
                losers += 1
                assert (status, out) == (2, "")
                assert one_sentence(err), err
                holder = HOLDER.search(err)
                assert holder, err
                assert int(holder[1]) == both[1 - index].pid
        assert_all_there(cache, undisturbed, hashes)
    assert losers >= 1


def test_eight_parts_at_once(photos, undisturbed, tmp_path, hashes):
    cache = tmp_path / "alone" / "cache"
    parts = [start(words(photos, cache, "--processes", 1, "--part", part, "--of", 8)) for part in range(8)]
    reports = []
    for process in parts:
        status, out, err = end(process)
        assert (status, err) == (0, "")
        reports.append(json.loads(out))
    assert any(report["complete"] for report in reports)
    assert sum(report["built_shards"] for report in reports) == len(read_manifest(cache).shards)
    assert_all_there(cache, undisturbed, hashes)


def test_the_same_part_twice(photos, undisturbed, tmp_path):
    cache = tmp_path / "cache"
    both = [start(words(photos, cache, "--processes", 1, "--part", 1, "--of", 2)) for _ in range(2)]
    ends = [end(process) for process in both]
    for index, (status, _, err) in enumerate(ends):
        if status != 0:
            assert status == 2
            holder = HOLDER.search(err)
            assert holder, err
            assert int(holder[1]) == both[1 - index].pid
    assert 0 in {status for status, _, _ in ends}
    assert_whole_so_far(cache, undisturbed)
    assert not (cache / "manifest.json").exists()


def test_the_undisturbed_cache_was_never_touched(undisturbed, hashes):
    """What all others were held against."""
    assert hashes(undisturbed.cache) == undisturbed.files
    manifest = read_manifest(undisturbed.cache)
    for name, entry in manifest.shards.items():
        assert not Shard(undisturbed.cache / name, "jpeg", 96).damage(), entry
