"""One section in a process of its own: python -m tests.gpu.section NAME SETTING, as the suite calls it."""

import importlib
import sys

from tests.gpu.common import Record, Setting


def main() -> None:
    """Run it; what it raises is written down and ends the process with 1."""
    name, text = sys.argv[1:]
    setting = Setting.parse(text)
    record = Record(setting.record)
    with record.attempt(name):
        importlib.import_module(f"tests.gpu.{name}").run(setting, record)
    record.save()
    sys.exit(1 if record.value["failures"] else 0)


if __name__ == "__main__":
    main()
