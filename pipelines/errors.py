"""The errors a user is meant to read: one sentence that names the thing and the cure."""

from typing import Any


class TacopressError(Exception):
    """Something is wrong that the reader of the message can mend. Jobs print it without a traceback.

    Args:
        message: What is wrong, which file or option it is about, and what to do.
    """

    exit_status = 1


class UsageError(TacopressError):
    """The job was called wrongly: a path, an option or a file that cannot be right. Exit status 2."""

    exit_status = 2


class ProblemFoundError(TacopressError):
    """The job ran and found a problem, for example a score below the stated floor. Exit status 1.

    Args:
        message: What was found.
        report: The job's report, which is printed all the same.
    """

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report


class CorruptSampleError(TacopressError):
    """A sample cannot be decoded or does not match its checksum. Exit status 1."""
