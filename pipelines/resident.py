"""Resident mode: a whole source, decoded once, in one array. After that an epoch reads nothing and decodes nothing."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.console.progress import ProgressMeter
from pipelines.engines.base import Engine, Job, Stack
from pipelines.engines.device import DeviceRows
from pipelines.errors import CorruptSampleError, UsageError
from pipelines.plan import PLAIN_VIEW, View, nothing
from pipelines.sources import Lazy, Source

ResidentMode = Literal["auto", "on", "off"]
BATCH = 256


class ResidentSource:
    """The fitted images of a source, raw, in memory; see `pipelines.sources.Source`.

    Samples that cannot be decoded are remembered, and raise the same error each time they are asked for.

    Args:
        source: What to decode.
        engine: Decodes; its size is that of the images.
        mirror: Keep all images mirrored, too: twice the memory, and a random flip costs nothing.
        advance: Told the number of samples that were decoded.
    """

    checked = True

    def __init__(
        self,
        source: Source,
        engine: Engine,
        *,
        mirror: bool = False,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._source = source
        self.classes, self.labels, self.ids, self.fingerprint = (
            source.classes,
            source.labels,
            source.ids,
            source.fingerprint,
        )
        size, count = engine.spec.size, len(source.labels)
        self._mirror = mirror and engine.device.type == "cpu"  # a GPU mirrors in no time
        rows = (1 + self._mirror) * count
        self._images = torch.empty((rows, size, size, 3), dtype=torch.uint8, device=engine.device)
        self._damaged: dict[int, str] = {}
        starts = range(0, count, BATCH)
        jobs = (_job(source, np.arange(start, min(start + BATCH, count), dtype=np.int64)) for start in starts)
        for start, rendered in zip(starts, engine.stream(jobs), strict=True):
            pixels = rendered.pixels[0]
            self._images[start : start + len(pixels)] = pixels
            if self._mirror:
                self._images[count + start : count + start + len(pixels)] = pixels.flip(2)
            self._damaged.update({start + place: reason for place, reason in rendered.errors.items()})
            advance(len(pixels))
        if engine.device.type == "cuda":
            torch.cuda.current_stream(engine.device).synchronize()  # engines read them on streams of their own

    @property
    def bytes(self) -> int:
        """Memory that the images take."""
        return self._images.numel()

    def fetch(self, rows: NDArray[np.int64]) -> Sequence[NDArray[np.uint8]]:
        """Views of the images of some rows."""
        if self._damaged and not self._damaged.keys().isdisjoint(rows.tolist()):
            return Lazy(self._image, rows)
        if self._images.device.type == "cpu":
            return _Rows(self._images.numpy(), rows, len(self.labels) if self._mirror else 0)
        return DeviceRows(self._images, rows)

    def _image(self, row: int) -> NDArray[np.uint8]:
        if row in self._damaged:
            raise CorruptSampleError(self._damaged[row])
        image: NDArray[np.uint8] = self._images[row].cpu().numpy()
        return image

    def describe(self, row: int) -> str:
        """See `Source`."""
        return self._source.describe(row)


def _job(source: Source, rows: NDArray[np.int64]) -> Job:
    return Job(source.fetch(rows), nothing(len(rows)), checked=source.checked)


class _Rows(Stack):
    """Rows of one array, see `pipelines.engines.base.Stack`.

    Args:
        images: uint8 [n, size, size, 3].
        rows: int64 [k].
        mirrored: How many rows further the mirrored image of each row is; 0 where there are none.
    """

    in_memory = True

    def __init__(self, images: NDArray[np.uint8], rows: NDArray[np.int64], mirrored: int) -> None:
        self._images, self._rows, self._mirrored = images, rows, mirrored
        self.side = (images.shape[1], images.shape[2])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:  # type: ignore[override]
        image: NDArray[np.uint8] = self._images[self._rows[index]]
        return image

    def copy_to(self, start: int, flip: NDArray[np.bool_], out: NDArray[np.uint8]) -> dict[int, str]:
        """See `pipelines.engines.base.Stack`."""
        rows = self._rows[start : start + len(flip)]
        # Rows are in range; "clip" only spares numpy a second buffer.
        np.take(self._images, rows + self._mirrored * flip, axis=0, out=out, mode="clip")
        for place in np.flatnonzero(flip).tolist() if not self._mirrored else ():
            cv2.flip(out[place], 1, out[place])
        return {}


@dataclass(frozen=True, kw_only=True)
class ResidentOptions:
    """Whether a source is kept in memory.

    Attributes:
        mode: `auto` keeps it where that changes no pixel and it takes no more than `share` of the memory that is free;
            `on` refuses to go on otherwise; `off` never does.
        share: Of the memory that is free, for all sources and processes of this machine together.
        processes: Processes on this machine, each of which keeps a copy.
    """

    mode: ResidentMode = "auto"
    share: float = 0.3
    processes: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"the share of memory must be in (0, 1], got {self.share}")
        if self.mode not in get_args(ResidentMode) or self.processes < 1:
            raise ValueError(f"resident mode {self.mode!r} with {self.processes} processes makes no sense")


DEFAULT = ResidentOptions()


def needed(sources: Sequence[Source], size: int, processes: int) -> int:
    """Bytes of the images of some sources at a size in px, in so many processes."""
    return sum(len(source.labels) for source in sources) * size * size * 3 * processes


def obstacle(sources: Sequence[Source], engine: Engine, view: View, options: ResidentOptions, free: int) -> str:
    """Why sources cannot be resident; "" if they can.

    Args:
        sources: All that would be.
        engine: Renders them.
        view: Of the first of them.
        options: Whether and how much.
        free: Memory that may be had, in bytes.
    """
    size = engine.spec.size
    if view.min_area < 1.0 and getattr(sources[0], "image_size", None) != size:
        return (
            f"random crops of images that are not {size} x {size} px need all of their pixels; build a cache of this "
            "size, or crop nothing"
        )
    wanted = needed(sources, size, options.processes)
    if wanted > options.share * free:
        return (
            f"{wanted / 2**20:,.0f} MiB are more than {options.share:.0%} of the {free / 2**20:,.0f} MiB that are free"
        )
    return ""


def make_resident(
    sources: Sequence[Source],
    engine: Engine,
    *,
    view: View = PLAIN_VIEW,
    plain: bool = False,
    options: ResidentOptions = DEFAULT,
    show: bool = False,
) -> list[Source]:
    """Keep sources in memory, all or none of them.

    Args:
        sources: What is to be read again and again.
        engine: Renders them.
        view: Random crop and flip of the first of them.
        plain: The first of them gets no ops: if it is flipped, it is kept mirrored, too, where there is room.
        options: Whether and how much.
        show: Show progress.

    Returns:
        The sources to read from: these, or others with the same samples.

    Raises:
        UsageError: `on`, and it cannot be.
    """
    if options.mode == "off":
        return list(sources)
    free = free_memory(engine.device)
    why_not = obstacle(sources, engine, view, options, free)
    if why_not and options.mode == "on":
        raise UsageError(f"--resident on: {why_not}; or give --resident auto")
    if why_not:
        return list(sources)
    flipped = plain and view.flip and view.min_area == 1.0
    twice = needed([*sources, sources[0]], engine.spec.size, options.processes) <= options.share * free
    mirrors = [flipped and twice, *[False] * (len(sources) - 1)]
    with ProgressMeter("decode", sum(len(source.labels) for source in sources), "images", enabled=show) as progress:
        return [
            ResidentSource(source, engine, mirror=mirror, advance=progress.advance)
            for source, mirror in zip(sources, mirrors, strict=True)
        ]


def free_memory(device: torch.device) -> int:
    """Bytes that may be had on a device; in host memory, without swapping and within the limit of the control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_available(Path("/proc/meminfo")), _group_left(Path("/sys/fs/cgroup")))


def _available(path: Path) -> int:
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _group_left(folder: Path) -> int:
    """What a container (cgroup 2) may still take, besides what holds files only; 1 << 62 without a limit."""
    try:
        limit, used = (int((folder / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return 1 << 62
    return max(limit - used + _cached(folder / "memory.stat"), 0)


def _cached(path: Path) -> int:
    """Bytes that hold files and would be given back at once."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError, IndexError):
        return 0
