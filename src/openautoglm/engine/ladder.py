"""`Ladder`: what an engine does when memory gets tight, rung by rung, and how it takes it back.

    rung             does                                              under byte pressure, it ends with
    drop_prefix      idle prefixes go                                  live blocks moved together, the rest unmapped
    smaller_chunk    prompts are computed in smaller pieces            workspace unmapped
    stop_admission   who waits keeps waiting, while something runs     live blocks moved together, the rest unmapped
    spill            the last in order give their blocks up, which     as many blocks as are missing, unmapped, and
                     go to the disk, if there is one to spill to       host memory that held spilled blocks
    preempt          the same, to be computed again later              as many blocks as are missing, unmapped
    refuse           new requests are refused (503, Retry-After)

A full pool alone takes nothing from the process: there, rungs from `spill` on report what the scheduler had to do.
An announced budget (POST /admin/memory, or memory.high of a control group) is met at once, between two steps.
Everything here runs in the engine's thread; `watch.py` looks at memory beside it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from openautoglm.engine.engine import Engine
from openautoglm.engine.record import MemoryReport
from openautoglm.errors import InvalidRequestError, OutOfMemoryError
from openautoglm.log import get_logger
from openautoglm.memory.ledger import Ledger
from openautoglm.memory.pressure import (
    LadderState,
    Pressure,
    block_level,
    byte_level,
    deficit_bytes,
    room_level,
    spare_bytes,
)
from openautoglm.memory.runtime import BLOCK_INDEX_BYTES, block_index_bytes
from openautoglm.spec.pressure import MemorySignals, Rung
from openautoglm.units import format_bytes

_log = get_logger(__name__)

CHUNK_DIVISOR = 4
# Blocks beside the live ones that a compacted pool keeps: decoding needs a place to go on.
SLACK_DIVISOR = 8
LEAST_SLACK_BLOCKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBytes:
    """What a load was planned with: `fixed_bytes` is everything but the KV pool, its index and headroom included."""

    budget_bytes: int
    fixed_bytes: int
    block_bytes: int


class Ladder:
    """Steps an engine down and up. One thread only: the one that steps the engine."""

    def __init__(
        self, engine: Engine, loaded: LoadedBytes, ledger: Ledger, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._loaded = loaded
        self._ledger = ledger
        self._clock = clock
        self._state = LadderState()
        self._step_tokens = engine.scheduler.max_step_tokens
        self._configured_bytes = loaded.budget_bytes
        self._announced_bytes: int | None = None
        self._target_blocks = engine.pool.num_blocks
        self._planned_blocks = engine.pool.num_blocks
        self._counted = (0, 0, 0)
        self._pressure = Pressure()
        self.transitions: Counter[Rung] = Counter()
        self._ordinary = False  # whether prefixes are dropped only because the pool is full

    @property
    def rung(self) -> Rung:
        """The rung that holds now."""
        return self._state.rung

    @property
    def budget_bytes(self) -> int:
        """The bound on the process tree: what was set, or less if a control group announced less."""
        if self._announced_bytes is None:
            return self._configured_bytes
        return min(self._configured_bytes, self._announced_bytes)

    def wants(self, signals: MemorySignals) -> bool:
        """Whether `tick` has anything to do; only reads numbers, so another thread may ask."""
        engine = self._engine
        return (
            self.rung is not Rung.NONE
            or engine.pool.num_blocks != self._target_blocks
            or signals.announced_bytes != self._announced_bytes
            or self._counts() != self._counted
            or LadderState().descend(self._measure(signals), 0.0) is not None
        )

    def tick(self, signals: MemorySignals) -> None:
        """Take a look at memory into account: go down as far as it asks, or up one rung after some calm."""
        if signals.announced_bytes != self._announced_bytes:
            num_blocks = self._engine.pool.num_blocks
            self._follow_announcement(signals.announced_bytes)
            if self._engine.pool.num_blocks < num_blocks:
                return  # this look is from before: the next one tells what is still missing
        now = self._clock()
        pressure = self._pressure = self._measure(signals)
        self._counted = self._counts()
        needed = deficit_bytes(signals.rooms)
        given, entered = 0, False
        if self._ordinary and self.rung is not Rung.NONE and needed > 0:
            # Nobody was warned of a full pool; now prefixes go because memory is wanted back.
            self._ordinary = False
            self._tell(Rung.DROP_PREFIX, pressure, signals)
        while (rung := self._state.descend(self._relieved(signals, pressure, given), now)) is not None:
            entered = True
            self._enter(rung, pressure, signals)
            given += self._act(rung, needed - given)
        if not entered and needed > 0 and self.rung is not Rung.NONE:
            for rung in Rung:
                if Rung.NONE < rung <= self.rung and given < needed:
                    given += self._act(rung, needed - given)
        left = None if entered else self._state.recover(pressure, now)
        if left is not None:
            self._leave(left)
        self._pause_admission(pressure)
        self._touch()
        # A pool that stays small when memory is back would make for a shortage of blocks on top.
        if pressure.bytes <= self._state.levels[Rung.DROP_PREFIX].leave.bytes:
            self._follow_target(spare_bytes(signals.rooms))

    def set_budget(self, budget_bytes: int) -> None:
        """Announce a budget, and meet it now as far as the requests under way allow; the rest follows as they end.

        Raises `InvalidRequestError` for one in which not even one block is left for the KV pool.
        """
        self._blocks_for(budget_bytes)
        _log.warning("memory budget: %s, was %s", format_bytes(budget_bytes), format_bytes(self._configured_bytes))
        self._configured_bytes = budget_bytes
        self._retarget()

    def report(self, signals: MemorySignals) -> MemoryReport:
        """Return budget, usage and ladder as they are now."""
        engine = self._engine
        tightest = max(signals.rooms, key=room_level, default=None)
        pressure = self._measure(signals)
        return MemoryReport(
            budget_bytes=self.budget_bytes,
            planned_bytes=self._loaded.budget_bytes,
            tree_bytes=signals.tree_bytes,
            ledger=dict(self._ledger.usage()),
            pool_blocks=engine.pool.num_blocks,
            pool_target_blocks=self._target_blocks,
            planned_blocks=self._planned_blocks,
            max_blocks=engine.max_blocks,
            block_bytes=self._loaded.block_bytes,
            step_tokens=engine.scheduler.max_step_tokens,
            rung=self.rung.label,
            block_pressure=pressure.blocks,
            byte_pressure=pressure.bytes,
            tightest="" if tightest is None else tightest.source,
            transitions=self.transition_labels(),
            rooms=signals.rooms,
            stalled_share=signals.stalled_share,
        )

    def steps(self) -> tuple[int, float]:
        """Return how many steps the engine has computed, and their seconds; another thread may ask."""
        return self._engine.steps

    def transition_labels(self) -> dict[str, int]:
        """Return how often each rung was entered, by name."""
        return {rung.label: self.transitions[rung] for rung in Rung if rung is not Rung.NONE}

    def _counts(self) -> tuple[int, int, int]:
        scheduler = self._engine.scheduler
        return scheduler.num_preemptions - scheduler.num_spills, self._engine.num_refused, scheduler.num_spills

    def _measure(self, signals: MemorySignals) -> Pressure:
        num_preempted, num_refused, num_spilled = (
            new - old for new, old in zip(self._counts(), self._counted, strict=True)
        )
        blocks = block_level(
            num_live=self._engine.pool.num_used,
            num_blocks=self._engine.pool.num_usable,
            num_spilled=num_spilled,
            num_preempted=num_preempted,
            num_refused=num_refused,
        )
        return Pressure(blocks=blocks, bytes=byte_level(signals))

    @staticmethod
    def _relieved(signals: MemorySignals, pressure: Pressure, given_bytes: int) -> Pressure:
        """Return the pressure as it will be when the system has noticed what was given back."""
        if not given_bytes:
            return pressure
        rooms = tuple(replace(room, left_bytes=room.left_bytes + given_bytes) for room in signals.rooms)
        return replace(pressure, bytes=byte_level(replace(signals, rooms=rooms)))

    def _enter(self, rung: Rung, pressure: Pressure, signals: MemorySignals) -> None:
        self.transitions[rung] += 1
        if rung is Rung.DROP_PREFIX:
            # A pool that is full of prefixes does what it is for: nobody needs to be warned.
            self._ordinary = pressure.bytes < self._state.levels[rung].enter.bytes
        self._tell(rung, pressure, signals)

    def _tell(self, rung: Rung, pressure: Pressure, signals: MemorySignals) -> None:
        tightest = max(signals.rooms, key=room_level, default=None)
        _log.log(
            self._log_level(rung),
            "memory ladder: enters %s (blocks %.2f, bytes %.2f%s)",
            rung.label,
            pressure.blocks,
            pressure.bytes,
            "" if tightest is None else f", {format_bytes(tightest.left_bytes)} left of {tightest.source}",
        )

    def _act(self, rung: Rung, needed_bytes: int) -> int:
        """Do what a rung does; return the bytes given back."""
        tight = needed_bytes > 0
        match rung:
            case Rung.DROP_PREFIX:
                return self._drop_prefixes(needed_bytes) if tight else 0
            case Rung.SMALLER_CHUNK:
                return self._engine.limit_step_tokens(self._step_tokens // CHUNK_DIVISOR)
            case Rung.STOP_ADMISSION:
                return self._compact(needed_bytes) if tight else 0
            case Rung.SPILL:
                return self._spill(needed_bytes) if tight else 0
            case Rung.PREEMPT:
                return self._preempt(needed_bytes) if tight else 0
            case Rung.REFUSE:
                self._engine.refuses = tight
                return 0
            case _:
                return 0

    def _log_level(self, rung: Rung) -> int:
        return logging.INFO if rung is Rung.DROP_PREFIX and self._ordinary else logging.WARNING

    def _leave(self, rung: Rung) -> None:
        _log.log(self._log_level(rung), "memory ladder: leaves %s", rung.label)
        match rung:
            case Rung.SMALLER_CHUNK:
                try:
                    self._engine.limit_step_tokens(self._step_tokens)
                except OutOfMemoryError as error:
                    _log.warning("prompts stay in smaller pieces: %s", error)
            case Rung.SPILL:
                if self._engine.spill is not None:
                    self._engine.spill.store.use_host()
            case Rung.REFUSE:
                self._engine.refuses = False
            case _:
                return

    def _compact(self, needed_bytes: int) -> int:
        """Shrink the pool by what is needed, to little more than the live blocks at most; return the bytes given."""
        engine, spilled_bytes = self._engine, self._spilled_bytes()
        live = engine.pool.num_live
        least = live + max(LEAST_SLACK_BLOCKS, live // SLACK_DIVISOR)
        wanted = engine.pool.num_blocks - -(-needed_bytes // self._loaded.block_bytes)
        given = 0
        for target in (max(least, wanted), least):
            # Blocks that were never written give nothing back: then the pool shrinks to what is in use.
            if given < needed_bytes and target < engine.pool.num_blocks:
                given += engine.resize_pool(target).given_back_bytes
        # Blocks that somebody waits for may have gone from the pool to host memory: that gave nothing back.
        return given + min(0, spilled_bytes - self._spilled_bytes())

    def _drop_prefixes(self, needed_bytes: int) -> int:
        """Forget idle prefixes in host memory, then those in the pool as far as needed; return the bytes given back."""
        spill = self._engine.spill
        given = 0 if spill is None else spill.store.drop_idle()
        return given + (self._compact(needed_bytes - given) if given < needed_bytes else 0)

    def _spilled_bytes(self) -> int:
        spill = self._engine.spill
        return 0 if spill is None else spill.store.host_bytes

    def _spill(self, needed_bytes: int) -> int:
        """Empty the host tier, then set back to disk as many as are needed; return the bytes given back."""
        spill = self._engine.spill
        if spill is None:
            return 0
        given = spill.store.leave_host()
        return given + (self._preempt(needed_bytes - given) if spill.store.gives_memory_back else 0)

    def _preempt(self, needed_bytes: int) -> int:
        """Let the last in order give up their blocks until enough is given back; the first one always goes on."""
        given = 0
        while given < needed_bytes and len(self._engine.scheduler.running) > 1:
            self._engine.scheduler.preempt_last()
            given += self._compact(needed_bytes - given)
        self._counted = self._counts()
        return given

    def _pause_admission(self, pressure: Pressure) -> None:
        """Let nobody start below the rung, while what brought it on lasts: a pool that has room again is used."""
        scheduler, levels = self._engine.scheduler, self._state.levels[Rung.STOP_ADMISSION]
        share = self._engine.pool.num_used / max(1, self._engine.pool.num_usable)
        held = pressure.bytes > levels.leave.bytes or share > levels.leave.blocks
        admits = self.rung < Rung.STOP_ADMISSION or not held
        if admits and not scheduler.admits:
            scheduler.wake()
        scheduler.admits = admits

    def _touch(self) -> None:
        """Mark the requests that the rung reaches now."""
        if self.rung is Rung.NONE:
            return
        scheduler = self._engine.scheduler
        for sequence in scheduler.waiting:
            sequence.request.touch(Rung.DROP_PREFIX)
            if self.rung >= Rung.STOP_ADMISSION:
                sequence.request.touch(Rung.STOP_ADMISSION)
        if self.rung >= Rung.SMALLER_CHUNK:
            for sequence in scheduler.running:
                if sequence.num_pending > 1:
                    sequence.request.touch(Rung.SMALLER_CHUNK)

    @property
    def _fixed_bytes(self) -> int:
        """What is not the pool's to give, the index of the largest pool that there was included."""
        return self._loaded.fixed_bytes + block_index_bytes(self._engine.pool.most_blocks - self._planned_blocks)

    def _blocks_for(self, budget_bytes: int) -> int:
        """Return the pool's blocks under a budget; raise `InvalidRequestError` if there is none."""
        block_bytes, most = self._loaded.block_bytes, self._engine.pool.most_blocks
        room = budget_bytes - self._fixed_bytes
        blocks = room // block_bytes
        if blocks > most:  # those on top come with their index
            blocks = most + (room - most * block_bytes) // (block_bytes + BLOCK_INDEX_BYTES)
        if blocks < 1:
            least = self._fixed_bytes + block_bytes
            raise InvalidRequestError(
                f"memory {format_bytes(budget_bytes)} leaves no block for the KV cache: weights, workspace, runtime "
                f"and headroom take {format_bytes(self._fixed_bytes)}, so send at least {format_bytes(least)}",
                param="memory",
            )
        return min(blocks, self._engine.max_blocks)

    def _follow_announcement(self, announced_bytes: int | None) -> None:
        self._announced_bytes = announced_bytes
        told = "no more" if announced_bytes is None else format_bytes(announced_bytes)
        _log.warning("memory.high announces %s: the budget is %s", told, format_bytes(self.budget_bytes))
        self._retarget()

    def _retarget(self) -> None:
        """Set where the pool is heading, and go there."""
        budget = max(self.budget_bytes, self._fixed_bytes + self._loaded.block_bytes)
        # What was free of the budget at load stays free: the pool was as large as anybody asked for.
        wanted = self._blocks_for(budget)
        grown = budget > self._loaded.budget_bytes
        self._target_blocks = wanted if grown else min(wanted, self._planned_blocks)
        if budget > self._ledger.budget_bytes:
            self._ledger.set_budget(budget)
        self._follow_target(None)
        if self._ledger.in_use_bytes <= budget:
            self._ledger.set_budget(budget)

    def _follow_target(self, spare: int | None) -> None:
        """Bring the pool nearer to its target; growth takes at most half of `spare` bytes, where that is given."""
        engine, target = self._engine, self._target_blocks
        if target == engine.pool.num_blocks:
            return
        if target > engine.pool.num_blocks and spare is not None:
            block_bytes = self._loaded.block_bytes
            target = min(target, engine.pool.num_blocks + max(0, spare // 2, min(spare, block_bytes)) // block_bytes)
        try:
            result = engine.resize_pool(target)
            while result.num_missing and len(engine.scheduler.running) > 1:
                engine.scheduler.preempt_last()
                result = engine.resize_pool(target)
        except OutOfMemoryError as error:
            _log.debug("the KV pool stays as it is: %s", error)
            return
        self._counted = self._counts()
        if target < self._target_blocks or result.num_blocks > self._target_blocks:
            return
        if self._ledger.in_use_bytes <= self.budget_bytes:
            self._ledger.set_budget(self.budget_bytes)
