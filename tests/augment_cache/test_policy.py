"""Policies: what is written out can be read again, what makes no sense is refused, and those shipped are whole."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from augment_cache.format.policy import (
    PolicyFile,
    load_policy,
    parse_policy,
    policy_as_dict,
    read_policy,
    shipped_policies,
    write_policy,
)
from pipelines.augmentations import CODES, OPS, Choice, Policy, full_range
from pipelines.errors import UsageError
from pipelines.plan import Stage, draw

FOURTEEN = [
    *("Invert", "Contrast", "AutoContrast", "Rotate", "TranslateX", "TranslateY", "Cutout"),
    *("Brightness", "Equalize", "Solarize", "Posterize", "Sharpness", "ShearX", "ShearY"),
]
RANDAUGMENT = {
    *("Identity", "AutoContrast", "Equalize", "Contrast", "Brightness", "Color", "Sharpness"),
    *("Rotate", "TranslateX", "TranslateY", "ShearX", "ShearY", "Solarize", "Posterize"),
}
KEYS = ["description", "ops_per_copy", "ops", "level", "levels", "then", "class_copies"]


@st.composite
def choices(draw):
    op = draw(st.sampled_from(OPS))
    least, most = sorted((op.low, op.high))
    value = st.floats(least, most)
    return Choice(op.name, draw(value), draw(value), draw(st.floats(0.0, 1.0)))


@st.composite
def policies(draw):
    """What a file can say: some turns over the same ops, then turns of one op each."""
    common = tuple(draw(st.lists(choices(), max_size=20)))
    turns = (common,) * draw(st.integers(1, 8)) if common else ()
    turns += tuple((choice,) for choice in draw(st.lists(choices(), min_size=0 if turns else 1, max_size=8)))
    return Policy("p", turns)


CLASS_NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)
policy_files = st.builds(PolicyFile, policies(), st.dictionaries(CLASS_NAMES, st.integers(0, 1000), max_size=5))


def parsed(text):
    return parse_policy("p", text, where="here")


def one_turn(*names):
    return parsed(yaml.safe_dump({"ops": [{"op": name} for name in names]})).policy


@given(policy_files, st.text(st.characters(exclude_categories=["Cs"])))
def test_a_policy_survives_writing_and_reading(policy_file, description):
    text = write_policy(policy_file, description)
    again = parsed(text)
    assert again == policy_file
    assert list(again.class_copies) == sorted(policy_file.class_copies)
    assert write_policy(again, description) == text, "same policy, same bytes"
    assert yaml.safe_load(text)["description"] == description


@pytest.mark.parametrize("name", shipped_policies())
def test_every_shipped_policy_can_be_read_and_written(name, tmp_path):
    shipped = read_policy(name)
    assert shipped.policy == load_policy(name)
    assert shipped.policy.name == name
    file = tmp_path / f"{name}.yaml"
    file.write_text(write_policy(shipped, "again"), encoding="utf-8")
    assert read_policy(str(file)) == shipped


@given(policy_files)
def test_a_manifest_keeps_everything_that_is_drawn(policy_file):
    """Two policies are equal exactly if their dictionaries are: a fingerprint is made of those."""
    policy = policy_file.policy
    values = policy_as_dict(policy)
    assert list(values) == ["name", "turns"]
    turns = tuple(
        tuple(Choice(entry["op"], *entry["range"], entry["probability"]) for entry in turn) for turn in values["turns"]
    )
    assert Policy(values["name"], turns) == policy


@pytest.mark.parametrize(
    "turns",
    [
        ((full_range("Invert"), full_range("Rotate")), (full_range("Invert"), full_range("Color"))),
        ((full_range("Invert"),), (full_range("Rotate"), full_range("Color"))),
    ],
)
def test_turns_that_no_file_can_hold_are_not_written_as_others(turns):
    with pytest.raises(UsageError, match=r"'p' cannot be written as a file.*reorder or split"):
        write_policy(PolicyFile(Policy("p", turns)), "")


def test_copies_that_no_file_can_hold_are_not_written():
    with pytest.raises(UsageError, match=r"policy p: class_copies: Metal must be 0 to 1000, got 1001"):
        write_policy(PolicyFile(Policy("p", ((full_range("Invert"),),)), {"Metal": 1001}), "")


def test_the_module_documents_every_key():
    text = inspect.getdoc(inspect.getmodule(load_policy))
    assert all(f"{key}" in text for key in [*KEYS, "op:", "range:", "probability:"])


class TestShipped:
    def test_these_four(self):
        assert shipped_policies() == ["level3-2021", "p4-2021", "randaugment", "taco14"]

    def test_taco14_is_the_fourteen_ops_in_full(self):
        policy = load_policy("taco14")
        assert policy == Policy.repeated("taco14", tuple(full_range(name) for name in FOURTEEN))
        assert read_policy("taco14").class_copies == {}

    def test_taco14_draws_what_it_always_drew(self):
        """Numbers of the first release; caches were built with them."""
        ids = np.array([0, 1, 2, 2**64 - 1], np.uint64)
        plan = draw(load_policy("taco14"), ids, seed=7, stage=Stage.BUILD, rounds=(1, 2))
        assert [[OPS[code].name for code in row] for row in plan.op[:, :, 0]] == TACO14_OPS
        assert [[float(value).hex() for value in row] for row in plan.value[:, :, 0]] == TACO14_VALUES

    def test_randaugment_is_fourteen_ops_twice_at_one_strength(self):
        policy = load_policy("randaugment")
        assert policy.slots == 2
        assert policy.turns[0] == policy.turns[1]
        assert {choice.op for choice in policy.turns[0]} == RANDAUGMENT
        assert len(policy.turns[0]) == 14
        for choice in policy.turns[0]:
            op = OPS[CODES[choice.op]]
            assert choice.low == choice.high == pytest.approx(op.low + 14 / 31 * (op.high - op.low))
            assert choice.probability == 1.0

    @pytest.mark.parametrize(("turns", "level"), [(1, 0), (2, 14), (3, 9), (16, 31)])
    def test_randaugment_of_any_strength(self, turns, level):
        policy = load_policy(f"randaugment-n{turns}-m{level}")
        assert policy.name == f"randaugment-n{turns}-m{level}"
        assert policy.slots == turns
        assert [choice.op for choice in policy.turns[-1]] == [c.op for c in load_policy("randaugment").turns[0]]
        rotate = next(choice for choice in policy.turns[0] if choice.op == "Rotate")
        assert rotate.low == rotate.high == pytest.approx(30 * level / 31)
        assert load_policy("randaugment-n02-m014") == replace(load_policy("randaugment"), name="randaugment-n2-m14")

    def test_p4_2021_draws_five_things_one_by_one(self):
        ids = np.arange(20_000, dtype=np.uint64)
        policy = load_policy("p4-2021")
        plan = draw(policy, ids, seed=0, stage=Stage.LOAD, rounds=(0,))
        names = ["Rotate90", "FlipX", "TranslateX", "TranslateY", "Zoom"]
        shares = [(plan.op[0, :, turn] == CODES[name]).mean() for turn, name in enumerate(names)]
        assert np.abs(np.array(shares) - [0.5, 0.5, 0.6, 0.6, 0.6]).max() < 0.015
        largest = np.abs(plan.value[0]).max(axis=0)
        assert (largest <= np.float32([3, 0, 0.0625, 0.0625, 0.1])).all()
        assert (largest >= [3, 0, 0.062, 0.062, 0.099]).all()
        turns = plan.value[0, plan.op[0, :, 0] > 0, 0]
        assert np.abs(np.bincount(turns.astype(int), minlength=4) / len(turns) - 0.25).max() < 0.015

    def test_level3_2021_gives_each_copy_one_op_of_fixed_strength(self):
        plan = draw(
            load_policy("level3-2021"), np.arange(20_000, dtype=np.uint64), seed=0, stage=Stage.BUILD, rounds=(1,)
        )
        expected = {"Cutout": (0.4, 0.5), "ShearX": (0.1, 0.1), "ShearY": (0.1, 0.1)}
        expected |= {"Sharpness": (0.1, 0.8), "Color": (0.3, 0.8)}
        assert plan.slots == 1
        assert {OPS[code].name for code in np.unique(plan.op)} == set(expected)
        for name, (share, strength) in expected.items():
            drawn = plan.value[plan.op == CODES[name]]
            assert abs(len(drawn) / 20_000 - share) < 0.015
            assert set(np.abs(drawn).tolist()) == {float(np.float32(strength))}
            assert (drawn > 0).mean() == 1.0 if name == "Cutout" else 0.45 < (drawn > 0).mean() < 0.55


TACO14_OPS = [["Posterize", "Sharpness", "Posterize", "Equalize"], ["Solarize", "Equalize", "Contrast", "Contrast"]]
TACO14_VALUES = [
    ["0x1.8000000000000p+2", "-0x1.6b57ba0000000p-4", "0x1.c000000000000p+2", "0x0.0p+0"],
    ["0x1.f92e0e0000000p+7", "0x0.0p+0", "-0x1.507a860000000p-3", "-0x1.44f94c0000000p-1"],
]


class TestFormat:
    def test_defaults_are_the_whole_range_always_one_op(self):
        policy = parsed("ops: [{op: Solarize}, {op: Rotate, range: [5, 10], probability: 0.5}]").policy
        assert policy == Policy("p", ((Choice("Solarize", 256.0, 0.0), Choice("Rotate", 5.0, 10.0, 0.5)),))

    def test_then_comes_after_the_common_turns_one_op_a_turn(self):
        text = "ops_per_copy: 2\nops: [{op: Invert}, {op: Color}]\nthen: [{op: FlipX, probability: 0.5}, {op: Cutout}]"
        common = (full_range("Invert"), full_range("Color"))
        own = ((full_range("FlipX", 0.5),), (full_range("Cutout"),))
        assert parsed(text).policy == Policy("p", (common, common, *own))
        assert parsed("then: [{op: FlipX, probability: 0.5}, {op: Cutout}]").policy == Policy("p", own)

    def test_classes_may_get_copies_of_their_own(self):
        copies = parsed("ops: [{op: Invert}]\nclass_copies: {Plastic: 1000, Métal: 0, 'No': 3}").class_copies
        assert list(copies.items()) == [("Métal", 0), ("No", 3), ("Plastic", 1000)]
        assert type(copies) is dict

    @pytest.mark.parametrize("op", [op for op in OPS if op.has_value], ids=lambda op: op.name)
    def test_a_level_is_one_strength_both_ways(self, op):
        for level, levels, share in ((0, None, 0.0), (31, None, 1.0), (14, None, 14 / 31), (2.5, 10, 0.25)):
            text = f"ops: [{{op: {op.name}}}]\nlevel: {level}\n" + (f"levels: {levels}\n" if levels else "")
            ((choice,),) = parsed(text).policy.turns
            expected = op.low + share * (op.high - op.low)
            assert choice.low == choice.high == pytest.approx(expected)
            plan = draw(parsed(text).policy, np.arange(500, dtype=np.uint64), seed=0, stage=Stage.LOAD, rounds=(0,))
            drawn = round(expected) if op.whole else np.float32(expected)
            signs = {1.0, -1.0} if op.signed else {1.0}
            assert set(plan.value.ravel().tolist()) == {float(sign * drawn) for sign in signs}

    def test_a_range_of_its_own_and_then_are_not_levelled(self):
        text = "level: 0\nops: [{op: Rotate}, {op: Color, range: [0.1, 0.2]}]\nthen: [{op: Zoom}]"
        common = (Choice("Rotate", 0.0, 0.0), Choice("Color", 0.1, 0.2))
        assert parsed(text).policy == Policy("p", (common, (full_range("Zoom"),)))

    def test_probability_is_the_share_of_the_copies_that_chose_the_op(self):
        text = "ops: [{op: Invert, probability: 0.2}, {op: Equalize}, {op: FlipX, probability: 0}, {op: Identity}]"
        plan = draw(parsed(text).policy, np.arange(20_000, dtype=np.uint64), seed=5, stage=Stage.BUILD, rounds=(1,))
        shares = np.bincount(plan.op.ravel(), minlength=len(OPS)) / 20_000
        expected = np.zeros(len(OPS))
        for name, share in (("Invert", 0.05), ("Equalize", 0.25), ("Identity", 0.7)):
            expected[CODES[name]] = share
        assert np.abs(shares - expected).max() < 0.015


WRONG = [
    ("", "expected a mapping with a list `ops`, a list `then` or both, got None"),
    ("- op: Rotate", "expected a mapping .* got "),
    ("{}", "expected a mapping .* but neither is there"),
    ("description: 5\nops: [{op: Invert}]", "description must be a text, got 5; put it in quotes"),
    ("ops: {op: Rotate}", "expected a mapping .* but `ops` is {'op': 'Rotate'}"),
    ("then: 3", "expected a mapping .* but `then` is 3"),
    ("ops: []", "ops offers no op; list some there or leave the key out"),
    ("ops: [{op: Invert}]\nthen: []", "then offers no op; list some there or leave the key out"),
    ("ops: [{op: Rotate}]\nslots: 2", f"unknown key 'slots'; the keys are {', '.join(KEYS)}"),
    ("ops: [{op: Rotate}]\n2: 2", "unknown key 2; the keys are description"),
    ("ops: [{op: Rotate}]\n\"{'a': 1}\": 2", "unknown key"),
    ("ops: [{op: Rotate, strength: 2}]", r"ops\[0\]: unknown key 'strength'; the keys are op, range, probability"),
    ("then: [{op: Rotate, strength: 2}]", r"then\[0\]: unknown key 'strength'; the keys are op, range, probability"),
    ("ops: [Rotate]", r"ops\[0\]: expected a mapping with a key `op`, got 'Rotate'"),
    ("ops: [{op: Invert}, {op: Blur}]", r"ops\[1\]: unknown op 'Blur'; the ops are Identity, Invert, .*, Zoom$"),
    ("ops: [{op: [Rotate]}]", r"ops\[0\]: unknown op \['Rotate'\]; the ops are"),
    ("ops: [{op: Rotate, range: 3}]", r"ops\[0\]: Rotate: range must be two numbers, \[weakest, strongest\], got 3"),
    ("ops: [{op: Rotate, range: '12'}]", r"ops\[0\]: Rotate: range must be two numbers, .* got '12'"),
    ("ops: [{op: Rotate, range: [1, 2, 3]}]", "Rotate: range must be two numbers"),
    ("ops: [{op: Rotate, range: [0, true]}]", r"Rotate: range\[1\] must be a number, got True; write one"),
    ("ops: [{op: Rotate, range: [0, .nan]}]", r"Rotate: range\[1\] must be a finite number, got nan; write one"),
    ("ops: [{op: Rotate, range: [-.inf, 3]}]", r"Rotate: range\[0\] must be a finite number, got -inf; write one"),
    ("ops: [{op: Rotate, range: ['0', 3]}]", r"range\[0\] must be a number, got the text '0'; write it without quotes"),
    ("ops: [{op: Rotate, range: [1e-3, 3]}]", r"got the text '1e-3'; .* with a point and a sign, such as 1.0e-3"),
    ("ops: [{op: Rotate, range: [0, 1" + "0" * 400 + "]}]", r"range\[1\] must be a finite number"),
    ("ops: [{op: Rotate, range: [0, 0b1" + "0" * 20_000 + "]}]", r"range\[1\] must be a finite number, got "),
    ("ops: [{op: Rotate, range: [0, 45]}]", r"ops\[0\]: Rotate: range \[0.0, 45.0\] leaves \[0.0, 30.0\] \(degrees"),
    ("ops: [{op: Rotate, probability: 1.5}]", r"ops\[0\]: Rotate: probability must be in \[0, 1\], got 1.5"),
    ("ops: [{op: Rotate, probability: .nan}]", r"Rotate: probability must be in \[0, 1\] and must be a finite number"),
    (
        "ops: [{op: Rotate, probability: yes}]",
        r"Rotate: probability must be in \[0, 1\] and must be a number, got True",
    ),
    ("ops: [{op: Rotate, probability: '1'}]", "got the text '1'; write it without quotes"),
    ("ops: [{op: Rotate}]\nops_per_copy: 17", "ops_per_copy must be 1 to 16, got 17; write a whole number"),
    ("ops: [{op: Rotate}]\nops_per_copy: 0", "ops_per_copy must be 1 to 16, got 0"),
    ("ops: [{op: Rotate}]\nops_per_copy: 1.5", "ops_per_copy must be 1 to 16, got 1.5; write a whole number"),
    ("ops: [{op: Rotate}]\nops_per_copy: true", "ops_per_copy must be 1 to 16, got True"),
    ("ops: [{op: Rotate}]\nops_per_copy: '2'", "ops_per_copy must be 1 to 16, got '2'"),
    ("ops: [{op: Rotate}]\nops_per_copy: 9\nthen: [" + "{op: Invert}," * 8 + "]", "got 17; shorten `then` or lower"),
    ("then: [{op: Rotate}]\nops_per_copy: 2", "with a list `ops`, since ops_per_copy is about it; add it or leave"),
    ("then: [{op: Rotate}]\nlevel: 2", "with a list `ops`, since level is about it; add it or leave level out"),
    ("ops: [{op: Rotate}]\nlevel: null", "level must be a number, got null; write 0 for the weakest effect, or leave"),
    ("ops: [{op: Rotate}]\nlevel: 32", r"level must be 0 \(weakest\) to 31 \(strongest\), got 32"),
    ("ops: [{op: Rotate}]\nlevel: -1", r"level must be 0 \(weakest\) to 31 \(strongest\), got -1"),
    ("ops: [{op: Rotate}]\nlevel: strong", "level must be a number, got 'strong'; write one"),
    ("ops: [{op: Rotate}]\nlevel: true", "level must be a number, got True; write one"),
    ("ops: [{op: Rotate}]\nlevel: 0\nlevels: 0", "levels must be more than 0, got 0; RandAugment has 31"),
    ("ops: [{op: Rotate}]\nlevels: 10", "levels says what level is counted in, but level is missing; add it"),
    ("ops: [{op: Rotate}]\nlevel: 1\nlevels: .inf", "levels must be a finite number, got inf"),
    ("ops: [{op: Rotate}]\nclass_copies: 3", "class_copies must be a mapping of classes to copies, got 3"),
    ("ops: [{op: Rotate}]\nclass_copies: {Metal: -1}", "class_copies: Metal must be 0 to 1000, got -1; write a whole"),
    ("ops: [{op: Rotate}]\nclass_copies: {Metal: 2.0}", "class_copies: Metal must be 0 to 1000, got 2.0"),
    ("ops: [{op: Rotate}]\nclass_copies: {Metal: true}", "class_copies: Metal must be 0 to 1000, got True"),
    ("ops: [{op: Rotate}]\nclass_copies: {No: 3}", "class_copies: False is no name of a class; put the name in quotes"),
    ('ops: [{op: Rotate}]\nclass_copies: {"\\ud800": 3}', "is no name of a class"),
    ("ops: [{op: Rotate}]\nops: [{op: Invert}]", "not YAML that can be read: a key is given twice .*line 1"),
    ("ops: [{op: Rotate, op: Invert}]", "a key is given twice"),
    ("ops: [", "not YAML that can be read: .*line 1"),
    ("ops: !!python/object/apply:os.getcwd []", "not YAML that can be read"),
    ("ops: !!int ''", "not YAML that can be read"),
    ("ops: !!bool maybe", "not YAML that can be read"),
    ("ops: !!timestamp soon", "not YAML that can be read"),
    ("ops: 2021-13-45", "not YAML that can be read"),
    ("[" * 5000, "not YAML that can be read"),
    ("ops: &a [*a]", r"ops\[0\]: expected a mapping"),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[repr(text)[:60] for text, _ in WRONG])
def test_a_file_that_means_nothing(text, words):
    with pytest.raises(UsageError, match=rf"^here: .*{words}") as caught:
        parsed(text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500


class TestNames:
    @pytest.mark.parametrize(
        "name", ["taco15", "", "no/such.yaml", "a\0b", "x" * 5000, "randaugment-n2", "randaugment-n2-m1234", "~", "."]
    )
    def test_an_unknown_name_is_told_what_there_is(self, name):
        with pytest.raises(UsageError) as caught:
            read_policy(name)
        message = str(caught.value)
        assert "policy" in message
        assert len(name) > 255 or ("taco14" in message and "randaugment-nN-mM" in message)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("randaugment-n0-m9", "policy randaugment-n0-m9: ops_per_copy must be 1 to 16, got 0"),
            ("randaugment-n17-m9", "policy randaugment-n17-m9: ops_per_copy must be 1 to 16, got 17"),
            (
                "randaugment-n2-m32",
                r"policy randaugment-n2-m32: level must be 0 \(weakest\) to 31 \(strongest\), got 32",
            ),
        ],
    )
    def test_a_randaugment_that_cannot_be(self, name, words):
        with pytest.raises(UsageError, match=words):
            read_policy(name)

    def test_a_file_that_is_no_text(self, tmp_path):
        path = tmp_path / "policy.yaml"
        path.write_bytes(b"\xff\xfe\x00broken")
        with pytest.raises(UsageError, match=r"policy\.yaml: not UTF-8 text .* save it as UTF-8"):
            read_policy(str(path))


@given(st.sampled_from([op for op in OPS if op.has_value]), st.floats(0.001, 1e6), st.booleans())
def test_a_value_outside_of_the_range_is_refused(op, beyond, above):
    least, most = sorted((op.low, op.high))
    value = most + beyond if above else least - beyond
    with pytest.raises(UsageError, match=rf"here: ops\[0\]: {op.name}: range .* leaves"):
        parsed(yaml.safe_dump({"ops": [{"op": op.name, "range": [op.low, value]}]}))


@given(st.text().filter(lambda name: name not in CODES))
def test_an_unknown_op_is_refused(name):
    with pytest.raises(UsageError, match=r"here: ops\[0\]: unknown op"):
        parsed(yaml.safe_dump({"ops": [{"op": name}]}))


def is_refused_or_read(text):
    """Whatever the text, nothing else than a policy or a `UsageError` of one line that names the place."""
    message = "here: a policy"
    try:
        parsed(text)
    except UsageError as error:
        message = str(error)
    assert message.startswith("here: ")
    assert "\n" not in message


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
junk = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(scalars, v, max_size=3), max_leaves=6)


@given(st.text() | st.text("[]{}:,-&*!?|>'\"%@`#\n \tops0123456789.", max_size=40))
def test_any_text_is_refused_or_read(text):
    is_refused_or_read(text)


@settings(max_examples=50)
@given(junk)
def test_junk_at_any_place_is_refused_or_read(value):
    whole = {"description": "d", "ops_per_copy": 1, "level": 1, "levels": 31, "class_copies": {"Metal": 1}}
    whole |= {"ops": [{"op": "Rotate"}], "then": [{"op": "FlipX"}]}
    entry = {"op": "Rotate", "range": [0, 1], "probability": 1}
    files = [value, {"ops": [value]}, {"then": [value]}, whole | {"class_copies": {"Metal": value}}]
    files += [whole | {key: value} for key in KEYS]
    files += [{"ops": [entry | {key: value}]} for key in entry] + [{"then": [{"op": "Rotate", "range": [0, value]}]}]
    for file in files:
        is_refused_or_read(yaml.safe_dump(file, sort_keys=False, allow_unicode=True))
