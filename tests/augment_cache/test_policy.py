"""Policies: what is written out can be read again, and those that come with the package are whole."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from augment_cache.format.policy import load_policy, parse_policy, policy_as_dict, shipped_policies
from pipelines.augmentations import CODES, OPS, Choice, Policy, full_range
from pipelines.errors import UsageError

FOURTEEN = [
    *("Invert", "Contrast", "AutoContrast", "Rotate", "TranslateX", "TranslateY", "Cutout"),
    *("Brightness", "Equalize", "Solarize", "Posterize", "Sharpness", "ShearX", "ShearY"),
]


@st.composite
def choices(draw):
    op = draw(st.sampled_from(OPS))
    least, most = sorted((op.low, op.high))
    value = st.floats(least, most)
    return Choice(op.name, draw(value), draw(value), draw(st.floats(0.0, 1.0)))


policies = st.builds(Policy, st.just("p"), st.lists(choices(), min_size=1, max_size=20).map(tuple), st.integers(1, 16))


def written(policy):
    """What a policy file would say: its name is the file's."""
    values = policy_as_dict(policy)
    assert values.pop("name") == policy.name
    return yaml.safe_dump(values, sort_keys=False)


@given(policies)
def test_a_policy_survives_writing_and_reading(policy):
    assert parse_policy("p", written(policy), where="test") == policy


@given(policies)
def test_what_is_written_says_everything(policy):
    """Two policies are equal exactly if their dictionaries are: a fingerprint is made of those."""
    values = policy_as_dict(policy)
    again = parse_policy(values["name"], written(policy), where="test")
    assert policy_as_dict(again) == values
    assert len(values["ops"]) == len(policy.choices)


@pytest.mark.parametrize("name", shipped_policies())
def test_every_shipped_policy_can_be_read(name):
    policy = load_policy(name)
    assert policy.name == name
    assert parse_policy(name, written(policy), where=name) == policy


def test_taco14_is_the_fourteen_ops_in_full():
    policy = load_policy("taco14")
    assert [choice.op for choice in policy.choices] == FOURTEEN
    assert policy.slots == 1
    assert policy.choices == tuple(full_range(name) for name in FOURTEEN)


def test_defaults_are_the_whole_range_always_one_op():
    policy = parse_policy("p", "ops: [{op: Solarize}, {op: Rotate, range: [5, 10], probability: 0.5}]", where="test")
    assert policy == Policy("p", (Choice("Solarize", 256.0, 0.0), Choice("Rotate", 5.0, 10.0, 0.5)), 1)


@given(st.sampled_from([op for op in OPS if op.has_value]), st.floats(0.001, 1e6), st.booleans())
def test_a_value_outside_of_the_range_is_refused(op, beyond, above):
    least, most = sorted((op.low, op.high))
    value = most + beyond if above else least - beyond
    with pytest.raises(UsageError, match=rf"here: {op.name}: range .* leaves"):
        parse_policy("p", f"ops: [{{op: {op.name}, range: [{op.low}, {value!r}]}}]", where="here")


@given(st.text().filter(lambda name: name not in CODES))
def test_an_unknown_op_is_refused(name):
    with pytest.raises(UsageError, match=r"here: ops\[0\]: unknown op"):
        parse_policy("p", yaml.safe_dump({"ops": [{"op": name}]}), where="here")


def outcome(text):
    try:
        parse_policy("p", text, where="here")
    except UsageError as error:
        return str(error)
    return "a policy"


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_any_yaml_is_a_policy_or_an_error_that_names_the_place(value):
    for text in (yaml.safe_dump(value), yaml.safe_dump({"ops": value}), yaml.safe_dump({"ops": [{"op": value}]})):
        assert outcome(text) == "a policy" or outcome(text).startswith("here")
