"""Where a thread's time goes: a second thread looks at it every millisecond.

Not cProfile: from Python 3.12 on it counts what all threads do, and the engines have many.
"""

import sys
import threading
import time
from collections import Counter
from pathlib import Path


class Sampler:
    """Watches the thread that opens it.

    Args:
        seconds: Between two looks.

    Attributes:
        seen: Innermost place (file, function, line) → looks at which the thread was there.
        looks: Looks in all.
    """

    def __init__(self, seconds: float = 0.001) -> None:
        self._seconds = seconds
        self.seen: Counter[str] = Counter()
        self.looks = 0
        self._stop = threading.Event()

    def __enter__(self) -> "Sampler":
        self._watched = threading.get_ident()
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(self._seconds / 10)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        sys.setswitchinterval(self._interval)

    def _watch(self) -> None:
        while not self._stop.is_set():
            frame = sys._current_frames().get(self._watched)
            if frame is not None:
                self.looks += 1
                self.seen[f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}, line {frame.f_lineno}"] += 1
            time.sleep(self._seconds)

    def shares(self, most: int) -> list[tuple[str, float]]:
        """The places at which the thread was met most often, with their shares of all looks."""
        return [(name, count / self.looks) for name, count in self.seen.most_common(most)]
