"""Whatever is given to the jobs: what is good is built, what is bad is named, and nothing ends in a traceback."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from augment_cache.build import BuildConfig
from augment_cache.format.manifest import read_manifest
from augment_cache.format.source import CacheSource
from pipelines.errors import UsageError

NAN, INF = float("nan"), float("inf")

# What may be wrong with a file → how, and a word of the reason that rejected.csv gives.
DAMAGE = {
    "zero bytes": (lambda data: b"", "empty"),
    "truncated": (lambda data: data[: len(data) * 2 // 3], "damaged JPEG"),
    "cut in the header": (lambda data: data[:30], "damaged JPEG header"),
    "text": (lambda data: b"<html>404 not found</html>", "not an image"),
    "zeros": (lambda data: bytes(len(data)), "not an image"),
    "only the first bytes": (lambda data: b"\xff\xd8\xff\xe0" + bytes(200), "JPEG header"),
}


def damaged(path, kind):
    path.write_bytes(DAMAGE[kind][0](path.read_bytes()))
    return path


def rejected(folder):
    with (folder / "rejected.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def one_line(text):
    return text.count("\n") == 1 and "Traceback" not in text


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_image_is_listed_and_the_rest_is_built(own_photos, build_cache, tmp_path, kind):
    path = damaged(sorted((own_photos / "Métal").glob("*.jpg"))[2], kind)
    report = build_cache(own_photos, tmp_path / "cache")
    (line,) = rejected(tmp_path / "cache")
    assert line["source"] == path.relative_to(own_photos).as_posix()
    assert line["class"] == "Métal"
    assert DAMAGE[kind][1] in line["reason"]
    assert not re.search(r"0x[0-9a-f]+|: -?\d+$|<_io", line["reason"]), "neither addresses nor bare numbers are reasons"
    assert report["rejected"] == read_manifest(tmp_path / "cache").rejected == 1
    samples = {split: entry["samples"] for split, entry in report["splits"].items()}
    assert sum(samples.values()) == 39
    names = set()
    for split, count in samples.items():
        source = CacheSource(tmp_path / "cache", split)
        found = {source.record(row).source for row in range(len(source.labels))}
        assert len(found) == count
        assert len(list(source.fetch(np.arange(len(source.labels))))) == len(source.labels)
        names |= found
    assert len(names) == 39
    assert line["source"] not in names


def test_rejects_do_not_depend_on_who_builds(own_photos, build_cache, hashes, tmp_path):
    for number, kind in enumerate(DAMAGE):
        damaged(sorted(own_photos.rglob("*.jpg"))[number * 5], kind)
    build_cache(own_photos, tmp_path / "a", batch=1, threads=1)
    build_cache(own_photos, tmp_path / "b", batch=64, threads=3)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert len(rejected(tmp_path / "a")) == len(DAMAGE)


def test_rejects_are_remembered_by_reused_shards(own_photos, build_cache, hashes, tmp_path):
    damaged(own_photos / "Paper" / "0001.jpg", "truncated")
    build_cache(own_photos, tmp_path / "cache")
    before = hashes(tmp_path / "cache")
    (tmp_path / "cache" / "manifest.json").unlink()
    (tmp_path / "cache" / "rejected.csv").unlink()
    report = build_cache(own_photos, tmp_path / "cache")
    assert report["reused_shards"] > 0
    assert hashes(tmp_path / "cache") == before


def test_a_mended_image_comes_back(own_photos, cache, build_cache, hashes, tmp_path, photos):
    damaged(own_photos / "Paper" / "0001.jpg", "zero bytes")
    build_cache(own_photos, tmp_path / "cache")
    shutil.copy(photos / "Paper" / "0001.jpg", own_photos / "Paper" / "0001.jpg")
    assert build_cache(own_photos, tmp_path / "cache")["rejected"] == 0
    assert hashes(tmp_path / "cache") == hashes(cache)


def test_a_name_with_a_comma_and_quotes_survives_rejected_csv(own_photos, build_cache, tmp_path):
    (own_photos / "Paper" / 'a, "b".jpg').write_bytes(b"")
    build_cache(own_photos, tmp_path / "cache")
    assert [line["source"] for line in rejected(tmp_path / "cache")] == ['Paper/a, "b".jpg']


@pytest.mark.parametrize("name", [b"Paper/b\xff.jpg", b"Pap\xff/b.jpg"])
def test_a_name_that_is_no_utf8_is_refused_by_name(own_photos, build_cache, jpeg, tmp_path, name):
    """Arrow's texts are UTF-8; other names end up nowhere."""
    path = Path(os.fsdecode(os.fsencode(own_photos) + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(jpeg(1))
    with pytest.raises(UsageError, match=r"\\udcff.*not UTF-8.*rename it"):
        build_cache(own_photos, tmp_path / "cache", val=0, test=0)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\rb.jpg", " .jpg", "a,b.jpg", '"', "日本.jpg", "-x.jpg", "a'b;c.JPG"])
def test_strange_names_keep_their_split(own_photos, build_cache, hashes, jpeg, tmp_path, name):
    (own_photos / "Paper" / (name if "." in name else f"{name}.jpg")).write_bytes(jpeg(1))
    build_cache(own_photos, tmp_path / "cache")
    before = hashes(tmp_path / "cache")
    assert build_cache(own_photos, tmp_path / "cache")["built_shards"] == 0
    assert hashes(tmp_path / "cache") == before


def test_all_images_of_a_split_damaged(cut_photos, build_cache, tmp_path):
    for path in (cut_photos / "val").rglob("*.jpg"):
        damaged(path, "zero bytes")
    with pytest.raises(UsageError, match=r"no image of the val split could be read; .*rejected\.csv says why"):
        build_cache(cut_photos, tmp_path / "cache")
    assert len(rejected(tmp_path / "cache")) == 9
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_too_few_images_for_every_split_is_no_damage(build_cache, jpeg, tmp_path):
    """With 2 images and three splits one stays empty: rejected.csv would not say why."""
    (tmp_path / "few" / "Paper").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "few" / "Paper" / f"{number}.jpg").write_bytes(jpeg(number))
    with pytest.raises(UsageError) as error:
        build_cache(tmp_path / "few", tmp_path / "cache")
    assert "could be read" not in str(error.value)


def folder_empty(folder):
    return folder


def folder_missing(folder):
    return folder / "gone"


def folder_class_without_images(folder):
    (folder / "Glass").mkdir()
    (folder / "Metal").mkdir()
    (folder / "Glass" / "readme.txt").write_text("no image", encoding="utf-8")
    return folder


def folder_loose_images(folder):
    (folder / "a.jpg").write_bytes(b"x")
    return folder


def folder_link_out(folder):
    (folder.parent / "secret.jpg").write_bytes(b"x")
    (folder / "Glass").mkdir()
    (folder / "Glass" / "a.jpg").symlink_to(folder.parent / "secret.jpg")
    return folder


def folder_cut_without_classes(folder):
    (folder / "train").mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (folder_empty, "holds no class folders"),
        (folder_missing, "is no folder"),
        (folder_class_without_images, "class 'Glass' has no images"),
        (folder_loose_images, "holds no class folders"),
        (folder_link_out, "is a link that leaves"),
        (folder_cut_without_classes, "holds no class folders"),
    ],
)
def test_a_folder_that_cannot_be_opened(command, tmp_path, make, words):
    (tmp_path / "data").mkdir()
    status, out, err = command("build", "--data", make(tmp_path / "data"), "--out", tmp_path / "cache")
    assert (status, out) == (2, "")
    assert words in err
    assert one_line(err)
    assert not (tmp_path / "cache").exists()


def test_a_class_without_images_can_be_accepted(own_photos, build_cache, tmp_path):
    (own_photos / "Batteries").mkdir()
    with pytest.raises(UsageError, match="class 'Batteries' has no images"):
        build_cache(own_photos, tmp_path / "cache")
    report = build_cache(own_photos, tmp_path / "cache", allow_empty_classes=True)
    assert report["classes"][0] == "Batteries"
    assert report["splits"]["train"]["classes"]["Batteries"] == 0


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"size": 3},
        {"quality": 0},
        {"quality": 101},
        {"copies": -1},
        {"seed": -1},
        {"processes": -1},
        {"processes": 1025},
        {"threads": -1},
        {"of": 0},
        {"part": 1},
        {"part": -1, "of": 2},
        {"part": 2, "of": 2},
        {"batch": 0},
        {"shard_mib": 0.0},
        {"shard_mib": 1e-9},
        {"shard_mib": NAN},
        {"shard_mib": INF},
        {"val": -0.1},
        {"val": 0.6, "test": 0.4},
        {"val": NAN},
        {"val": INF},
        {"policy": "taco15"},
    ],
    ids=str,
)
def test_an_option_outside_its_range(photos, build_cache, tmp_path, option):
    with pytest.raises(UsageError):
        build_cache(photos, tmp_path / "cache", **option)
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_an_unknown_policy_names_those_there_are(command, photos, tmp_path):
    status, _, err = command("build", "--data", photos, "--out", tmp_path / "cache", "--policy", "taco15")
    assert status == 2
    assert "'taco15'" in err
    assert "taco14" in err
    assert one_line(err)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ops: [{op: Rotate}]\nslots: 2\n", "unknown key 'slots'"),
        ("ops: [{op: Rotate, strength: 2}]\n", "ops[0]: unknown key 'strength'"),
        ("ops: [{op: Rotate}, {op: Blur}]\n", "ops[1]: unknown op 'Blur'"),
        ("ops: [{op: [Rotate]}]\n", "policy.yaml"),
        ("ops: [{op: Rotate, range: [0, 45]}]\n", "Rotate: range [0.0, 45.0] leaves [0.0, 30.0]"),
        ("ops: [{op: Rotate, range: [.nan, 3]}]\n", "Rotate: range"),
        ("ops: [{op: Rotate, range: 3}]\n", "policy.yaml"),
        ("ops: [{op: Rotate, range: [1, 2, 3]}]\n", "policy.yaml"),
        ("ops: [{op: Rotate, range: [a, b]}]\n", "policy.yaml"),
        ("ops: [{op: Rotate, probability: 1.5}]\n", "probability must be in [0, 1]"),
        ("ops: [{op: Rotate, probability: .nan}]\n", "probability must be in [0, 1]"),
        ("ops: []\n", "offers no op"),
        ("ops: [Rotate]\n", "expected a mapping with a key `op`"),
        ("ops: {op: Rotate}\n", "expected a mapping with a list `ops`"),
        ("ops_per_copy: 1\n", "expected a mapping with a list `ops`"),
        ("ops: [{op: Rotate}]\nops_per_copy: 17\n", "must be 1 to 16"),
        ("ops: [{op: Rotate}]\nops_per_copy: 0\n", "must be 1 to 16"),
        ("ops: [{op: Rotate}]\nops_per_copy: 1.5\n", "ops_per_copy"),
        ("", "expected a mapping"),
        ("just words\n", "expected a mapping"),
        ("ops: [\n", "not YAML"),
        ("ops: !!python/object/apply:os.getcwd []\n", "not YAML"),
        (b"\xff\xfe\x00broken", "policy.yaml"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_policy_that_means_nothing(command, photos, tmp_path, text, words):
    path = tmp_path / "policy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    status, _, err = command("build", "--data", photos, "--out", tmp_path / "cache", "--policy", path)
    assert status == 2
    assert words in err
    assert one_line(err)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "words", [["--fit", "squash"], ["--size", "big"], ["--colour", "red"], ["--encoding", "png"], []], ids=str
)
def test_words_that_the_command_line_does_not_know(command, photos, words):
    status, out, err = command("build", *(["--data", photos] if words else []), *words)
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    assert (words[0].removeprefix("--") if words else "data") in err


def test_config_knows_its_limits():
    with pytest.raises(UsageError, match="--size must be 4 to 4096, got 5000"):
        BuildConfig(data=Path("x"), size=5000)


# --- in a process of its own, as a person runs it ------------------------------------------------------------------


def run(*words):
    command = [sys.executable, "-m", *(str(word) for word in words)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)


def test_strict_stops_and_names_the_file(own_photos, tmp_path):
    path = damaged(own_photos / "Paper" / "0001.jpg", "truncated")
    words = ["--out", tmp_path / "cache", "--engine", "cpu", "--processes", 2, "--strict", "true"]
    result = run("augment_cache.build", "--data", own_photos, *words)
    assert (result.returncode, result.stdout) == (1, "")
    assert str(path) in result.stderr
    assert one_line(result.stderr)
    assert not (tmp_path / "cache" / "manifest.json").exists()
    assert not [left for left in tmp_path.rglob("*") if "partial" in left.name]


def test_json_is_the_only_thing_on_standard_output(photos, tmp_path):
    words = ["--out", tmp_path / "cache", "--engine", "cpu", "--size", 32, "--json"]
    result = run("augment_cache.build", "--data", photos, *words)
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["splits"]["train"]["rows"] == 3 * report["splits"]["train"]["samples"]
