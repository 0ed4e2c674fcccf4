"""Turn a frozen dataclass and a function into a command: `python -m PACKAGE.JOB --help`."""

import dataclasses
import importlib
import os
import pkgutil
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from pipelines.console.output import emit, say
from pipelines.errors import ProblemFoundError, TacopressError

Config = TypeVar("Config")

STATUS = (
    "\n\nExit status: 0 done, 1 a problem was found, 2 wrong use, 75 stopped by a signal and saved (training), "
    "130 interrupted, 143 terminated."
)

INTERRUPTED, TERMINATED = 130, 143
"""Exit status after Ctrl-C and SIGTERM: 128 + the signal, as shells expect."""


class _Terminated(BaseException):
    """SIGTERM, on its way up through everything that has to be tidied."""


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


def _report_text(body: Callable[..., Any]) -> str:
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


def run_job(
    config_class: type[Config],
    body: Callable[[Config], dict[str, Any]],
    *,
    name: str,
    summary: str,
    example: str,
    table: Callable[[dict[str, Any]], str] | None = None,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Parse the options, run the body, print its report, and exit with the status every job shares.

    Exit status: 0 done, 1 a problem was found, 2 wrong use, 75 stopped by a signal and saved (training), 130
    interrupted, 143 terminated. (`accelerate launch` itself ends with 1 whatever its processes ended with.)

    Args:
        config_class: The options of the job.
        body: Does the work and returns the report: a JSON-able dictionary with documented, stable keys.
        name: Module path of the job.
        summary: First lines of `--help`.
        example: Working commands for the end of `--help`.
        table: Renders the report for people; without it only `--json` prints something. An empty report (a rank
            that has nothing to say) is never printed.
        argv: Command line; `sys.argv[1:]` when absent.
    """
    parser = make_parser(config_class, name=name, summary=summary, example=example, report=_report_text(body))
    as_json = False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        config, as_json = parse(parser, config_class, sys.argv[1:] if argv is None else argv)
        report = body(config)
        if report:
            emit(report, as_json=as_json, table=table)
    except TacopressError as error:
        if isinstance(error, ProblemFoundError) and error.report:
            emit(error.report, as_json=as_json, table=table)
        rank = f" (rank {os.environ['RANK']})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        say(f"{name}{rank}: {error}")
        sys.exit(error.exit_status)
    except (KeyboardInterrupt, _Terminated) as stop:
        terminated = isinstance(stop, _Terminated)
        how = "terminated" if terminated else "interrupted"
        say(f"{name}: {how}; nothing half-written was left in place of a finished file")
        sys.exit(TERMINATED if terminated else INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        say(f"{name}: {_os_error_text(error)}")
        sys.exit(1)
    sys.exit(0)


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _os_error_text(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"the operating system refused: {error.strerror or error}{where}; free space or mend the path, then run again"
    )


def list_jobs(package_name: str) -> None:
    """Print the jobs of a package, one line each: what `python -m PACKAGE` shows.

    A job is a module at the package's top that has a `main` function; its docstring's first line describes it.
    """
    package = importlib.import_module(package_name)
    doc = (package.__doc__ or "").strip().splitlines()[0]
    lines = [f"{package_name}: {doc}", ""]
    for path in sorted(Path(entry) for entry in package.__path__):
        for module in sorted(pkgutil.iter_modules([str(path)]), key=lambda info: info.name):
            summary = _job_summary(path / f"{module.name}.py")
            if summary:
                lines.append(f"  python -m {package_name}.{module.name:<12} {summary}")
    if len(lines) == 2:
        lines.append("  (a library: no jobs to run)")
    lines += ["", "Each job explains itself with --help."]
    sys.stdout.write("\n".join(lines) + "\n")


def _job_summary(file: Path) -> str:
    if not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8")
    if "\ndef main(" not in text or not text.startswith('"""'):
        return ""
    return text[3:].splitlines()[0].removesuffix('"""')


def quiet_libraries() -> None:
    """Silence warnings of libraries that a user of a job can do nothing about."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(timm|torch|accelerate)\b.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(timm|torch|accelerate|nvidia)\b.*")
