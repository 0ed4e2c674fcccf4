"""What an engine takes, gives and promises."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.fit import Fit
from pipelines.plan import Plan

if TYPE_CHECKING:  # seconds to import, which prediction without torch has to do without
    import torch

Image = NDArray[np.uint8]
"""uint8 [bytes]: an encoded file; uint8 [height, width, 3]: raw RGB pixels."""


Finish = Callable[[NDArray[np.uint8]], Any]
"""One version of one sample, uint8 [size, size, 3] → whatever is made of it. Must not keep the pixels."""


@dataclass(frozen=True)
class RenderSpec:
    """What every rendered image looks like.

    Attributes:
        size: Side of the square in px.
        fit: How other shapes become square, see `pipelines.fit.place`.
    """

    size: int
    fit: Fit = "pad"

    def __post_init__(self) -> None:
        if not 4 <= self.size <= 4096:
            raise ValueError(f"size must be 4 to 4096 px, got {self.size}")


SMALL_BYTES = 32 << 10
"""Images below are copied and checked in less time than it takes to hand Python's lock to another thread."""


class Stack(Sequence[Image]):
    """Raw images of one size that can be copied many at a time, without an engine's work for each.

    Attributes:
        side: (height, width) of every image in px.
        in_memory: To copy them takes no disk and no checksum.
    """

    side: tuple[int, int]
    in_memory: bool

    @property
    def one_thread(self) -> bool:
        """Whether one thread copies them sooner than several."""
        return not self.in_memory and 3 * self.side[0] * self.side[1] < SMALL_BYTES

    @abstractmethod
    def copy_to(self, start: int, flip: NDArray[np.bool_], out: NDArray[np.uint8]) -> dict[int, str]:
        """Copy images start … start + k - 1.

        Args:
            start: Position of the first.
            flip: bool [k]; which are mirrored left to right.
            out: uint8 [k, height, width, 3], contiguous.

        Returns:
            Position → reason of each image that is damaged; what lies in its place then says nothing.
        """


class Timing(NamedTuple):
    """Where an engine's threads spent their time, in seconds, all threads together."""

    fetch: float = 0.0
    """Reading files or rows, and holding them against their checksums."""
    decode: float = 0.0
    augment: float = 0.0
    """Resizing, ops, flips."""

    def __add__(self, other: object) -> "Timing":
        if not isinstance(other, Timing):
            return NotImplemented
        return Timing(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


NO_TIME = Timing()


@dataclass(frozen=True)
class Job:
    """One batch of work.

    Attributes:
        images: n images, or a `Stack` of them; may read each one only when it is asked for, in the engine's threads,
            and raise CorruptSampleError.
        plan: What happens to them; n samples, any number of rounds.
        checked: The images are known to be whole (a cache checked them when it was written), so that an engine that
            cannot report a damaged file need not look for one first.
        tag: Whatever the caller wants back beside the pixels.
        finish: Called in the engine's threads for every version of every sample that could be decoded; its results come
            back instead of the pixels. So encoding finds them in the processor's cache, and never holds up rendering.
    """

    images: Sequence[Image]
    plan: Plan
    checked: bool = False
    tag: Any = None
    finish: Finish | None = None


@dataclass(frozen=True)
class Rendered:
    """The pixels of a job.

    Attributes:
        pixels: uint8 [rounds, n, size, size, 3] on the engine's device; grey where a sample has an error. Empty if the
            job has a `finish`.
        errors: Position of each sample that could not be decoded → reason.
        tag: The job's tag.
        products: For each sample what `finish` returned for each version, None where a sample has an error; empty
            without `finish`.
        timing: What it took.
        ahead: Share of the engine's queue that was ready when this was asked for, 0 to 1.
    """

    pixels: "torch.Tensor"
    errors: dict[int, str] = field(default_factory=dict)
    tag: Any = None
    products: Sequence[list[Any] | None] = ()
    timing: Timing = NO_TIME
    ahead: float = 0.0


class Engine(Protocol):
    """Renders jobs in order, working ahead while the caller uses the last result."""

    name: str
    spec: RenderSpec
    device: "torch.device"

    def stream(self, jobs: Iterable[Job]) -> Iterator[Rendered]:
        """Render jobs one after the other; each result is the caller's own memory. Streams may overlap."""
        ...

    def close(self) -> None:
        """Give back threads and device memory. The engine cannot be used afterwards."""
        ...
