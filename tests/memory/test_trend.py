"""What others take is projected to where the ladder can act; what the process takes itself is not."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.memory.pressure import Trend
from openautoglm.spec.pressure import MemorySignals, Room
from openautoglm.units import GIB, MIB

LIMIT = GIB


def look(*, own: int, others: int) -> MemorySignals:
    """What a group of 1 GiB and a budget of 1 GiB leave beside these bytes."""
    return MemorySignals(
        tree_bytes=own,
        rooms=(
            Room(source="budget", limit_bytes=LIMIT, left_bytes=LIMIT - own),
            Room(source="group", limit_bytes=LIMIT, left_bytes=LIMIT - own - others),
        ),
    )


def left(signals: MemorySignals) -> dict[str, int]:
    return {room.source: room.left_bytes for room in signals.rooms}


def test_a_first_look_has_no_trend():
    signals = look(own=100 * MIB, others=50 * MIB)
    assert Trend().project(signals, 1.0, 2.0) == signals


def test_what_others_take_goes_on():
    trend = Trend()
    trend.project(look(own=100 * MIB, others=50 * MIB), 1.0, 0.5)
    signals = look(own=100 * MIB, others=60 * MIB)
    # 10 MiB in a quarter of a second: 20 MiB more in half of one.
    assert left(trend.project(signals, 1.25, 0.5)) == {"budget": LIMIT - 100 * MIB, "group": LIMIT - 180 * MIB}


@settings(deadline=None)
@given(own=st.lists(st.integers(0, 900 * MIB), min_size=2, max_size=10), others=st.integers(0, 100 * MIB))
def test_own_growth_and_others_that_stay_are_no_trend(own: list[int], others: int):
    trend = Trend()
    for index, num_bytes in enumerate(own):
        signals = look(own=num_bytes, others=others)
        assert trend.project(signals, index / 10, 3.0) == signals


@settings(deadline=None)
@given(others=st.lists(st.integers(0, 900 * MIB), min_size=2, max_size=10))
def test_what_others_give_back_is_not_counted_before_it_is_there(others: list[int]):
    trend = Trend()
    for index, num_bytes in enumerate(sorted(others, reverse=True)):
        signals = look(own=0, others=num_bytes)
        assert trend.project(signals, index / 10, 3.0) == signals


def test_old_looks_are_forgotten():
    trend = Trend(window_seconds=0.3)
    for step in range(100):
        trend.project(look(own=0, others=min(step, 50) * MIB), step / 10, 1.0)
        assert len(trend.looks) <= 5
    signals = look(own=0, others=50 * MIB)
    assert trend.project(signals, 10.0, 1.0) == signals
