"""The few names in which DALI 1.34 and 2.4 differ, and the words for a machine without DALI."""

import importlib
from typing import Any

from pipelines.errors import UsageError

HOW_TO_INSTALL = (
    "in the folder of Tacopress, install one of the two, never both: `pip install -e '.[cuda110]'` (DALI 1.34; drivers "
    "from 450.80) or `pip install -e '.[cuda130]'` (DALI 2.4; drivers from 580). The cpu engine needs neither"
)


def dali_version() -> str | None:
    """Version of the installed DALI, None without one."""
    try:
        return str(importlib.import_module("nvidia.dali").__version__)
    except ImportError:
        return None


def require_dali() -> str:
    """Version of the installed DALI.

    Raises:
        UsageError: There is none; says what to install for which driver.
    """
    version = dali_version()
    if version is None:
        raise UsageError(f"engine 'dali' was asked for, but DALI is not installed; {HOW_TO_INSTALL}")
    return version


class Dali:
    """The parts of DALI that Tacopress uses, under one name for all supported versions.

    Raises:
        UsageError: DALI is not installed.
    """

    def __init__(self) -> None:
        self.version = require_dali()
        self.fn: Any = importlib.import_module("nvidia.dali.fn")
        self.types: Any = importlib.import_module("nvidia.dali.types")
        self.pipeline_def: Any = importlib.import_module("nvidia.dali").pipeline_def
        self.select: Any = importlib.import_module("nvidia.dali.auto_aug.core").select
        self.feed_ndarray: Any = importlib.import_module("nvidia.dali.plugin.pytorch").feed_ndarray
        # Both left `experimental` in 2.0; the old names still work there but warn.
        self.filter: Any = getattr(self.fn, "filter", None) or self.fn.experimental.filter
        self.equalize: Any = getattr(self.fn, "equalize", None) or self.fn.experimental.equalize
