"""The full parser of a job's options: YAML files, nested groups, help."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter

Config = TypeVar("Config")

STATUS = (
    "\n\nExit status: 0 done, 1 a problem was found, 2 wrong use, 75 stopped by a signal and saved (training), "
    "130 interrupted, 143 terminated."
)


def make_parser(config_class: type, *, name: str, summary: str, example: str, report: str = "") -> ArgumentParser:
    """Build the parser of a job from its config dataclass.

    Args:
        config_class: A frozen dataclass; its docstring's `Args:` section becomes the help of the options.
        name: Module path of the job, for example `augment_cache.build`.
        summary: First lines of `--help`.
        example: Commands that work as they stand, shown at the end of `--help`.
        report: What `--json` prints, in words.

    Returns:
        A parser that also takes `--config FILE.yaml`, `--print_config` and `--json`.
    """
    parser = ArgumentParser(
        prog=f"python -m {name}",
        description=summary,
        epilog="Examples:\n" + example.strip("\n") + (f"\n\nReport (--json):\n{report}" if report else "") + STATUS,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below; options win")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object on standard output")
    parser.add_class_arguments(config_class, nested_key=None, as_group=False)
    return parser


class _HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's help, but line breaks of descriptions and examples stay where they were put."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


def parse(parser: ArgumentParser, config_class: type[Config], argv: Sequence[str]) -> tuple[Config, bool]:
    """Read the options into the config; dashes and underscores in option names are the same thing.

    Returns:
        The config and whether `--json` was given.
    """
    names = {field.name: field.type for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    switches = {name for name, kind in names.items() if kind in (bool, "bool")}
    words = _switched([_underscored(word) for word in argv], switches)
    namespace = parser.instantiate(parser.parse_args(words))
    return config_class(**{key: value for key, value in vars(namespace).items() if key in names}), namespace.json


def report_text(body: Callable[..., Any]) -> str:
    """The `Returns:` section of a job's docstring: its keys are documented in one place."""
    returns = docstring_parser.parse(body.__doc__ or "").returns
    if returns is None:
        return ""
    # The parser takes what stands before the first colon for a type.
    first = f"{returns.type_name}: " if returns.type_name else ""
    text = " ".join((first + (returns.description or "")).split()).removeprefix("The report. Keys: ")
    return textwrap.fill(text.replace("`", ""), 100, initial_indent="  ", subsequent_indent="  ")


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _switched(words: Sequence[str], switches: set[str]) -> list[str]:
    """`--force` alone means `--force=true`, for options that are true or false."""
    result = []
    for index, word in enumerate(words):
        alone = index + 1 == len(words) or words[index + 1].startswith("-")
        result.append(f"{word}=true" if word.removeprefix("--") in switches and alone else word)
    return result
