"""`EngineClient`: one interface to an engine, in this process or behind a socket, and the values that cross it.

The values are msgspec structs, so that the same types travel over the socket as length-prefixed msgpack frames.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Protocol

import msgspec

from openautoglm.engine.record import MemoryReport, RequestRecord, WatchdogReport
from openautoglm.probe.stacks import StackProfile
from openautoglm.spec.notices import Notice
from openautoglm.spec.sampling import SamplingParams


class Pooling(Enum):
    """How hidden states become one vector: their mean, or the last one."""

    MEAN = "mean"
    LAST = "last"


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request: a tokenised prompt and how to continue it.

    A smaller `priority` number goes first; equals go in the order of their arrival. `namespace` separates prefix caches
    of tenants. The KV cache of a `session_id` of a namespace is kept after the answer. Counted from its arrival, a
    request that has not ended after `deadline_seconds` is of no use any more: it ends with an error of the kind
    "DeadlineError". With a `pooling` the embedding of its prompt is wanted: it generates one token, which means
    nothing.
    """

    request_id: str
    prompt_tokens: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    namespace: str = ""
    deadline_seconds: float | None = None
    session_id: str | None = None
    pooling: Pooling | None = None


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A generated token with its logprob and the best alternatives, as (token id, logprob), best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class GenerationEvent(msgspec.Struct, frozen=True, kw_only=True):
    """News of one choice: text that is final (stop strings held back), its tokens, and how it ended.

    `finish_reason` is None until the choice's last event, then "stop", "length", "abort" or "error" (with `error`, and
    with `error_kind`, an exception's name, where a client can act on it, and `error_param`, a field of its request).
    `record` comes with the last event of a request that the ladder touched.
    `stop_reason` is the stop string or token id that matched, None for the model's own end (EOS). Token counts are
    cumulative for the choice; `prompt_tokens` and `cached_tokens` belong to the request. `embedding` is little-endian
    float32 of length 1, in the last event of a request with a pooling.
    """

    request_id: str
    choice: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    error_kind: str | None = None
    error_param: str | None = None
    record: RequestRecord | None = None
    embedding: bytes = b""


class EngineDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What a client needs to know of a loaded engine.

    `plan_table` is the plan and receipt as text, `receipt_json` the receipt for programs, empty where there is none;
    `notices` are the fallbacks and downgrades of the load.
    """

    model: str
    fingerprint: str
    context_tokens: int
    vocab_size: int
    max_running_requests: int
    max_queued_requests: int
    plan_table: str
    receipt_json: str = ""
    notices: tuple[Notice, ...] = ()


class SpillStatus(msgspec.Struct, frozen=True, kw_only=True):
    """KV blocks outside the pool: how many left it, came back, were lost (no tier had room) or damaged.

    `memory_bytes` and `disk_bytes` are taken now. `prefix_blocks` of idle prefixes and sessions left the pool, of which
    `prefix_hits` came back. `num_errors` of the disk were met; the first turns writing off.
    """

    spilled_blocks: int
    restored_blocks: int
    lost_blocks: int
    damaged_blocks: int
    memory_bytes: int
    disk_bytes: int
    num_errors: int
    prefix_blocks: int = 0
    prefix_hits: int = 0


class SpeculationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that were drafted from what a text had said before: how often, how many, and how many were right."""

    drafts: int
    draft_tokens: int
    accepted_tokens: int


class SessionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions that are kept, blocks that they hold, how many requests went on with one, and how many sessions expired,
    for their time or for lack of space.
    """

    sessions: int
    blocks: int
    resumed: int
    expired_time: int
    expired_space: int


class ConstraintStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What constraints cost: how many were compiled or refused, and of these how many were known before.

    `compile_seconds` are of the thread that compiles beside the steps, without the child that tries; `mask_seconds` are
    part of steps. `num_waiting` requests wait for their grammar, `num_live` follow one.
    """

    num_compiled: int
    num_refused: int
    num_cached: int
    compile_seconds: float
    num_masks: int
    mask_seconds: float
    num_waiting: int
    num_live: int
    cache_bytes: int


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One queue: choices that run and wait now, and how long the first of those that wait has been there."""

    num_running: int
    num_waiting: int
    oldest_seconds: float


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Steps whose prompt tokens were limited for the sake of streams: the last limit, how many steps there were, and
    how many of them took longer than they should all the same. The targets are None where there is none."""

    last_tokens: int
    num_limited_steps: int
    num_late_steps: int
    itl_seconds: float | None
    ttft_seconds: float | None


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Counters and gauges for `/metrics` and `/health`; counters only grow.

    `num_running` and `num_waiting` count choices. `num_free_blocks` hold nothing, `num_cached_blocks` an idle prefix;
    both can be allocated, the rest is in use. Prefix tokens are counted once a request, `prompt_tokens` on admission.
    `num_preemptions` counts choices that were set back, `num_spills` those of them whose blocks were kept, and
    `recomputed_tokens` what had to be computed again; `spill` is None without a tier, `speculation` where nothing is
    drafted. `num_refused` requests found no
    room, `num_missed_deadlines` had not ended in time. `rung` is the number of the ladder's rung (0: none),
    `rung_transitions` how often each was entered; `budget_bytes` bounds the process tree, which takes `tree_bytes`; all
    of these are 0 for an engine without a ladder. `memory_reports` counts the reports of the engine's watchdog by
    reason, `num_unwritten_reports` those that found no place on disk. `memory` is the budget, what takes it, and the
    ladder; None for an engine without one. `constraints` is None for an engine that knows none.
    `queues` are those of priorities, by name; `budget` is None where steps are never limited.
    """

    ready: bool
    heartbeat: int
    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    prompt_tokens: int
    generated_tokens: int
    num_preemptions: int
    num_steps: int
    step_seconds: float
    resident_bytes: int
    num_refused: int = 0
    num_missed_deadlines: int = 0
    budget_bytes: int = 0
    tree_bytes: int = 0
    byte_pressure: float = 0.0
    rung: int = 0
    rung_transitions: dict[str, int] = {}
    memory_reports: dict[str, int] = {}
    num_unwritten_reports: int = 0
    memory: MemoryReport | None = None
    num_spills: int = 0
    recomputed_tokens: int = 0
    spill: SpillStatus | None = None
    constraints: ConstraintStatus | None = None
    speculation: SpeculationStatus | None = None
    sessions: SessionStatus | None = None
    queues: dict[str, QueueStatus] = {}
    budget: BudgetStatus | None = None


class EngineClient(Protocol):
    """An engine as its users see it."""

    async def describe(self) -> EngineDescription:
        """Return what is loaded; raise `EngineError` if the engine is gone."""
        ...

    def generate(
        self, request: GenerationRequest, *, on_accepted: Callable[[], None] | None = None
    ) -> AsyncIterator[GenerationEvent]:
        """Submit and yield events until every choice has finished.

        `on_accepted` is called when the engine has taken the request: from then on the prompt is held there alone.
        Raises `RequestError` or `OverloadedError` before the first event, `EngineError` if the engine dies.
        Closing the iterator early aborts the request and frees its blocks.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a request; its choices finish with "abort". Unknown ids are ignored (it may just have ended)."""
        ...

    async def status(self) -> EngineStatus:
        """Return counters and gauges; raise `EngineError` if the engine is gone."""
        ...

    async def explain(self, request_id: str) -> RequestRecord | None:
        """Return where a request's time went, running or ended; None for one that is unknown or forgotten."""
        ...

    async def memory(self, budget_bytes: int | None = None) -> MemoryReport:
        """Return budget, usage and ladder; with `budget_bytes`, announce a new budget first.

        Raises `InvalidRequestError` for a budget that cannot be, `OutOfMemoryError` for one that the requests under way
        do not allow now.
        """
        ...

    async def report(self, *, trace: bool | None = None) -> WatchdogReport:
        """Return where the memory of the engine's process is; `trace` starts or stops following allocations.

        Raises `InvalidRequestError` where there is no room for tracing.
        """
        ...

    async def profile(self, *, seconds: float, rate_hz: int) -> StackProfile:
        """Sample what the engine's process does for `seconds`, and return it.

        Raises `OverloadedError` while another profile is taken.
        """
        ...

    async def close(self) -> None:
        """Let go of the engine."""
        ...
