"""What info says of a cache, held against counts made row by row."""

import dataclasses
import io
import json
import os
import statistics
import warnings
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from augment_cache.format.manifest import read_manifest
from augment_cache.format.shards import Row, schema, write_shard
from augment_cache.format.source import CacheSource
from augment_cache.info import InfoConfig, info
from augment_cache.statistics.columns import read_columns
from augment_cache.statistics.figure import draw_info
from augment_cache.statistics.histogram import bar, binned, merged, round_edges, spread_of
from augment_cache.statistics.policy_text import policy_text, signed_text, strength_text
from augment_cache.statistics.tables import info_text
from augment_cache.statistics.tally import Tally, policy_ranges, strength_edges
from pipelines.augmentations import CODES, OPS
from pipelines.errors import UsageError

WIDTH = 100
POLICY = """
ops_per_copy: 3
ops:
  - {op: Rotate, range: [0, 15], probability: 0.6}
  - {op: Posterize, range: [8, 5]}
  - {op: Invert, probability: 0.5}
  - {op: Cutout, range: [0.1, 0.3], probability: 0.9}
"""


@pytest.fixture(scope="module")
def several_ops(photos, build_cache, tmp_path_factory):
    """A cache with up to three ops on a copy, some of them twice, some copies without any."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "mine.yaml").write_text(POLICY, encoding="utf-8")
    build_cache(photos, folder / "cache", policy=str(folder / "mine.yaml"), copies=3)
    return folder / "cache"


@pytest.fixture(scope="module")
def no_copies(photos, build_cache, tmp_path_factory):
    """A cache of originals."""
    out = tmp_path_factory.mktemp("originals") / "cache"
    build_cache(photos, out, copies=0)
    return out


@pytest.fixture(params=["cache", "raw_cache", "several_ops", "no_copies"])
def any_cache(request):
    """Each kind of cache."""
    return request.getfixturevalue(request.param)


def records(folder, split):
    source = CacheSource(folder, split)
    return [source.record(row) for row in range(len(source.labels))]


def counted(folder, split):
    """The facts of a split, one row at a time."""
    rows, classes = records(folder, split), read_manifest(folder).classes
    sizes = [len(row.image) for row in rows]
    copies = Counter(row.copy for row in rows)
    per_copy = Counter(len(row.op) for row in rows if row.copy)
    files = sorted((folder / split).glob("*.arrow"))
    return {
        "samples": sum(row.copy == 0 for row in rows),
        "rows": len(rows),
        "bytes": sum(file.stat().st_size for file in files),
        "shards": len(files),
        "classes": {name: sum(row.label == label for row in rows) for label, name in enumerate(classes)},
        "originals": {
            name: sum(row.label == label and row.copy == 0 for row in rows) for label, name in enumerate(classes)
        },
        "copies": [copies[number] for number in range(max(copies) + 1)],
        "ops_per_copy": [per_copy[number] for number in range(max(per_copy) + 1)] if per_copy else [],
        "image_share": round(sum(sizes) / sum(file.stat().st_size for file in files), 4),
        "image_bytes": {
            "min": min(sizes),
            "median": statistics.median(sizes),
            "mean": round(statistics.fmean(sizes), 2),
            "max": max(sizes),
            "total": sum(sizes),
        },
    }


def test_facts_are_those_of_the_rows(any_cache):
    report = info(InfoConfig(cache=any_cache))
    assert list(report["splits"]) == ["train", "val", "test"]
    for split, entry in report["splits"].items():
        expected = counted(any_cache, split)
        assert {key: entry[key] for key in expected} == expected


def test_ops_are_those_of_the_rows(any_cache):
    for split, entry in info(InfoConfig(cache=any_cache))["splits"].items():
        applied = [
            (number, name, value)
            for number, row in enumerate(records(any_cache, split))
            for name, value in zip(row.op, row.magnitude, strict=True)
        ]
        assert list(entry["ops"]) == sorted({name for _, name, _ in applied}, key=CODES.__getitem__)
        for name, op in entry["ops"].items():
            values = [value for _, other, value in applied if other == name]
            assert op["times"] == len(values)
            assert op["rows"] == len({number for number, other, _ in applied if other == name})
            found = (op["mean_strength"], op["least"], op["most"])
            if OPS[CODES[name]].has_value:
                expected = (statistics.fmean(map(abs, values)), min(values), max(values))
                assert found == pytest.approx(expected, abs=1e-6)
                assert sum(op["histogram"]["counts"]) == len(values)
            else:
                assert (*found, op["histogram"]) == (None,) * 4


def test_strengths_lie_in_their_bins(several_ops):
    ops = info(InfoConfig(cache=several_ops))["splits"]["train"]["ops"]
    rows = records(several_ops, "train")
    for name in ("Rotate", "Cutout", "Posterize"):
        values = [value for row in rows for op, value in zip(row.op, row.magnitude, strict=True) if op == name]
        edges, counts = ops[name]["histogram"]["edges"], ops[name]["histogram"]["counts"]
        for place, (low, high) in enumerate(pairwise(edges)):
            last = place == len(counts) - 1
            inside = sum(low <= value < high or (last and value == pytest.approx(high)) for value in values)
            assert counts[place] == inside, (name, low, high)
    assert (ops["Rotate"]["histogram"]["edges"][0], ops["Rotate"]["histogram"]["edges"][-1]) == (-15, 15)
    assert ops["Posterize"]["histogram"]["edges"] == [4.5, 5.5, 6.5, 7.5, 8.5]


def test_several_ops_on_a_copy(several_ops):
    entry = info(InfoConfig(cache=several_ops))["splits"]["train"]
    assert len(entry["ops_per_copy"]) == 4
    assert sum(entry["ops_per_copy"]) == entry["rows"] - entry["samples"]
    times = sum(op["times"] for op in entry["ops"].values())
    assert times == sum(number * count for number, count in enumerate(entry["ops_per_copy"]))
    assert times > sum(op["rows"] for op in entry["ops"].values()), "some copy got an op twice"
    assert "times" in info_text(info(InfoConfig(cache=several_ops)))


def test_sizes_lie_in_their_bins(cache):
    splits = info(InfoConfig(cache=cache))["splits"]
    assert len({tuple(entry["image_histogram"]["edges"]) for entry in splits.values()}) == 1
    for split, entry in splits.items():
        sizes = [len(row.image) for row in records(cache, split)]
        edges, counts = entry["image_histogram"]["edges"], entry["image_histogram"]["counts"]
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            assert count == sum(low <= size < high for size in sizes)
        assert sum(counts) == len(sizes)


def test_raw_images_are_all_of_one_size(raw_cache):
    report = info(InfoConfig(cache=raw_cache))
    for entry in report["splits"].values():
        assert entry["image_histogram"] is None
        assert entry["image_bytes"]["min"] == entry["image_bytes"]["max"] == 32 * 32 * 3
    assert "every image takes 3,072 bytes" in info_text(report)


def test_what_the_manifest_says(cache):
    report, manifest = info(InfoConfig(cache=cache)), read_manifest(cache)
    said = json.loads((cache / "manifest.json").read_text(encoding="utf-8"))
    assert report["folder"] == str(cache)
    assert report["classes"] == list(manifest.classes)
    assert (report["recipe"], report["made_with"]) == (manifest.recipe, manifest.made_with)
    assert (report["fingerprint"], report["format_version"]) == (said["fingerprint"], said["version"])
    assert report["rejected"] == {"count": 0, "splits": {}, "reasons": {}}
    assert report["plot"] is None


def test_balance_is_of_the_originals(cache):
    for entry in info(InfoConfig(cache=cache))["splits"].values():
        originals = entry["originals"]
        ratio = round(max(originals.values()) / min(originals.values()), 4)
        assert entry["balance"]["ratio"] == ratio
        assert originals[entry["balance"]["largest"]] == max(originals.values())
        assert originals[entry["balance"]["smallest"]] == min(originals.values())


def test_a_class_without_images(cut_photos, build_cache, tmp_path):
    for path in (cut_photos / "val" / "Paper").rglob("*.jpg"):
        path.unlink()
    build_cache(cut_photos, tmp_path / "cache", allow_empty_classes=True)
    report = info(InfoConfig(cache=tmp_path / "cache"))
    balance = report["splits"]["val"]["balance"]
    assert (balance["smallest"], balance["ratio"]) == ("Paper", None)
    assert "val without Paper" in info_text(report)
    assert draw_info(info(InfoConfig(cache=tmp_path / "cache", split="val")))


def test_one_split(cache):
    whole, part = info(InfoConfig(cache=cache)), info(InfoConfig(cache=cache, split="val"))
    assert list(part["splits"]) == ["val"]
    without = {key: value for key, value in whole["splits"]["val"].items() if key != "image_histogram"}
    assert without.items() <= part["splits"]["val"].items()
    assert "train" not in info_text(part).partition("images per class")[2]


def test_rejected_images_and_shards_without_rows(own_photos, cache, build_cache, tmp_path):
    shard = read_manifest(cache).splits["train"].shards[0].file
    name = shard.rpartition("/")[2]
    with pa.memory_map(str(cache / shard)) as file:
        sources = set(pa.ipc.open_file(file).read_all()["source"].to_pylist())
    for number, source in enumerate(sorted(sources)):
        (own_photos / source).write_bytes(b"" if number == 0 else b"no image at all")
    build_cache(own_photos, tmp_path / "cache")
    assert read_columns(tmp_path / "cache" / "train" / name, 3).labels.shape == (0,)
    report = info(InfoConfig(cache=tmp_path / "cache"))
    rejected = report["rejected"]
    assert rejected["count"] == len(sources) == rejected["splits"]["train"] > 1
    assert sorted(rejected["reasons"].values(), reverse=True) == [len(sources) - 1, 1]
    expected = counted(tmp_path / "cache", "train")
    assert {key: report["splits"]["train"][key] for key in expected} == expected
    text = info_text(report)
    assert f"rejected     {len(sources)}: " in text
    for reason, count in rejected["reasons"].items():
        assert f"{reason} ({count})" in " ".join(text.split())


def test_a_shard_without_rows(tmp_path):
    path = tmp_path / "shard.arrow"
    for encoding in ("jpeg", "raw"):
        write_shard(path, [], schema(["a", "b"], encoding, 4, {}), 4)
        tally = Tally(2, {})
        tally.add(read_columns(path, 2))
        assert (tally.rows.tolist(), tally.copies.tolist(), tally.ops) == ([0, 0], [], {})


def test_an_op_of_a_later_version(tmp_path):
    rows = [Row(1, 1, b"x", 0, "s", ("Swirl", "Rotate"), (value, 1.0), (0.0,) * 4) for value in (-2.5, 0.5)]
    write_shard(tmp_path / "shard.arrow", rows, schema(["a"], "jpeg", 4, {}), 4)
    tally = Tally(1, {})
    tally.add(read_columns(tmp_path / "shard.arrow", 1))
    expected = {"rows": 2, "times": 2, "mean_strength": 1.5, "least": -2.5, "most": 0.5, "histogram": None}
    assert tally.ops["Swirl"].as_dict() == expected
    assert (strength_text("Swirl", 1.5), signed_text("Swirl", -2.5)) == ("1.5", "-2.5")


def test_the_command_prints_json(command, cache):
    status, out, err = command("info", "--cache", cache, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == info(InfoConfig(cache=cache))


def test_the_command_prints_tables(command, any_cache):
    status, out, err = command("info", "--cache", any_cache)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= WIDTH
    assert out.rstrip("\n") == info_text(info(InfoConfig(cache=any_cache)))


def test_tables_hold_the_numbers(cache):
    report = info(InfoConfig(cache=cache))
    lines = [line.split() for line in info_text(report).splitlines()]
    splits = report["splits"]
    for name in report["classes"]:
        train, val, test = (splits[split]["originals"][name] for split in ("train", "val", "test"))
        numbers = [train, splits["train"]["classes"][name], val, test]
        assert [*name.split(), *map(str, numbers)] in lines
    for name, op in splits["train"]["ops"].items():
        (line,) = (line for line in lines if line[:1] == [name])
        assert line[1] == str(op["rows"])
    for split, entry in splits.items():
        sizes = [f"{round(entry['image_bytes'][key]):,}" for key in ("min", "median", "mean", "max")]
        assert any(line[:2] == [split, str(entry["shards"])] and line[-4:] == sizes for line in lines)
    for low, count in zip(*(splits["train"]["image_histogram"][key] for key in ("edges", "counts")), strict=False):
        assert any(line[:2] == [f"{low:,}", "to"] and line[-3] == str(count) for line in lines)


@pytest.mark.parametrize("count", [1, 60])
def test_many_classes_and_long_names_fit(cache, count):
    report = info(InfoConfig(cache=cache, split=None if count > 1 else "val"))
    names = [f"{'a very long name ' * 5}{number} $5$\nsecond line" for number in range(count)]
    report["classes"] = names
    for entry in report["splits"].values():
        entry["originals"] = {name: 1000 * place + 1 for place, name in enumerate(names)}
        entry["classes"] = {name: 3000 * place + 3 for place, name in enumerate(names)}
        entry["balance"] = {"largest": names[-1], "smallest": names[0], "ratio": 12345.5}
    assert max(map(len, info_text(report).splitlines())) <= WIDTH
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        height = Image.open(io.BytesIO(draw_info(report))).height
    assert (height > 2000) == (count == 60)


def test_a_plot_is_a_png_and_always_the_same(command, cache, tmp_path):
    status, out, _ = command("info", "--cache", cache, "--plot", tmp_path / "new" / "a.png")
    assert status == 0
    assert str(tmp_path / "new" / "a.png") in out
    drawn = (tmp_path / "new" / "a.png").read_bytes()
    assert drawn == draw_info(info(InfoConfig(cache=cache)))
    with Image.open(io.BytesIO(drawn)) as picture:
        picture.load()
        assert (picture.format, picture.width) == ("PNG", 1430)
        assert len(np.unique(np.asarray(picture).reshape(-1, 4), axis=0)) > 5, "nothing was drawn"


def test_a_plot_has_a_part_for_everything_there_is(cache, no_copies, raw_cache):
    """Originals and sizes; copies bring ops and their strengths."""
    heights = []
    for folder, split in ((raw_cache, "val"), (no_copies, "train"), (cache, "train")):
        drawn = draw_info(info(InfoConfig(cache=folder, split=split)))
        heights.append(Image.open(io.BytesIO(drawn)).height)
    assert heights[0] + 200 < heights[1] < heights[2] - 200


def test_the_images_are_not_read(own_cache):
    """Damaged pixels are verify's business."""
    whole = info(InfoConfig(cache=own_cache))
    for path in own_cache.rglob("*.arrow"):
        data = path.read_bytes()
        start = data.index(b"\xff\xd8\xff")
        path.write_bytes(data[:start] + bytes(100) + data[start + 100 :])
    assert info(InfoConfig(cache=own_cache)) == whole


def test_no_cache_and_no_split(command, cache, tmp_path):
    for words, told in (
        (["--cache", tmp_path], "is no cache"),
        (["--cache", cache, "--split", "dev"], "no split 'dev'; it has train, val, test"),
        (["--cache", cache, "--plot", tmp_path / "a.pdf"], "must end in .png"),
    ):
        status, out, err = command("info", *words)
        assert (status, out) == (2, "")
        assert told in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["missing", "empty", "text", "cut"])
def test_a_damaged_shard_is_named(command, own_cache, tmp_path, how):
    path = own_cache / read_manifest(own_cache).splits["train"].shards[1].file
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes({"empty": b"", "text": b"text" * 99, "cut": data[: len(data) // 2]}[how])
    status, out, err = command("info", "--cache", own_cache, "--plot", tmp_path / "a.png")
    assert (status, out) == (2, "")
    assert str(path) in err
    assert f"augment_cache.verify --cache {own_cache} --repair" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a.png").exists()
    assert info(InfoConfig(cache=own_cache, split="val"))["splits"]["val"]["rows"]


def test_a_shard_of_other_rows(own_cache):
    shards = sorted(read_manifest(own_cache).splits["train"].shards, key=lambda shard: shard.rows)
    few, many = own_cache / shards[0].file, own_cache / shards[-1].file
    few.write_bytes(many.read_bytes())
    with pytest.raises(UsageError, match=rf"{few} has {shards[-1].rows} rows, not {shards[0].rows} .*verify"):
        info(InfoConfig(cache=own_cache))


def test_a_manifest_of_other_rows(own_cache):
    manifest = read_manifest(own_cache)
    train = manifest.splits["train"]
    classes = train.classes | {"Paper": train.classes["Paper"] + 1}
    for entry in (dataclasses.replace(train, classes=classes), dataclasses.replace(train, samples=train.samples - 1)):
        dataclasses.replace(manifest, splits=manifest.splits | {"train": entry}).write(own_cache)
        with pytest.raises(UsageError, match=r"train split of .* other rows or originals .* augment_cache\.verify"):
            info(InfoConfig(cache=own_cache))


@pytest.mark.parametrize("how", ["missing", "short", "bytes"])
def test_a_damaged_list_of_rejected_images(own_cache, how):
    path = own_cache / "rejected.csv"
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"split,source,class,reason\ntrain,a,b,c\n" if how == "short" else b"\xff,\xfe\n\xff,1\n")
    with pytest.raises(UsageError, match=r"rejected\.csv .*augment_cache\.verify"):
        info(InfoConfig(cache=own_cache))


@pytest.fixture(scope="module")
def shard_bytes(cache):
    """A shard, as bytes."""
    return (cache / read_manifest(cache).splits["train"].shards[0].file).read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_an_error_or_harmless(shard_bytes, tmp_path_factory, data):
    """A flipped offset must not be followed out of the file."""
    places = data.draw(st.lists(st.integers(0, len(shard_bytes) - 1), min_size=1, max_size=6))
    changed = bytearray(shard_bytes)
    for place in places:
        changed[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged-{os.getpid()}" / "train" / "shard.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(changed)
    try:
        columns = read_columns(path, 3)
    except UsageError:
        return
    tally = Tally(3, {})
    tally.add(columns)
    assert tally.rows.sum() == len(columns.labels)


SIZES = st.lists(st.integers(0, 10**7), min_size=1, max_size=60)


@given(values=SIZES, bins=st.integers(2, 40))
def test_round_edges_hold_everything(values, bins):
    edges = round_edges(min(values), max(values), bins)
    assert 1 <= len(edges) - 1 <= bins
    assert edges[0] <= min(values)
    assert edges[-1] > max(values)
    (step,) = set(np.diff(edges).tolist())
    assert str(step).rstrip("0") in ("1", "2", "5")
    assert edges[0] % step == 0
    assert binned(spread_of(np.array(values)), edges).sum() == len(values)


@given(first=SIZES, second=SIZES)
def test_spreads_are_exact(first, second):
    spread = merged(spread_of(np.array(first)), spread_of(np.array(second)))
    assert spread.median() == statistics.median(first + second)
    assert spread.total == sum(first + second)
    assert dict(zip(*(part.tolist() for part in spread), strict=True)) == Counter(first + second)


@given(share=st.floats(0, 1), width=st.integers(1, 60))
def test_bars_are_as_long_as_they_should_be(share, width):
    text = bar(share, width)
    assert abs(len(text) - share * width) <= 1
    assert bool(text) == (share > 0)
    assert text.strip("█▏▎▍▌▋▊▉") == ""
    assert "█" not in text.lstrip("█"), "whole blocks come first"


def test_known_bars():
    assert [bar(share, 4) for share in (0, 0.001, 0.25, 0.5, 0.53125, 1)] == ["", "▏", "█", "██", "██▏", "████"]


def test_bins_of_strengths():
    op = {op.name: op for op in OPS}
    assert strength_edges(op["Rotate"])[[0, -1]].tolist() == [-30, 30]
    assert strength_edges(op["Rotate"], (0.0, 15.0))[[0, -1]].tolist() == [-15, 15]
    assert strength_edges(op["Cutout"], (0.2, 0.2))[[0, -1]].tolist() == [0, 0.5], "a range of one value is no range"
    assert strength_edges(op["Solarize"])[[0, -1]].tolist() == [0, 256]
    assert strength_edges(op["Posterize"]).tolist() == [3.5, 4.5, 5.5, 6.5, 7.5, 8.5]
    assert len(strength_edges(op["Invert"])) == 0


def test_ranges_of_a_policy():
    turns = [[{"op": "Rotate", "range": [5, 9]}, {"op": "Solarize", "range": [200, 100]}]]
    turns += [[{"op": "Rotate", "range": [1, 6]}]]
    assert policy_ranges({"turns": turns}) == {"Rotate": (1.0, 9.0), "Solarize": (100.0, 200.0)}
    for other in (None, "taco14", {}, {"turns": 3}, {"turns": [{"op": "Rotate"}]}):
        assert policy_ranges(other) == {}


def test_a_policy_in_words():
    def choice(op, low=0.0, high=0.0, probability=1.0):
        return {"op": op, "range": [low, high], "probability": probability}

    both = [choice("Rotate", 0, 15, 0.8), choice("Invert")]
    assert policy_text({"name": "mine", "turns": [both]}) == "mine: one of 2 ops: Rotate ±15 (in 80%), Invert"
    words = policy_text({"name": "x", "turns": [both, both, [choice("Zoom", 0.1, 0.2)], [choice("Swirl", 1, 2)]]})
    assert words == "x: 2 times one of 2 ops: Rotate ±15 (in 80%), Invert; then Zoom ±0.1 to 0.2; then Swirl 1 to 2"
    for odd in ({"name": "x"}, {"name": "x", "turns": 3}, {"name": "x", "turns": [[{"op": "Rotate"}]]}, "x"):
        assert policy_text(odd) == "x"


@pytest.mark.parametrize(
    ("name", "value", "mean", "signed"),
    [
        ("Rotate", 12.5, "12.5°", "+12.5°"),
        ("TranslateX", 0.25, "25%", "+25%"),
        ("Brightness", 0.25, "times 1 ± 0.25", "times 1.25"),
        ("Posterize", 5.5, "5.5 bits", "6 bits"),
        ("Solarize", 128.0, "from level 128", "from level 128"),
        ("ShearX", 0.25, "0.25", "+0.25"),
        ("Invert", None, "-", "-"),
    ],
)
def test_strengths_in_words(name, value, mean, signed):
    assert (strength_text(name, value), signed_text(name, value)) == (mean, signed)


def test_every_op_has_words():
    for op in OPS:
        value = op.high if op.has_value else None
        assert strength_text(op.name, value)
        assert signed_text(op.name, value)
