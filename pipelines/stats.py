"""What a loader's time went into."""

import time
from dataclasses import asdict, dataclass, field

from pipelines.engines.base import Rendered


@dataclass
class LoaderStats:
    """Sums since this was made.

    Attributes:
        batches: Batches handed out.
        images: Images in them.
        bytes: Of pixels, as rendered.
        fetch: Seconds of reading files or rows and checking them, all threads together.
        decode: Seconds of decoding, likewise.
        augment: Seconds of resizing, ops and flips, likewise. An engine that does not tell these apart says all here.
        wait: Seconds that the consumer waited for its batches.
        occupancy: Sum over batches of the share of the queue that was ready when the batch was asked for.
        skipped: Damaged samples that were left out.
    """

    batches: int = 0
    images: int = 0
    bytes: int = 0
    fetch: float = 0.0
    decode: float = 0.0
    augment: float = 0.0
    wait: float = 0.0
    occupancy: float = 0.0
    skipped: int = 0
    _since: float = field(default_factory=time.perf_counter, repr=False)

    def add(self, rendered: Rendered, images: int, wait: float) -> None:
        """Count a batch."""
        self.batches += 1
        self.images += images
        self.bytes += rendered.pixels.numel()
        self.fetch += rendered.timing.fetch
        self.decode += rendered.timing.decode
        self.augment += rendered.timing.augment
        self.wait += wait
        self.occupancy += rendered.ahead

    def as_dict(self) -> dict[str, float]:
        """The sums, `seconds` since then, `images_per_second`, `bytes_per_second`, `queue_occupancy` (0 to 1)."""
        seconds = time.perf_counter() - self._since
        values = {name: value for name, value in asdict(self).items() if name not in ("_since", "occupancy")}
        return {
            **values,
            "seconds": seconds,
            "images_per_second": self.images / seconds,
            "bytes_per_second": self.bytes / seconds,
            "queue_occupancy": self.occupancy / max(self.batches, 1),
        }
