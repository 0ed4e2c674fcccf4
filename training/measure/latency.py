"""How long a forward pass takes: networks measured in turn, and compared within each round.

Times on one machine differ by a factor of two from one minute to the next; what two networks take right after each
other hardly does. So every round runs every network, in an order that the seed shuffles, and the ratio to the reference
is taken within the round before anything is averaged.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.runtimes.base import Runtime

Clock = Callable[[], float]

SHORTEST = 1e-3
"""One timing lasts at least so many seconds: passes are repeated within it until clock and call weigh little."""

MOST_REPEATS = 1000

SPREAD_LIMIT = 0.25
"""Interquartile range over median up to which a time is told."""

RATIO_SPREAD_LIMIT = 0.5
"""The same sharpness for ratios: from its 10th to its 90th percentile a normal distribution is 1.9 times as wide."""

FEWEST_ROUNDS = 20
"""With fewer there is no 95th percentile but the slowest round, and a small spread may be luck."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What one network took.

    Args:
        name: Of the runtime.
        batch_size: Images per pass.
        threads: CPU threads that a pass may use.
        median_ms: Wall time of a pass, milliseconds: the median over the rounds.
        p95_ms: The 95th percentile over the rounds. Where passes are repeated within a round, it is that of their mean.
        spread: Interquartile range over median, of the same times.
        ratio_median: Time over that of the reference in the same round: the median over the rounds.
        ratio_low: 10th percentile of that ratio.
        ratio_high: 90th percentile.
        cpu_ms: Processor time of a pass over all threads of the process, milliseconds, median.
        rounds: How often it was timed.
        repeats: Passes in one timing.
    """

    name: str
    batch_size: int
    threads: int
    median_ms: float
    p95_ms: float
    spread: float
    ratio_median: float
    ratio_low: float
    ratio_high: float
    cpu_ms: float
    rounds: int
    repeats: int

    @property
    def trusted(self) -> bool:
        """Whether the time may be told by itself."""
        return self.rounds >= FEWEST_ROUNDS and self.spread <= SPREAD_LIMIT

    @property
    def ratio_trusted(self) -> bool:
        """Whether the ratio may be told; it often may where the time may not, if the whole machine became slower."""
        width = (self.ratio_high - self.ratio_low) / self.ratio_median
        return self.rounds >= FEWEST_ROUNDS and width <= RATIO_SPREAD_LIMIT

    @property
    def complaint(self) -> str:
        """Why the time may not be told, and what to do; empty where it may."""
        if self.rounds < FEWEST_ROUNDS:
            return f"too few: {self.rounds} rounds; take {FEWEST_ROUNDS} or more"
        if self.trusted:
            return ""
        return (
            f"too noisy: {self.rounds} rounds, spread {self.spread:.2f} (limit {SPREAD_LIMIT}); close other programs "
            "and measure again, with more rounds if the noise comes and goes"
        )

    def figures(self) -> dict[str, Any]:
        """All of it for a report: the attributes, `trusted`, `ratio_trusted` and `complaint`."""
        trust = {"trusted": self.trusted, "ratio_trusted": self.ratio_trusted, "complaint": self.complaint}
        return asdict(self) | trust


@dataclass(frozen=True)
class Timings:
    """Seconds of a pass in each round.

    Attributes:
        wall: [rounds].
        cpu: [rounds], over all threads of the process.
        repeats: Passes that each of them is the mean of.
    """

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]
    repeats: int


def measure_latency(
    subjects: Sequence[Runtime],
    *,
    batch_size: int,
    warmup: int,
    rounds: int,
    seed: int,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
    done: Callable[[int], object] = lambda count: None,
) -> tuple[Latency, ...]:
    """Measure networks against each other.

    Each visit to a network begins with one pass that is not timed: the one before has left caches and threads as it
    needed them. The images are noise; the time of these networks does not depend on what they show.

    Args:
        subjects: The first one is the reference.
        batch_size: Images per pass.
        warmup: Passes of each before the first round; how many are repeated in one timing follows from their times.
        rounds: How often each is timed.
        seed: Of the order and the images.
        clock: Wall time, seconds.
        cpu_clock: Processor time, seconds.
        done: Called with 1 after each warm-up of a network and after each round.

    Returns:
        One entry per network, in their order.
    """
    images = [noise_images(batch_size, subject.size, seed) for subject in subjects]
    repeats = []
    for subject, batch in zip(subjects, images, strict=True):
        repeats.append(repeats_for(_warm(subject, batch, warmup, clock)))
        done(1)
    wall, cpu = np.zeros((2, len(subjects), rounds))
    for number in range(rounds):
        for i in round_order(len(subjects), seed, number):
            wall[i, number], cpu[i, number] = _visit(subjects[i], images[i], repeats[i], clock, cpu_clock)
        done(1)
    return tuple(
        summarize(subject, batch_size, Timings(wall[i], cpu[i], repeats[i]), wall[0])
        for i, subject in enumerate(subjects)
    )


def summarize(subject: Runtime, batch_size: int, timings: Timings, reference: NDArray[np.float64]) -> Latency:
    """Turn times into figures.

    Args:
        subject: What was measured.
        batch_size: Images per pass.
        timings: Its times.
        reference: Seconds of a pass of the reference in the same rounds, above 0.
    """
    low, median, high, p95 = np.percentile(timings.wall, (25, 50, 75, 95))
    ratio_low, ratio_median, ratio_high = np.percentile(timings.wall / reference, (10, 50, 90))
    return Latency(
        name=subject.name,
        batch_size=batch_size,
        threads=subject.threads,
        median_ms=float(1000 * median),
        p95_ms=float(1000 * p95),
        spread=float((high - low) / median),
        ratio_median=float(ratio_median),
        ratio_low=float(ratio_low),
        ratio_high=float(ratio_high),
        cpu_ms=float(1000 * np.median(timings.cpu)),
        rounds=len(timings.wall),
        repeats=timings.repeats,
    )


def round_order(count: int, seed: int, number: int) -> tuple[int, ...]:
    """In which order the networks come in a round.

    Shuffled, not rotated: in a rotation each would always follow the same other one.

    Args:
        count: How many there are.
        seed: Of the measurement.
        number: Of the round.
    """
    order = list(range(count))
    random.Random(f"{seed} {number}").shuffle(order)
    return tuple(order)


def repeats_for(seconds: float) -> int:
    """How many passes one timing takes so that it lasts a millisecond, if one pass takes so many seconds."""
    return MOST_REPEATS if seconds <= SHORTEST / MOST_REPEATS else math.ceil(SHORTEST / seconds)


def noise_images(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Images to measure with: uint8 [count, size, size, 3], every level as likely as any other."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def _warm(subject: Runtime, images: NDArray[np.uint8], passes: int, clock: Clock) -> float:
    """Seconds of the fastest pass of the second half."""
    times = []
    for _ in range(passes):
        start = clock()
        subject.logits(images)
        times.append(clock() - start)
    return min(times[passes // 2 :])


def _visit(
    subject: Runtime, images: NDArray[np.uint8], repeats: int, clock: Clock, cpu_clock: Clock
) -> tuple[float, float]:
    """(Wall, processor) seconds of one pass."""
    subject.logits(images)
    cpu, start = cpu_clock(), clock()
    for _ in range(repeats):
        subject.logits(images)
    seconds, cpu_seconds = clock() - start, cpu_clock() - cpu
    return seconds / repeats, cpu_seconds / repeats
