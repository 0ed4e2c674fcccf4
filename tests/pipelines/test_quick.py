"""Options read without the full parser are what the full parser reads, or are left to it."""

import dataclasses
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.console.parser import make_parser, parse
from pipelines.console.quick import plain_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner.

    Args:
        deep: A number.
    """

    deep: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options.

    Args:
        data: A folder.
        out: Another.
        name: A word.
        label: Perhaps a word.
        count: A number.
        most: Perhaps a number.
        share: A share.
        kind: One of three.
        force: Yes or no.
        maybe: Yes, no, or neither.
        both: A word or a number.
        inner: A group.
    """

    data: Path
    out: Path | None = None
    name: str = "x"
    label: str | None = None
    count: int = 3
    most: int | None = None
    share: float = 0.5
    kind: typing.Literal["a", "b", "auto"] = "auto"
    force: bool = False
    maybe: bool | None = None
    both: int | str = 1
    inner: Inner = dataclasses.field(default_factory=Inner)


PARSER = make_parser(Options, name="tests.options", summary="Options.", example="")
SPECIAL = """1 0 007 1.5 1e3 -1 .5 5. true false True yes on null None ~ a a/b.csv ../x out x=y [1] #no 'q' 1_000 0x10
2026-01-01"""
TEXTS = st.one_of(
    st.sampled_from([*SPECIAL.split(), "{a: 1}", "a: b"]),
    st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=6),
)
NAMES = st.sampled_from([field.name for field in dataclasses.fields(Options)] + ["nosuch", "inner.deep", "json"])
PAIRS = st.lists(st.tuples(NAMES, TEXTS, st.booleans()), max_size=4)


def words_of(pairs):
    words = ["--data", "some/folder"]
    for name, text, equals in pairs:
        words += [f"--{name}={text}"] if equals else [f"--{name}", text]
    return words


@settings(max_examples=400, deadline=None)
@given(pairs=PAIRS)
def test_it_reads_what_the_full_parser_reads_or_leaves_it(pairs):
    words = words_of(pairs)
    plain = plain_config(Options, words)
    if plain is not None:
        assert plain == parse(PARSER, Options, words)


@pytest.mark.parametrize(
    ("words", "changes", "as_json"),
    [
        ([], {}, False),
        (["--out", "a/b.csv", "--json"], {"out": Path("a/b.csv")}, True),
        (["--count=7", "--share", "0.25", "--kind", "b"], {"count": 7, "share": 0.25, "kind": "b"}, False),
        (["--force", "--most", "9", "--label", "word"], {"force": True, "most": 9, "label": "word"}, False),
        (["--force", "false", "--name", "v1.2"], {"name": "v1.2"}, False),
    ],
)
def test_plain_options_need_no_full_parser(words, changes, as_json):
    expected = Options(data=Path("d"), **changes)
    assert plain_config(Options, ["--data", "d", *words]) == (expected, as_json)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--config", "x.yaml"], ["--inner.deep", "2"], ["word"], ["--count", "many"], ["--out", "null"],
     ["--kind", "c"], ["--count"], ["--nosuch", "1"], ["--data", "twice"], ["--name", "12"], ["--print_config"]],
    ids=" ".join,
)  # fmt: skip
def test_the_rest_is_left_to_the_full_parser(words):
    assert plain_config(Options, ["--data", "d", *words]) is None


def test_a_missing_option_is_left_to_the_full_parser():
    assert plain_config(Options, ["--count", "1"]) is None
