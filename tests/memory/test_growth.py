"""Growth that nothing accounts for: found in what leaks, in nothing else that happens to a server."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from openautoglm.memory.growth import GROWTH_SECONDS, Growth, GrowthSample, GrowthWindow
from openautoglm.units import MIB

LEDGER = 400 * MIB  # 15 % of it are 60 MiB
EVERY = 15.0
Bytes = Callable[[float], float]


def watch(
    other: Bytes, *, charged: Bytes = lambda _: 0, seconds: float = 1800, slope: float | None = None, seed: int = 0
) -> list[tuple[float, Growth]]:
    """Return when which rule was broken, with what a busy process adds: noise of some MiB up and down."""
    noise = random.Random(seed)
    window = GrowthWindow(slope_bytes_per_minute=None if slope is None else int(slope * MIB))
    broken = []
    moment = 0.0
    while moment < seconds:
        moment += EVERY + noise.uniform(0, 0.3)
        taken = int((other(moment) + noise.uniform(-3, 3)) * MIB)
        window.add(GrowthSample(seconds=moment, other_bytes=taken, uncharged_bytes=taken - int(charged(moment) * MIB)))
        growth = window.judge(LEDGER)
        if growth is not None and growth.rule is not None:
            broken.append((moment, growth))
            window.clear()
    return broken


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_is_found_when_it_has_gone_on_for_five_minutes(seed: int) -> None:
    # 20 MiB a minute: 100 MiB in five.
    first, growth = watch(lambda t: 80 + t / 3, seed=seed)[0]
    assert GROWTH_SECONDS <= first <= GROWTH_SECONDS + 90
    assert growth.rule == "growth"
    assert growth.bytes_per_minute == pytest.approx(20 * MIB, rel=0.1)
    assert growth.grown_bytes >= 0.15 * LEDGER


def test_it_is_found_again_only_after_another_window() -> None:
    times = [moment for moment, _ in watch(lambda t: 80 + t / 3)]
    assert len(times) >= 4
    assert all(late - early >= GROWTH_SECONDS for early, late in pairwise(times))


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_leak_breaks_only_a_configured_slope(seed: int) -> None:
    slow = lambda t: 80 + t / 30  # noqa: E731 - 2 MiB a minute
    assert watch(slow, seed=seed) == []
    found = watch(slow, slope=1.0, seed=seed)
    assert found
    assert all(growth.rule == "slope" for _, growth in found)
    assert watch(slow, slope=4.0, seed=seed) == []


def test_a_step_breaks_the_share_and_no_slope() -> None:
    def step(t: float) -> float:
        return 80 if t < 700 else 200

    found = watch(step, slope=30.0)
    assert [growth.rule for _, growth in found] == ["growth"]
    assert watch(lambda t: 80 if t < 700 else 120, slope=30.0) == []


@pytest.mark.parametrize("seed", range(5))
def test_what_comes_and_goes_is_no_growth(seed: int) -> None:
    spikes = random.Random(seed)
    moments = [spikes.uniform(0, 1800) for _ in range(12)]

    def other(t: float) -> float:
        return 80 + (300 if any(0 <= t - moment < 20 for moment in moments) else 0)

    assert watch(other, slope=10.0, seed=seed) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_requests_that_are_charged_take_nothing_unexplained(share: float, seed: int) -> None:
    """Ten minutes of load and ten of calm: charges are upper bounds, of which requests really take a share."""

    def charged(t: float) -> float:
        return 150 if t % 1200 < 600 else 0

    assert watch(lambda t: 80 + share * charged(t), charged=charged, seconds=5000, slope=10.0, seed=seed) == []


def test_a_leak_under_load_is_found_all_the_same() -> None:
    def charged(t: float) -> float:
        return 150 if 100 < t < 1700 else 0

    found = watch(lambda t: 80 + charged(t) / 2 + t / 3, charged=charged)
    assert found
    assert found[0][0] < 1000


@pytest.mark.parametrize("seed", range(5))
def test_a_warm_up_that_levels_off_is_no_growth(seed: int) -> None:
    assert watch(lambda t: 80 + 30 * min(1.0, t / 200), seed=seed) == []


def test_shrinking_is_no_growth() -> None:
    assert watch(lambda t: 800 - t / 3, slope=0.1) == []


def test_nothing_is_said_before_a_whole_window_was_seen() -> None:
    window = GrowthWindow(slope_bytes_per_minute=1)
    assert window.judge(LEDGER) is None
    for moment in range(0, 285, 15):
        window.add(GrowthSample(seconds=moment, other_bytes=moment * 10 * MIB, uncharged_bytes=moment * 10 * MIB))
        assert window.judge(LEDGER) is None
    # A look that came very late stands alone at its end.
    window.add(GrowthSample(seconds=345, other_bytes=9000 * MIB, uncharged_bytes=9000 * MIB))
    assert window.judge(LEDGER) is None


def test_a_clock_that_stands_still_divides_by_nothing() -> None:
    window = GrowthWindow()
    for moment in [0.0] * 5 + [float(moment) for moment in range(0, 361, 15)]:
        window.add(GrowthSample(seconds=moment, other_bytes=5, uncharged_bytes=5))
    growth = window.judge(LEDGER)
    assert growth is not None
    assert growth.grown_bytes == 0
    assert growth.bytes_per_minute == 0
    assert growth.rule is None
