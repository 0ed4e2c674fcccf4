"""`accelerate launch` with the exit status of its processes: 75 (stopped and saved) has to reach the batch script."""

import signal
import sys

from accelerate.commands.launch import main
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

STOPPED_AND_SAVED, INTERRUPTED = 75, 130


def status_of(error: ChildFailedError | SignalException) -> int:
    """The status to end with: that of the first process that failed, 128 + the signal that killed it, or 75 if told."""
    if isinstance(error, SignalException):
        return INTERRUPTED if error.sigval == signal.SIGINT else STOPPED_AND_SAVED
    code = int(error.get_first_failure()[1].exitcode)
    return code if code > 0 else 128 - code


if __name__ == "__main__":
    try:
        main()
    except (ChildFailedError, SignalException) as error:
        sys.exit(status_of(error))
