"""The ladder's state: rungs in order, left in reverse, and no coming and going whatever the pressure does."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openautoglm.memory.pressure import (
    DEFAULT_DWELL_SECONDS,
    DEFAULT_LEVELS,
    LadderState,
    Pressure,
    RungLevels,
    block_level,
    byte_level,
    deficit_bytes,
    headroom_bytes,
    spare_bytes,
)
from openautoglm.spec.pressure import MemorySignals, Room, Rung
from openautoglm.units import GIB, MIB

levels = st.floats(0, 1.6, allow_nan=False)
pressures = st.builds(Pressure, blocks=levels, bytes=levels)
# A look every 0 to 3 seconds.
looks = st.lists(st.tuples(pressures, st.floats(0, 3, allow_nan=False)), min_size=1, max_size=80)


def run(state: LadderState, history: list[tuple[Pressure, float]]) -> list[tuple[float, Rung, Rung]]:
    """Play a history as the engine does; return (time, from, to) of every change."""
    changes, now = [], 0.0
    for pressure, pause in history:
        now += pause
        before = state.rung
        while state.descend(pressure, now) is not None:
            changes.append((now, before, state.rung))
            before = state.rung
        if not changes or changes[-1][0] != now or changes[-1][2] < changes[-1][1]:
            left = state.recover(pressure, now)
            if left is not None:
                changes.append((now, left, state.rung))
    return changes


@given(looks)
def test_every_change_is_one_rung(history):
    for _, before, after in run(LadderState(), history):
        assert abs(after - before) == 1


@given(looks)
def test_a_rung_lasts_its_dwell(history):
    entered: dict[Rung, float] = {}
    for now, before, after in run(LadderState(), history):
        if after > before:
            entered[after] = now
        else:
            assert now - entered[before] >= DEFAULT_DWELL_SECONDS


@given(looks)
def test_the_rung_is_never_milder_than_the_pressure_asks(history):
    state, now = LadderState(), 0.0
    for pressure, pause in history:
        now += pause
        run_once = [(pressure, 0.0)]
        state.held_seconds = min(state.held_seconds, now)
        run(state, run_once)
        asked = max(
            (
                rung
                for rung, level in DEFAULT_LEVELS.items()
                if pressure.blocks >= level.enter.blocks or pressure.bytes >= level.enter.bytes
            ),
            default=Rung.NONE,
        )
        assert state.rung >= asked


@given(st.sampled_from(list(DEFAULT_LEVELS)), st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_a_pressure_that_swings_inside_the_gap_changes_nothing(rung, swings):
    gap = DEFAULT_LEVELS[rung]
    state = LadderState()
    run(state, [(Pressure(bytes=gap.enter.bytes), 1.0)])
    assert state.rung is rung
    low, high = gap.leave.bytes + 1e-6, gap.enter.bytes
    assert run(state, [(Pressure(bytes=low + (high - low) * swing), 5.0) for swing in swings]) == []


def test_all_rungs_are_left_in_reverse_when_the_pressure_goes():
    state = LadderState()
    down = run(state, [(Pressure(bytes=1.0), 0.0)])
    assert [after for _, _, after in down] == list(Rung)[1:]
    up = run(state, [(Pressure(), 0.3)] * 40)
    assert [after for _, _, after in up] == list(Rung)[-2::-1]
    assert all(later[0] - earlier[0] >= DEFAULT_DWELL_SECONDS for earlier, later in pairwise(up))


def test_calm_begins_again_when_the_pressure_comes_back():
    state = LadderState()
    history = [(Pressure(bytes=0.55), 0.0), (Pressure(), 0.9), (Pressure(bytes=0.4), 0.1), (Pressure(), 0.9)]
    changes = run(state, [*history, (Pressure(), 0.2)])
    assert [(round(now, 3), after) for now, _, after in changes] == [(0.0, Rung.DROP_PREFIX), (2.1, Rung.NONE)]


@pytest.mark.parametrize("rung", list(DEFAULT_LEVELS))
def test_levels_out_of_order_are_refused(rung):
    wrong = RungLevels(enter=Pressure(blocks=9.0, bytes=9.0), leave=Pressure(blocks=8.0, bytes=8.0))
    if rung is not Rung.REFUSE:
        with pytest.raises(ValueError, match="milder"):
            LadderState(levels={**DEFAULT_LEVELS, rung: wrong})


def test_levels_without_a_gap_are_refused():
    with pytest.raises(ValueError, match="below"):
        RungLevels(enter=Pressure(blocks=1, bytes=1), leave=Pressure(blocks=0.5, bytes=1))


def signals(*rooms: Room, stalled: float = 0.0) -> MemorySignals:
    return MemorySignals(tree_bytes=0, rooms=rooms, stalled_share=stalled)


def test_the_tightest_bound_decides():
    wide = Room(source="machine", limit_bytes=64 * GIB, left_bytes=30 * GIB)
    tight = Room(source="budget", limit_bytes=GIB, left_bytes=16 * MIB)
    assert byte_level(signals(wide)) == 0
    assert byte_level(signals(wide, tight)) == pytest.approx(0.75)
    assert deficit_bytes((wide, tight)) == 48 * MIB
    assert spare_bytes((wide, tight)) == -48 * MIB
    over = Room(source="budget", limit_bytes=GIB, left_bytes=-64 * MIB)
    assert byte_level(signals(over)) == pytest.approx(2.0)
    assert deficit_bytes(()) == 0


@pytest.mark.parametrize("limit", [300 * MIB, 3 * GIB, 8 * GIB, 64 * GIB, 1024 * GIB])
def test_the_headroom_of_a_plan_is_no_pressure(limit):
    from openautoglm.planner.price import headroom_bytes as planned

    left = min(planned(limit * 50 // 51), GIB)
    assert byte_level(signals(Room(source="budget", limit_bytes=limit, left_bytes=left))) < 0.05
    assert headroom_bytes(limit) <= GIB


def test_waiting_for_memory_never_takes_anything_away():
    for stalled in (0.0, 0.04, 0.05, 0.3, 1.0):
        level = byte_level(signals(stalled=stalled))
        assert level == (0 if stalled < 0.05 else min(0.75, 0.5 + stalled))
        assert level < DEFAULT_LEVELS[Rung.SPILL].enter.bytes


def test_what_had_to_happen_outweighs_the_share_of_blocks():
    counts = {"num_live": 19, "num_blocks": 20, "num_spilled": 0, "num_preempted": 0, "num_refused": 0}
    assert block_level(**counts) == 0.95
    assert block_level(**{**counts, "num_live": 5, "num_refused": 1}) == 0.25
    expected = {"num_spilled": Rung.SPILL, "num_preempted": Rung.PREEMPT, "num_refused": Rung.REFUSE}
    for name, rung in expected.items():
        state = LadderState()
        run(state, [(Pressure(blocks=block_level(**{**counts, name: 1})), 0.0)])
        assert state.rung is rung
    full = LadderState()
    run(full, [(Pressure(blocks=1.0), 0.0)])
    assert full.rung is Rung.STOP_ADMISSION
