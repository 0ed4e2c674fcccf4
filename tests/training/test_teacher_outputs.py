"""Files of a teacher's answers: the numbers come back, or a reason does; never others, and never half a file."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.plan import Plan, Stage, View, draw, nothing
from tests.small_disk import as_root as as_root
from tests.small_disk import small_disk
from training.distillation.outputs import FORMAT, KEY, Identity, plan_digests, read_outputs, write_outputs

KEY_TEXT = "seven and a half"
ROWS = 7
FIELDS = ("op", "value", "centre", "flip", "box")
FLIPPED = 60
"""Single bits that are tried in what holds the numbers."""


def identity(rows=ROWS, seed=0):
    """Ids and digests fill all 64 bits."""
    random = np.random.default_rng(seed)
    return Identity(*(random.integers(0, 2**64, rows, dtype=np.uint64) for _ in range(2)))


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def answers():
    return {"logits": numbers(ROWS, 3), "embedding": numbers(ROWS, 5, seed=2), "features": numbers(ROWS, 2, 3, 2)}


def rounded(values):
    return values.astype(np.float16).astype(np.float32)


def same_bits(found, expected):
    """NaN equals itself, and zeros have a sign."""
    return found.dtype == np.float32 and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def same_answers(found, expected):
    return found.keys() == expected.keys() and all(same_bits(found[name], expected[name]) for name in expected)


def is_refused(found):
    """An empty text says that there is no file."""
    return isinstance(found, str) and found != ""


def flip(path, place, bit):
    """One bit of a file that is there; a second time undoes it."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "kept" / "round.arrow"
    write_outputs(path, KEY_TEXT, identity(), answers())
    return path


class TestNumbers:
    def test_logits_and_embeddings_are_exact(self, tmp_path):
        strange = [np.nan, np.inf, -np.inf, -0.0, 1e-45, -1e-40, 65504.1, 3.4e38, 1 / 3]
        logits = np.resize(np.array(strange, np.float32), (ROWS, 4))
        columns = {"logits": logits, "embedding": numbers(ROWS, 33) * 1e6}
        write_outputs(tmp_path / "a.arrow", KEY_TEXT, identity(), columns)
        assert same_answers(read_outputs(tmp_path / "a.arrow", KEY_TEXT, identity()), columns)

    @pytest.mark.parametrize("shape", [(2, 3, 2), (16, 1, 1), (1, 4, 7), (3, 5)])
    def test_maps_are_rounded_to_half_precision_once(self, tmp_path, shape):
        """What was rounded already is exact."""
        path, maps = tmp_path / "a.arrow", 100 * numbers(ROWS, *shape)
        maps[2] = np.nan
        write_outputs(path, KEY_TEXT, identity(), {"features": maps})
        first = read_outputs(path, KEY_TEXT, identity())["features"]
        assert same_bits(first, rounded(maps))
        assert not same_bits(first, maps)
        write_outputs(path, KEY_TEXT, identity(), {"features": first})
        assert same_bits(read_outputs(path, KEY_TEXT, identity())["features"], first)

    def test_of_several_columns_do_not_mix(self, written):
        found, expected = read_outputs(written, KEY_TEXT, identity()), answers()
        assert list(found) == ["logits", "embedding", "features"]
        assert same_answers(found, {**expected, "features": rounded(expected["features"])})

    @pytest.mark.parametrize("rows", [0, 1])
    def test_of_few_rows(self, tmp_path, rows):
        columns = {"logits": numbers(rows, 3), "features": rounded(numbers(rows, 2, 2, 2))}
        write_outputs(tmp_path / "a.arrow", KEY_TEXT, identity(rows), columns)
        assert same_answers(read_outputs(tmp_path / "a.arrow", KEY_TEXT, identity(rows)), columns)

    def test_that_lie_in_memory_in_another_order(self, tmp_path):
        """Maps of networks that run with channels last, logits in the student's order."""
        maps, logits = rounded(numbers(ROWS, 4, 3, 2)).transpose(0, 3, 1, 2), numbers(2 * ROWS, 6)[::2, ::-1]
        write_outputs(tmp_path / "a.arrow", KEY_TEXT, identity(), {"features": maps, "logits": logits})
        found = read_outputs(tmp_path / "a.arrow", KEY_TEXT, identity())
        assert same_answers(found, {"features": maps, "logits": logits})

    def test_stay_when_the_file_goes(self, written):
        found = read_outputs(written, KEY_TEXT, identity())
        kept = {name: values.copy() for name, values in found.items()}
        written.write_bytes(bytes(written.stat().st_size))
        assert same_answers(found, kept)
        found["logits"][0] = 1.0  # theirs who asked

    def test_the_same_answers_make_the_same_file(self, written, tmp_path):
        write_outputs(tmp_path / "b.arrow", KEY_TEXT, identity(), answers())
        assert (tmp_path / "b.arrow").read_bytes() == written.read_bytes()


def test_anybody_can_read_the_file(tmp_path):
    path, logits = tmp_path / "a.arrow", numbers(ROWS, 3)
    write_outputs(path, KEY_TEXT, identity(), {"logits": logits, "features": numbers(ROWS, 2, 2, 2)})
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    assert table.column_names == ["sample_id", "plan", "logits", "features"]
    assert table.schema.types == [pa.uint64(), pa.uint64(), pa.list_(pa.float32(), 3), pa.list_(pa.float16(), 8)]
    assert table["sample_id"].to_pylist() == identity().ids.tolist()
    assert table["plan"].to_pylist() == identity().plans.tolist()
    assert table["logits"].to_pylist() == logits.tolist()


def other_id(whole):
    ids = whole.ids.copy()
    ids[-1] ^= np.uint64(1 << 63)
    return replace(whole, ids=ids)


def other_plan(whole):
    plans = whole.plans.copy()
    plans[0] ^= np.uint64(1)
    return replace(whole, plans=plans)


def in_order(whole, rows):
    return Identity(whole.ids[rows], whole.plans[rows])


OTHERS = {
    "another sample": other_id,
    "something else done to one": other_plan,
    "other samples": lambda whole: replace(whole, ids=identity(seed=5).ids),
    "another order": lambda whole: in_order(whole, np.roll(np.arange(ROWS), 1)),
    "two of another order": lambda whole: in_order(whole, [1, 0, *range(2, ROWS)]),
    "samples in another order": lambda whole: replace(whole, ids=whole.ids[::-1]),
    "plans in another order": lambda whole: replace(whole, plans=whole.plans[::-1]),
    "fewer": lambda whole: in_order(whole, slice(ROWS - 1)),
    "more": lambda whole: in_order(whole, [*range(ROWS), 0]),
    "none": lambda whole: in_order(whole, slice(0)),
    "the one for the other": lambda whole: Identity(whole.plans, whole.ids),
}


class TestRows:
    @pytest.mark.parametrize("case", OTHERS)
    def test_of_other_data_are_refused(self, written, case):
        found = read_outputs(written, KEY_TEXT, OTHERS[case](identity()))
        assert is_refused(found)
        assert "rows" in found

    @pytest.mark.parametrize("key", ["", "seven and a hal", "seven and a half ", "Seven and a half"])
    def test_under_another_key_are_refused(self, written, key):
        assert is_refused(read_outputs(written, key, identity()))

    def test_are_those_of_the_last_writing(self, written):
        write_outputs(written, "another", identity(seed=3), {"logits": numbers(ROWS, 2)})
        assert is_refused(read_outputs(written, KEY_TEXT, identity()))
        assert same_answers(read_outputs(written, "another", identity(seed=3)), {"logits": numbers(ROWS, 2)})


def foreign(path, metadata=None, *, stream=False, batches=1):
    """Arrow files that others might have left there: the columns are the right ones."""
    rows = identity()
    arrays = {
        "sample_id": pa.array(rows.ids),
        "plan": pa.array(rows.plans),
        "logits": pa.FixedSizeListArray.from_arrays(pa.array(numbers(ROWS * 3)), 3),
    }
    batch = pa.record_batch(arrays).replace_schema_metadata(metadata)
    with path.open("wb") as file, (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, batch.schema) as writer:
        for _ in range(batches):
            writer.write_batch(batch)


def relabelled(path, name):
    """Ours, but for the name of the format."""
    write_outputs(path, KEY_TEXT, identity(), answers())
    batch = pa.ipc.open_file(path.read_bytes()).get_batch(0)
    about = {**batch.schema.metadata, b"format": name}
    with path.open("wb") as file, pa.ipc.new_file(file, batch.schema.with_metadata(about)) as writer:
        writer.write_batch(batch.replace_schema_metadata(about))


OURS = {b"format": FORMAT.encode(), KEY: KEY_TEXT.encode()}
STRANGE = {
    "a table of somebody else's": foreign,
    "of another format": lambda path: relabelled(path, b"tacopress-cache"),
    "without a checksum": lambda path: foreign(path, OURS),
    "with another checksum": lambda path: foreign(path, {**OURS, b"sha256": b"0" * 64}),
    "a stream": lambda path: foreign(path, OURS, stream=True),
    "no rows at all": lambda path: foreign(path, OURS, batches=0),
    "other columns": lambda path: path.write_bytes(_other_columns()),
    "text": lambda path: path.write_text("answers\n" * 100),
    "bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "magic and nothing else": lambda path: path.write_bytes(b"ARROW1\0\0" + bytes(200) + b"ARROW1"),
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"A"),
}


def _other_columns():
    batch = pa.record_batch({"name": ["a", "b"]}).replace_schema_metadata(OURS)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


class TestDamage:
    def test_no_file_is_no_damage(self, tmp_path):
        assert read_outputs(tmp_path / "a.arrow", KEY_TEXT, identity()) == ""
        assert read_outputs(tmp_path / "no folder" / "a.arrow", KEY_TEXT, identity()) == ""
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("case", STRANGE)
    def test_another_file_in_its_place_has_a_reason_and_is_replaced(self, tmp_path, case):
        path = tmp_path / "a.arrow"
        STRANGE[case](path)
        assert is_refused(read_outputs(path, KEY_TEXT, identity()))
        write_outputs(path, KEY_TEXT, identity(), {"logits": numbers(ROWS, 3)})
        assert same_answers(read_outputs(path, KEY_TEXT, identity()), {"logits": numbers(ROWS, 3)})

    def test_a_folder_in_its_place_holds_nothing_and_stays(self, tmp_path):
        path = tmp_path / "a.arrow"
        path.mkdir()
        (path / "mine").write_text("mine")
        assert isinstance(read_outputs(path, KEY_TEXT, identity()), str)
        with pytest.raises(OSError, match=r"a\.arrow"):
            write_outputs(path, KEY_TEXT, identity(), answers())
        assert sorted(tmp_path.rglob("*")) == [path, path / "mine"]

    def test_half_a_file(self, written):
        """At 40 places, and where only the last bytes are missing."""
        whole = written.read_bytes()
        for length in [*range(1, len(whole), len(whole) // 40), *range(len(whole) - 12, len(whole))]:
            written.write_bytes(whole[:length])
            assert is_refused(read_outputs(written, KEY_TEXT, identity())), length

    def test_a_bit_among_the_numbers(self, written):
        whole, expected = written.read_bytes(), answers()
        good = read_outputs(written, KEY_TEXT, identity())
        stored = [identity().ids, identity().plans, expected["logits"], expected["embedding"]]
        blocks = [values.tobytes() for values in (*stored, expected["features"].astype(np.float16))]
        starts = [whole.index(block) for block in blocks]
        inside = np.concatenate(
            [np.arange(start, start + len(block)) for start, block in zip(starts, blocks, strict=True)]
        )
        random = np.random.default_rng(3)
        for place in random.choice(inside, FLIPPED, replace=False):
            bit = random.integers(8)
            flip(written, place, bit)
            assert is_refused(read_outputs(written, KEY_TEXT, identity())), (place, bit)
            flip(written, place, bit)
        for place in random.integers(min(inside), max(inside), FLIPPED):  # what lies between them counts for nothing
            flip(written, place, 0)
            found = read_outputs(written, KEY_TEXT, identity())
            assert is_refused(found) or same_answers(found, good), place
            flip(written, place, 0)
        assert same_answers(read_outputs(written, KEY_TEXT, identity()), good)

    def test_a_bit_of_what_describes_the_numbers(self, request, tmp_path):
        """Types, lengths and shapes decide what is read, and from where: a process of its own, for it may be killed."""
        command = "import sys, tests.training.test_teacher_outputs as t; t.flip_everywhere(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", command, str(tmp_path / "a.arrow")],
            cwd=request.config.rootpath,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"status {done.returncode} at {done.stderr[-200:].splitlines()[-1:]}"
        assert done.stdout == ""


def flip_everywhere(name):
    """One bit of every byte of a small file, one after the other; says where what comes back is wrong."""
    path = Path(name)
    columns = {"logits": numbers(ROWS, 3), "features": rounded(numbers(ROWS, 2, 2, 2))}
    write_outputs(path, KEY_TEXT, identity(), columns)
    random = np.random.default_rng(4)
    for place in range(path.stat().st_size):
        bit = int(random.integers(8))
        flip(path, place, bit)
        where = f"byte {place}, bit {bit}"
        sys.stderr.write(f"{where}\n")  # the last words, if that kills
        try:
            found = read_outputs(path, KEY_TEXT, identity())
            if not (is_refused(found) or same_answers(found, columns)):
                sys.stdout.write(f"{where}: other numbers\n")
        except Exception as error:
            sys.stdout.write(f"{where}: {error!r}\n")
        flip(path, place, bit)


class TestWriting:
    def test_makes_the_folder_and_leaves_nothing_else_in_it(self, written):
        write_outputs(written, KEY_TEXT, identity(), answers())
        assert [path.name for path in written.parent.iterdir()] == ["round.arrow"]

    def test_that_fails_leaves_what_was_there(self, written, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device")

        whole = written.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            for path in (written, written.with_name("new.arrow")):
                with pytest.raises(OSError, match="No space left"):
                    write_outputs(path, "another", identity(), answers())
        assert [path.name for path in written.parent.iterdir()] == ["round.arrow"]
        assert written.read_bytes() == whole

    def test_on_a_full_disk_leaves_what_was_there(self, as_root, tmp_path):
        if not as_root:
            return
        disk, big = tmp_path / "disk", {"logits": numbers(ROWS, 20_000)}
        with small_disk(disk, 128) as resize:
            path = disk / "answers" / "round.arrow"
            write_outputs(path, KEY_TEXT, identity(), answers())
            for name in ("round.arrow", "new.arrow"):
                with pytest.raises(OSError, match="No space left"):
                    write_outputs(path.with_name(name), KEY_TEXT, identity(), big)
                assert [file.name for file in path.parent.iterdir()] == ["round.arrow"]
            assert same_bits(read_outputs(path, KEY_TEXT, identity())["logits"], answers()["logits"])
            resize(4096)
            write_outputs(path, KEY_TEXT, identity(), big)
            assert same_answers(read_outputs(path, KEY_TEXT, identity()), big)


few = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def some_plan(seed, samples, slots):
    """A plan in which no two samples get the same."""
    random = np.random.default_rng(seed)
    return Plan(
        op=random.integers(0, 9, (1, samples, slots), dtype=np.int8),
        value=random.normal(size=(1, samples, slots)).astype(np.float32),
        centre=random.random((1, samples, slots, 2), np.float32),
        flip=random.random((1, samples)) < 0.5,
        box=random.random((1, samples, 4), np.float32),
    )


class TestPlanDigests:
    @few
    @given(seeds, st.integers(1, 6), st.integers(0, 3))
    def test_are_equal_for_equal_plans_alone(self, seed, samples, slots):
        found = plan_digests(some_plan(seed, samples, slots))
        assert found.dtype == np.uint64
        assert found.shape == (samples,)
        assert found.tolist() == plan_digests(some_plan(seed, samples, slots)).tolist()
        assert len(set(found.tolist())) == samples

    @pytest.mark.parametrize("field", FIELDS)
    @settings(max_examples=12, deadline=None)
    @given(seeds, st.integers(1, 6), st.integers(1, 3), st.integers(0, 7), st.data())
    def test_change_where_anything_changes_and_nowhere_else(self, field, seed, samples, slots, bit, data):
        """Every byte of what is done to a sample."""
        plan, row = some_plan(seed, samples, slots), data.draw(st.integers(0, samples - 1))
        before, whole = plan_digests(plan), getattr(plan, field)
        for place in range(whole[0, row].nbytes):
            changed = whole.copy()
            seen = changed[0, row : row + 1].reshape(-1).view(np.uint8)  # the same memory
            seen[place] ^= np.uint8(1 if field == "flip" else 1 << bit)  # a truth value has one bit
            after = plan_digests(replace(plan, **{field: changed}))
            assert np.flatnonzero(before != after).tolist() == [row]

    @few
    @given(seeds, st.integers(1, 6), st.integers(0, 3), st.data())
    def test_do_not_depend_on_the_other_rows(self, seed, samples, slots, data):
        plan = some_plan(seed, samples, slots)
        rows = data.draw(st.lists(st.integers(0, samples - 1), min_size=1, max_size=8))
        taken = plan_digests(plan.take(np.array(rows)))
        assert taken.tolist() == plan_digests(plan)[rows].tolist()
        assert plan_digests(plan.take(slice(None, None, 2))).tolist() == plan_digests(plan)[::2].tolist()

    @few
    @given(seeds, st.integers(2, 6))
    def test_of_swapped_rows_are_swapped(self, seed, samples):
        plan = some_plan(seed, samples, 2)
        order = np.roll(np.arange(samples), 1)
        assert plan_digests(plan.take(order)).tolist() == plan_digests(plan)[order].tolist()

    def test_of_what_is_drawn(self):
        """Rounds and seeds tell apart; a sample that nothing is done to has the digest of every such sample."""
        ids = np.arange(50, dtype=np.uint64)
        view = View(flip=True, min_area=0.5)

        def digests(seed, number):
            return plan_digests(draw(None, ids, seed=seed, stage=Stage.LOAD, rounds=(number,), view=view))

        assert digests(0, 1).tolist() == digests(0, 1).tolist()
        assert not (digests(0, 1) == digests(0, 2)).any()
        assert not (digests(0, 1) == digests(1, 1)).any()
        assert len(set(plan_digests(nothing(5)).tolist())) == 1
        flips = plan_digests(draw(None, ids, seed=0, stage=Stage.LOAD, rounds=(0,), view=View(flip=True)))
        assert len(set(flips.tolist())) == 2
