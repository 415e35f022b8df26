"""`Sessions`: conversations whose KV cache is kept after the answer, until they go on or expire.

A request may name a session. When its answer ends, the session holds the keys of all whole blocks of prompt and answer:
those blocks are the last to be evicted, and go to the spill tiers rather than being dropped. The next request of the
session finds them like any prefix, in the pool or in a tier. A session belongs to the tenant whose root its keys grow
from: the same id of another tenant is another session.

    end of an answer     the session holds its keys, in place of those it held before
    `seconds` unused     it lets go of them
    too many blocks      the session that was unused for longest lets go, of the tenant that holds the most

What is let go leaves the tiers, and is evicted first in the pool.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.client import SessionStatus
from openautoglm.engine.request import Request, Sequence, SequenceState
from openautoglm.engine.scheduler import Scheduler
from openautoglm.engine.spill import Spill
from openautoglm.executor.protocol import ExecutorLayout
from openautoglm.spec.reuse import SessionLimits
from openautoglm.units import KIB

# What sessions take beside their blocks, in the engine's process: bounded by these numbers of them and of their blocks
# (tests/engine/test_sessions.py).
MOST_SESSIONS = 1024
MOST_SESSION_BLOCKS = 6144
SESSION_INDEX_BYTES = 3072 * KIB
_TIME, _SPACE = "time", "space"


def _max_blocks(limits: SessionLimits, block_bytes: int, pool: BlockPool, spill: Spill | None) -> int:
    """Return how many blocks sessions may hold: half of the pool and all of the tiers, where no bytes are given."""
    if limits.max_bytes is not None:
        return min(limits.max_bytes // block_bytes, MOST_SESSION_BLOCKS)
    slots = 0 if spill is None else spill.store.num_slots
    return min(pool.num_usable // 2 + slots, MOST_SESSION_BLOCKS)


@dataclass(slots=True)
class _Session:
    root: bytes
    keys: tuple[bytes, ...]
    used_seconds: float


class Sessions:
    """Holds blocks for sessions within `limits`, each for a time after its last use. One thread only."""

    def __init__(
        self,
        scheduler: Scheduler,
        spill: Spill | None,
        layout: ExecutorLayout,
        limits: SessionLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._spill = spill
        self._seconds = limits.seconds
        block_bytes = sum(group.block_bytes for group in layout.groups)
        self._max_blocks = _max_blocks(limits, block_bytes, scheduler.pool, spill)
        self._clock = clock
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._holders: Counter[bytes] = Counter()
        self._tenant_blocks: Counter[bytes] = Counter()
        self._num_resumed = 0
        self._num_expired = {_TIME: 0, _SPACE: 0}

    def begin(self, request: Request) -> None:
        """A request arrives: its session, if it has one that is known, is in use now."""
        session = None if request.session is None else self._sessions.get(request.session)
        if session is not None and request.session is not None:
            session.used_seconds = self._clock()
            self._sessions.move_to_end(request.session)
            self._num_resumed += 1

    def end(self, sequence: Sequence, finish_reason: str) -> None:
        """Take a choice out of the scheduler; its session keeps the blocks of an answer that ended by itself."""
        name = sequence.request.session
        ended = finish_reason in ("stop", "length") and sequence.state is SequenceState.RUNNING
        if name is not None and ended and sequence.choice == 0:
            self._keep(name, sequence)
        self._scheduler.remove(sequence)

    def expire(self) -> None:
        """Let go of sessions that nobody has used for too long; cheap where there are none."""
        while self._sessions:
            name, session = next(iter(self._sessions.items()))
            if self._clock() - session.used_seconds < self._seconds:
                return
            self._let_go(name, _TIME)

    def status(self) -> SessionStatus:
        """Return counters and gauges."""
        return SessionStatus(
            sessions=len(self._sessions),
            blocks=len(self._holders),
            resumed=self._num_resumed,
            expired_time=self._num_expired[_TIME],
            expired_space=self._num_expired[_SPACE],
        )

    def _keep(self, name: bytes, sequence: Sequence) -> None:
        prefix, pool = self._scheduler.prefix, self._scheduler.pool
        prefix.register(sequence)
        # Blocks of pinned prompts, and those that hold the same as another, are not found under these keys.
        known = [key for key in sequence.keys[1 : sequence.num_registered + 1] if pool.lookup(key) is not None]
        self._hold(name, sequence.request.root_key, tuple(known[: self._max_blocks]))

    def _hold(self, name: bytes, root: bytes, keys: tuple[bytes, ...]) -> None:
        """Let a session of the tenant with this root hold these keys and no others, within the bounds."""
        self._scheduler.pool.retain([key for key in keys if key not in self._holders])
        self._holders.update(keys)
        old = self._sessions.pop(name, None)
        if old is not None:
            self._forget(old)
        if keys:
            self._sessions[name] = _Session(root, keys, self._clock())
            self._tenant_blocks[root] += len(keys)
        while len(self._holders) > self._max_blocks or len(self._sessions) > MOST_SESSIONS:
            largest = max(self._tenant_blocks, key=self._tenant_blocks.__getitem__)
            self._let_go(next(one for one, held in self._sessions.items() if held.root == largest), _SPACE)

    def _let_go(self, name: bytes, reason: str) -> None:
        self._forget(self._sessions.pop(name))
        self._num_expired[reason] += 1

    def _forget(self, session: _Session) -> None:
        """Give up what a session held, unless another holds it too."""
        self._tenant_blocks[session.root] -= len(session.keys)
        if not self._tenant_blocks[session.root]:
            del self._tenant_blocks[session.root]
        freed = []
        for key in session.keys:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                freed.append(key)
        self._scheduler.pool.let_go(freed)
        if self._spill is not None:
            self._spill.let_go(freed)
