"""What is told of requests and memory afterwards: values that cross the socket and end in answers. No prompt text."""

from __future__ import annotations

import msgspec

from openautoglm.memory.allocations import TracedLines
from openautoglm.memory.growth import Growth
from openautoglm.probe.mappings import MappingKind
from openautoglm.probe.native_heap import NativeHeap
from openautoglm.probe.process_memory import ProcessMemory
from openautoglm.spec.pressure import Room


class ChoiceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One choice: how it ended (None while it lives), and its seconds, which add up to its whole time.

    `preempted_seconds` and `spilled_seconds` run from the loss of its blocks to its next token, recomputing and reading
    back included.
    """

    choice: int
    finish_reason: str | None
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    preempted_seconds: float
    spilled_seconds: float
    num_preemptions: int
    num_spills: int


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request's time went and which rungs of the ladder it met, mildest first.

    Of its KV blocks, which count once for each choice, `spilled_blocks` left the pool and `restored_blocks` came back;
    `recomputed_tokens` had to be computed again.
    `constraint_seconds` it waited for its grammar, a part of the queue; `mask_seconds` following it took, a part of
    decoding. `error` says why it failed, if it did; `deadline_seconds` is what its client asked for, counted from its
    arrival.
    """

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    total_seconds: float
    rungs: tuple[str, ...]
    choices: tuple[ChoiceRecord, ...]
    spilled_blocks: int = 0
    restored_blocks: int = 0
    recomputed_tokens: int = 0
    deadline_seconds: float | None = None
    constraint_seconds: float = 0.0
    mask_seconds: float = 0.0
    error: str | None = None


class MemoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """The budget, what takes it, and the ladder.

    `budget_bytes` bounds the process tree now, `planned_bytes` is what the load was planned with. `tree_bytes` is what
    the tree takes, `ledger` what is charged for what. `pool_blocks` are there now, of `planned_blocks` at load and
    `max_blocks` at most; `pool_target_blocks` is where the pool is heading. Pressures are 0 when all is well, 1 when
    nothing is left. `transitions` counts how often each rung was entered. `rooms` are the bounds that pressure comes
    from, `stalled_share` the share of time in which somebody waited for memory.
    """

    budget_bytes: int
    planned_bytes: int
    tree_bytes: int
    ledger: dict[str, int]
    pool_blocks: int
    pool_target_blocks: int
    planned_blocks: int
    max_blocks: int
    block_bytes: int
    step_tokens: int
    rung: str
    block_pressure: float
    byte_pressure: float
    tightest: str
    transitions: dict[str, int]
    rooms: tuple[Room, ...] = ()
    stalled_share: float = 0.0


class WatchdogReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where the memory of one process is. No text of any request, no addresses, no names but those of code.

    `reason` is "growth" or "slope" for one that came by itself, with the `growth` that brought it on, else "request".
    `memory` is what the process takes; of its anonymous and shared bytes, `measured` parts were counted by whoever owns
    them, and `other_bytes` is the rest. Of that, `charged` is the most that what is under way may take. `heap` is the C
    library's allocator, `mappings` the process's by kind, `objects` the most frequent types among Python's tracked
    objects, `traced` the lines that hold most, where allocations were traced. `budget` is what the ledger has charged,
    with pool and ladder; None in a process without a ledger of the whole. `file` is where the report was written.
    """

    process: str
    pid: int
    time: str
    reason: str
    growth: Growth | None
    memory: ProcessMemory
    ledger_bytes: int
    measured: dict[str, int]
    charged: dict[str, int]
    other_bytes: int
    uncharged_bytes: int
    heap: NativeHeap | None
    mappings: dict[str, MappingKind]
    objects: dict[str, int]
    traced: TracedLines | None
    budget: MemoryReport | None
    file: str | None = None
