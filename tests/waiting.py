"""Waiting for what other threads and processes do."""

import time


def wait_until(condition, seconds):
    """Whether something came true within so many seconds."""
    patience = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > patience:
            return False
        time.sleep(0.002)
    return True
