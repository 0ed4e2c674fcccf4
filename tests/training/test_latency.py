"""Measuring: known times give known figures, a slower machine changes no ratio, the order follows from the seed."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.measure.circumstances import circumstances
from training.measure.latency import (
    FEWEST_ROUNDS,
    MOST_REPEATS,
    Latency,
    Timings,
    measure_latency,
    noise_images,
    repeats_for,
    round_order,
    summarize,
)


class Machine:
    """A clock that runtimes push; `pace(now)` says how much slower than usual the machine is at that moment."""

    def __init__(self, pace=lambda now: 1.0):
        self.now, self.cpu, self.pace = 0.0, 0.0, pace
        self.calls: list[str] = []
        self.shapes: set[tuple[int, ...]] = set()

    def clock(self) -> float:
        return self.now

    def cpu_clock(self) -> float:
        return self.cpu


class Fake:
    """A runtime that takes `seconds`, or what a sequence says, call by call."""

    size, classes = 8, ("a", "b")

    def __init__(self, machine: Machine, name: str, seconds, threads: int = 1):
        self.machine, self.name, self.threads = machine, name, threads
        self.seconds = iter(seconds) if not isinstance(seconds, float) else None
        self.fixed = seconds

    def logits(self, images):
        seconds = (next(self.seconds) if self.seconds else self.fixed) * self.machine.pace(self.machine.now)
        self.machine.calls.append(self.name)
        self.machine.shapes.add(images.shape)
        assert images.dtype == np.uint8
        self.machine.now += seconds
        self.machine.cpu += seconds * self.threads
        return np.zeros((len(images), 2), np.float32)


def measure(machine: Machine, *subjects: Fake, rounds=20, warmup=4, seed=0, batch_size=3, **more):
    return measure_latency(
        subjects, batch_size=batch_size, warmup=warmup, rounds=rounds, seed=seed, clock=machine.clock,
        cpu_clock=machine.cpu_clock, **more,
    )  # fmt: skip


def figures(**changes) -> Latency:
    usual = {"name": "x", "batch_size": 1, "threads": 1, "median_ms": 1.0, "p95_ms": 1.1, "spread": 0.1}
    usual |= {"ratio_median": 1.0, "ratio_low": 0.9, "ratio_high": 1.1, "cpu_ms": 1.0, "rounds": 100, "repeats": 1}
    return Latency(**(usual | changes))


class TestFigures:
    def test_constant_times(self):
        machine = Machine()
        first, second = measure(machine, Fake(machine, "a", 0.004), Fake(machine, "b", 0.001, threads=2))
        assert (first.name, first.batch_size, first.rounds, first.repeats, first.threads) == ("a", 3, 20, 1, 1)
        assert first.median_ms == pytest.approx(4)
        assert first.p95_ms == pytest.approx(4)
        assert first.spread == pytest.approx(0, abs=1e-9)
        assert (first.ratio_low, first.ratio_median, first.ratio_high) == (1, 1, 1)
        assert (second.name, second.threads) == ("b", 2)
        assert second.ratio_median == pytest.approx(0.25)
        assert second.cpu_ms == pytest.approx(2)
        assert machine.shapes == {(3, 8, 8, 3)}

    def test_known_times_give_known_percentiles(self):
        machine = Machine()
        timed = [0.001 * number for number in range(1, 22)]  # 1 to 21 ms: median 11, quartiles 6 and 16, 95 %: 20
        calls = [0.005, *(seconds for pair in zip([0.5] * 21, timed, strict=True) for seconds in pair)]
        (found,) = measure(machine, Fake(machine, "a", calls), rounds=21, warmup=1)
        assert found.median_ms == pytest.approx(11)
        assert found.p95_ms == pytest.approx(20)
        assert found.spread == pytest.approx(10 / 11)
        assert found.ratio_median == 1

    @given(
        wall=st.lists(st.floats(1e-4, 1e2), min_size=1, max_size=30),
        factor=st.floats(0.01, 100),
    )
    def test_ratios_are_taken_within_a_round(self, wall, factor):
        times = np.array(wall)
        fake = Fake(Machine(), "b", 1.0)
        found = summarize(fake, 1, Timings(times * factor, times, 1), times)
        assert found.ratio_low == pytest.approx(factor)
        assert found.ratio_high == pytest.approx(factor)
        assert found.median_ms == pytest.approx(1000 * factor * np.median(times))
        assert found.cpu_ms == pytest.approx(1000 * np.median(times))
        assert found.spread >= 0
        assert found.p95_ms >= found.median_ms * (1 - 1e-9)

    @given(moment=st.floats(0.05, 0.95), slower=st.floats(0.2, 5), seed=st.integers(0, 5))
    def test_a_machine_that_changes_its_pace_half_way_changes_no_ratio(self, moment, slower, seed):
        whole = 40 * 2 * (0.002 + 0.006)
        machine = Machine(lambda now: slower if now > moment * whole else 1.0)
        _, found = measure(machine, Fake(machine, "a", 0.002), Fake(machine, "b", 0.006), rounds=40, seed=seed)
        assert found.ratio_median == pytest.approx(3)
        assert found.ratio_low == pytest.approx(3)
        assert found.ratio_high == pytest.approx(3)
        assert found.ratio_trusted

    def test_a_pace_that_changes_half_way_is_seen_in_the_spread(self):
        machine = Machine(lambda now: 3.0 if now > 0.64 else 1.0)
        _, found = measure(machine, Fake(machine, "a", 0.002), Fake(machine, "b", 0.006), rounds=80)
        assert found.spread > 0.25
        assert not found.trusted
        assert found.ratio_trusted


class TestRounds:
    def test_every_network_runs_in_every_round_in_the_stated_order(self):
        machine = Machine()
        names = "abc"
        measure(machine, *(Fake(machine, name, 0.001) for name in names), rounds=30, warmup=4, seed=7)
        rounds = machine.calls[3 * 4 :]
        expected = [name for number in range(30) for i in round_order(3, 7, number) for name in [names[i]] * 2]
        assert rounds == expected

    @given(st.integers(1, 8), st.integers(0, 1000), st.integers(0, 1000))
    def test_an_order_has_everybody_once_and_comes_from_the_seed(self, count, seed, number):
        order = round_order(count, seed, number)
        assert sorted(order) == list(range(count))
        assert order == round_order(count, seed, number)

    def test_orders_differ_between_rounds_and_seeds(self):
        orders = [tuple(round_order(3, seed, number) for number in range(60)) for seed in range(4)]
        assert len(set(orders)) == 4
        assert all(len(set(order)) == 6 for order in orders)
        assert round_order(4, 0, 0) == (3, 0, 1, 2)  # the same on every machine and Python

    @given(st.floats(1e-9, 1))
    def test_a_timing_lasts_a_millisecond(self, seconds):
        repeats = repeats_for(seconds)
        assert 1 <= repeats <= MOST_REPEATS
        assert repeats == MOST_REPEATS or repeats * seconds >= 1e-3 * (1 - 1e-9)
        assert repeats == 1 or (repeats - 1) * seconds <= 1e-3

    def test_short_passes_are_repeated_and_told_one_by_one(self):
        machine = Machine()
        (found,) = measure(machine, Fake(machine, "a", 0.0003), rounds=2, warmup=3)
        assert repeats_for(0) == MOST_REPEATS
        assert found.repeats == 4
        assert found.median_ms == pytest.approx(0.3)
        assert found.cpu_ms == pytest.approx(0.3)
        assert len(machine.calls) == 3 + 2 * (1 + 4)

    def test_a_slow_start_does_not_count(self):
        machine = Machine()
        (found,) = measure(machine, Fake(machine, "a", [9.0, 9.0, *[0.0004] * 1000]), rounds=2, warmup=4)
        assert found.repeats == 3
        assert found.median_ms == pytest.approx(0.4)

    def test_progress(self):
        machine, counted = Machine(), []
        measure(machine, Fake(machine, "a", 0.1), Fake(machine, "b", 0.1), rounds=5, done=counted.append)
        assert counted == [1] * 7

    def test_images_come_from_the_seed(self):
        images = noise_images(2, 16, 5)
        assert (images.shape, images.dtype) == ((2, 16, 16, 3), np.uint8)
        assert (images == noise_images(2, 16, 5)).all()
        assert (images != noise_images(2, 16, 6)).any()
        assert (images.min(), images.max()) == (0, 255)


class TestTrust:
    def test_limits(self):
        assert figures(spread=0.25).trusted
        assert figures(spread=0.25).complaint == ""
        noisy = figures(spread=0.26)
        assert not noisy.trusted
        assert noisy.complaint.startswith("too noisy: 100 rounds, spread 0.26")
        assert noisy.ratio_trusted

    def test_ratio(self):
        assert figures(ratio_median=2.0, ratio_low=1.5, ratio_high=2.5).ratio_trusted
        assert not figures(ratio_median=2.0, ratio_low=1.5, ratio_high=2.51).ratio_trusted
        assert not figures(ratio_median=0.2, ratio_low=0.1, ratio_high=0.3).ratio_trusted

    def test_few_rounds_prove_nothing(self):
        few = figures(spread=0.0, rounds=FEWEST_ROUNDS - 1)
        assert not few.trusted
        assert not few.ratio_trusted
        assert few.complaint == "too few: 19 rounds; take 20 or more"
        assert dataclasses.replace(few, rounds=FEWEST_ROUNDS).trusted


def test_circumstances():
    found = circumstances(("numpy", "no-such-package"))
    assert list(found["versions"]) == ["numpy"]
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["load"] is None or found["load"] >= 0
