"""Options that are numbers of a range."""

from collections.abc import Mapping

from pipelines.errors import UsageError


def check_ranges(ranges: Mapping[str, tuple[float | None, float, float]]) -> None:
    """Refuse what lies outside.

    Args:
        ranges: Name of each option, as a user writes it -> (value, least, most); None is always accepted.

    Raises:
        UsageError: A value is not of its range, or no number; the first one.
    """
    for name, (number, least, most) in ranges.items():
        if number is not None and not least <= number <= most:
            raise UsageError(f"{name} must be {least} to {most}, got {number}")
