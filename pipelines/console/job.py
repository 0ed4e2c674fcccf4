"""Turn a frozen dataclass and a function into a command: `python -m PACKAGE.JOB --help`."""

import atexit
import importlib
import os
import pkgutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipelines.console.output import emit, say
from pipelines.console.quick import plain_config
from pipelines.errors import ProblemFoundError, TacopressError, UsageError

Config = TypeVar("Config")

INTERRUPTED, TERMINATED = 130, 143
"""Exit status after Ctrl-C and SIGTERM: 128 + the signal, as shells expect."""


class _Terminated(BaseException):
    """SIGTERM, on its way up through everything that has to be tidied."""


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
    words = sys.argv[1:] if argv is None else argv
    as_json = False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        _check_encoding(words)
        plain = plain_config(config_class, words)
        if plain is None:
            from pipelines.console.parser import make_parser, parse, report_text

            parser = make_parser(config_class, name=name, summary=summary, example=example, report=report_text(body))
            plain = parse(parser, config_class, words)
        config, as_json = plain
        report = body(config)
        if report:
            emit(report, as_json=as_json, table=table)
    except TacopressError as error:
        if isinstance(error, ProblemFoundError) and error.report:
            emit(error.report, as_json=as_json, table=table)
        rank = f" (rank {os.environ['RANK']})" if is_rank() else ""
        say(f"{name}{rank}: {error}")
        _exit(error.exit_status)
    except (KeyboardInterrupt, _Terminated) as stop:
        terminated = isinstance(stop, _Terminated)
        how = "terminated" if terminated else "interrupted"
        say(f"{name}: {how}; nothing half-written was left in place of a finished file")
        _exit(TERMINATED if terminated else INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(1)
    except OSError as error:
        say(f"{name}: {_os_error_text(error)}")
        _exit(1)
    _exit(0)


def is_rank() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _exit(status: int) -> NoReturn:
    """Exit; a rank as `multiprocessing` ends its workers, without taking Python down.

    A thread of gloo may still hold a tensor that Python made. It needs Python's lock to drop it, and while Python is
    being taken down that aborts the process (SIGABRT, "terminate called without an active exception"): a rank that has
    done its work, and the whole launch with it. `destroy_process_group` does not end these threads where
    DistributedDataParallel was used. See https://github.com/pytorch/pytorch/pull/179291.
    """
    if not is_rank():
        sys.exit(status)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python does first
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def _check_encoding(words: Sequence[str]) -> None:
    """Reports are JSON: a path that is no UTF-8 could not be named in one."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"{word!a} is not UTF-8; rename the file or folder") from error


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
