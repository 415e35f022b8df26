"""Sessions and idle prefixes: kept, spilled, fetched, expired; each tenant's its own; no output changes by it."""

from __future__ import annotations

import random
import tracemalloc
from itertools import count

import pytest

from openautoglm.engine.client import GenerationEvent, GenerationRequest, SessionStatus
from openautoglm.engine.engine import Engine
from openautoglm.engine.sessions import MOST_SESSION_BLOCKS, MOST_SESSIONS, SESSION_INDEX_BYTES
from openautoglm.errors import InvalidRequestError
from openautoglm.memory.spill_store import SpillStore
from openautoglm.memory.tiers import HostTier
from openautoglm.spec.reuse import SessionLimits
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import VOCAB, HistoryExecutor, isolated, make_engine

PIECE = HistoryExecutor(1).layout().groups[0].block_bytes
PROMPT = tuple(range(3, 3 + 40))
_names = count()


class Talk:
    """An engine, its clock, and turns that are compared with what they yield alone."""

    def __init__(
        self, *, num_blocks: int = 16, seconds: float = 60.0, blocks: int | None = None, tier: int = 0
    ) -> None:
        self.now = 0.0
        self.store = SpillStore(host=HostTier(tier * 4096, PIECE)) if tier else None
        limits = SessionLimits(seconds=seconds, max_bytes=None if blocks is None else blocks * PIECE)
        self.engine: Engine = make_engine(
            HistoryExecutor(num_blocks), context_tokens=150, sessions=limits, clock=lambda: self.now,
            spill_store=self.store,
        )  # fmt: skip

    def say(self, prompt: tuple[int, ...], session: str | None = None, tenant: str = "a") -> GenerationEvent:
        """Run a turn; return its last event."""
        sampling = SamplingParams(max_tokens=10, temperature=0.0, seed=1, ignore_eos=True)
        request = GenerationRequest(
            request_id=f"r{next(_names)}", prompt_tokens=prompt, sampling=sampling, namespace=tenant, session_id=session
        )
        self.engine.add(request)
        events = []
        while self.engine.has_work:
            events += self.engine.step()
            self.engine.integrity_check()
        tokens = tuple(token for event in events for token in event.tokens)
        assert tokens == isolated(request, 0, context_tokens=150).tokens
        self.answer = (*prompt, *tokens)
        return events[-1]

    def flood(self, number: int = 6) -> None:
        """Fill the pool with prompts that have nothing in common."""
        for _ in range(number):
            first = next(_names)
            self.say(tuple((first * 31 + index * 7) % VOCAB for index in range(100)), tenant=f"flood{first}")

    @property
    def sessions(self) -> SessionStatus:
        status = self.engine.status().sessions
        assert status is not None
        return status


def test_a_session_outlives_a_flood_that_evicts_all_else() -> None:
    talk = Talk()
    talk.say(PROMPT)
    plain = talk.answer
    talk.flood()
    assert talk.say((*plain, 1)).cached_tokens == 0
    talk.say(PROMPT, "s")
    kept = talk.answer
    assert talk.sessions.blocks == 3, "whole blocks of prompt and answer: 40 tokens and 10, of which the last is open"
    talk.flood()
    assert talk.say((*kept, 1), "s").cached_tokens == 48
    assert (talk.sessions.sessions, talk.sessions.resumed) == (1, 1)


def test_the_same_id_of_another_tenant_is_another_session() -> None:
    talk = Talk(num_blocks=32)
    talk.say(PROMPT, "s", "a")
    kept = talk.answer
    assert talk.say((*kept, 1), "s", "b").cached_tokens == 0
    assert (talk.sessions.sessions, talk.sessions.resumed) == (2, 0)
    assert talk.say((*kept, 1), "s", "a").cached_tokens == 48


def test_a_session_that_nobody_uses_expires_without_any_request() -> None:
    talk = Talk(seconds=60.0, tier=64)
    talk.say(PROMPT, "s")
    kept = talk.answer
    talk.now = 59.0
    talk.engine.sessions.expire()
    talk.flood()
    assert talk.store is not None
    assert talk.say((*kept, 1), "s").cached_tokens == 48, "a use counts anew"
    talk.now += 59.0
    talk.engine.sessions.expire()
    assert talk.sessions.sessions == 1
    talk.now += 2.0
    talk.engine.sessions.expire()
    assert (talk.sessions.sessions, talk.sessions.blocks, talk.sessions.expired_time) == (0, 0, 1)
    assert not talk.engine.pool.retained
    keys = [key for key in talk.store._checksums if not talk.store._host.is_idle(key)]  # type: ignore[union-attr]
    assert not keys, "nothing of it is left in a tier"


def test_beyond_the_bytes_the_oldest_of_the_largest_tenant_goes() -> None:
    talk = Talk(num_blocks=64, blocks=8)
    for first, tenant, session in ((1, "small", "x"), (20, "large", "one"), (50, "large", "two")):
        talk.say(tuple(range(first, first + 40)), session, tenant)
    assert (talk.sessions.sessions, talk.sessions.blocks, talk.sessions.expired_space) == (2, 6, 1)
    talk.say(tuple(range(1, 41)), "x", "small")
    assert talk.sessions.resumed == 1, "the session of the small tenant is still there"
    talk.say(tuple(range(5, 45)), "two", "large")
    assert talk.sessions.resumed == 2
    talk.say(tuple(range(7, 47)), "one", "large")
    assert talk.sessions.resumed == 2


def test_sessions_and_idle_prefixes_go_to_a_tier_and_come_back() -> None:
    talk = Talk(num_blocks=11, tier=64, blocks=20)
    talk.say(PROMPT, "s")
    kept = talk.answer
    idle = tuple(range(50, 90))
    talk.say(idle)
    for session in ("t", "u", "v"):
        talk.say(tuple((7 * next(_names) + index) % VOCAB for index in range(60)), session)
    talk.flood(2)
    assert talk.say((*idle, 1)).cached_tokens == 32
    assert talk.say((*kept, 1), "s").cached_tokens == 48
    status = talk.engine.status().spill
    assert status is not None
    assert status.prefix_hits > 0
    assert status.spilled_blocks == 0, "nobody was set back"


def test_idle_pieces_never_take_the_place_of_others_and_leave_first() -> None:
    store = SpillStore(host=HostTier(3 * 4096, PIECE))
    assert store.put(b"idle1", bytes(PIECE), idle=True)
    assert store.put(b"kept1", bytes(PIECE))
    assert store.put(b"idle2", bytes(PIECE), idle=True)
    assert store.put(b"idle3", bytes(PIECE), idle=True)
    assert [key in store for key in (b"idle1", b"idle2", b"idle3", b"kept1")] == [False, True, True, True]
    store.keep(b"idle2")
    assert store.put(b"kept2", bytes(PIECE))
    assert [key in store for key in (b"idle2", b"idle3", b"kept1", b"kept2")] == [True, False, True, True]
    assert not store.has_idle_room
    assert not store.put(b"idle4", bytes(PIECE), idle=True)
    assert store.num_lost == 0
    assert store.put(b"kept3", bytes(PIECE))
    assert store.num_lost == 1
    store.close()


def test_random_conversations_equal_isolated_runs() -> None:
    for seed in range(4):
        choose = random.Random(seed)
        talk = Talk(
            num_blocks=choose.choice([11, 14, 24]), tier=choose.choice([0, 4, 40]), blocks=choose.choice([4, 12])
        )
        turns: dict[tuple[str, str], tuple[int, ...]] = {}
        for _ in range(60):
            name = choose.choice("ab"), choose.choice("stu")
            before = turns.get(name, ())
            prompt = (*before, *(choose.randrange(VOCAB) for _ in range(choose.randint(1, 20))))
            if len(prompt) > 120:
                prompt = prompt[-15:]
            talk.say(prompt, name[1] if choose.random() < 0.8 else None, name[0])
            turns[name] = talk.answer
            talk.now += choose.choice([0.0, 1.0, 70.0])
            talk.engine.sessions.expire()
            if choose.random() < 0.2:
                talk.engine.resize_pool(choose.choice([11, 24]))
        assert talk.sessions.resumed > 0


def test_where_no_sessions_are_kept_naming_one_is_refused() -> None:
    talk = Talk(seconds=0.0)
    with pytest.raises(InvalidRequestError, match="no sessions are kept"):
        talk.say(PROMPT, "s")
    assert not talk.engine.has_work
    assert talk.engine.charged_bytes == 0


def test_the_index_of_sessions_takes_less_than_is_set_aside() -> None:
    talk = Talk(num_blocks=16)
    sessions = talk.engine.sessions
    sessions._max_blocks = MOST_SESSION_BLOCKS
    pool = talk.engine.pool
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        per_session = MOST_SESSION_BLOCKS // MOST_SESSIONS
        for number in range(MOST_SESSIONS):
            keys = [b"%16d" % (number * per_session + index) for index in range(per_session)]
            sessions._hold(b"%16d" % number, b"root", tuple(keys))
        # Their blocks stand in a dictionary of their own; the other one keeps its size.
        pool._kept.update(dict.fromkeys(range(1000, 1000 + MOST_SESSION_BLOCKS)))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(pool.retained) == MOST_SESSION_BLOCKS
    assert SESSION_INDEX_BYTES / 2 < taken < SESSION_INDEX_BYTES
