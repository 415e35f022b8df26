"""The engine with paging or prefix reuse taken out: other block bookkeeping around the same steps.

The product has no such switches, so the variants replace the engine's pool and scheduler. Without paging a request
takes one contiguous range of blocks for its prompt and all the tokens that it may ask for when it is admitted, and
waits while there is no such range. Its keys and values are still found through a block table, which then counts
upwards: the native core has no other attention, so what an indirection costs inside a kernel is not in the difference.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, field

from openautoglm.engine.assemble import OpenedEngine
from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.engine import Engine
from openautoglm.engine.prefix import PrefixCache
from openautoglm.engine.request import Sequence, SequenceState
from openautoglm.engine.schedule import Schedule
from openautoglm.engine.scheduler import Scheduler
from openautoglm.engine.sessions import Sessions
from openautoglm.engine.speculation import PromptLookup
from openautoglm.errors import EngineError
from openautoglm.spec.reuse import NO_SESSIONS, Speculation


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is on. Blocks of one contiguous range cannot be shared: prefix reuse needs paging."""

    paging: bool
    prefix: bool

    def __post_init__(self) -> None:
        """Refuse prefix reuse without paging."""
        if self.prefix and not self.paging:
            raise ValueError("prefix reuse shares blocks, which contiguous ranges cannot: turn it off with paging")


@dataclass(slots=True, kw_only=True)
class HighWater:
    """The largest counts of blocks over all steps, each seen after admission and before anything ends.

    `live_blocks` are in use, each counted once however many share it. The others are what the sequences then running
    would take in one piece each: `answer_blocks` for prompt and answer (which nobody knows beforehand),
    `request_blocks` for the prompt and the tokens asked for, `context_blocks` for the whole context.
    """

    live_blocks: int = 0
    answer_blocks: int = 0
    request_blocks: int = 0
    context_blocks: int = 0
    num_steps: int = 0
    sum_running: int = 0

    @property
    def mean_running(self) -> float:
        """Sequences in a step, on average."""
        return self.sum_running / max(1, self.num_steps)

    def see(self, *, live: int, answer: int, request: int, context: int, num_running: int) -> None:
        """Take the counts of a step."""
        self.live_blocks = max(self.live_blocks, live)
        self.answer_blocks = max(self.answer_blocks, answer)
        self.request_blocks = max(self.request_blocks, request)
        self.context_blocks = max(self.context_blocks, context)
        self.num_steps += 1
        self.sum_running += num_running


class NoPrefixCache(PrefixCache):
    """Finds nothing and keeps nothing."""

    def match(self, sequence: Sequence) -> list[int]:
        return []

    def register(self, sequence: Sequence) -> None:
        return


class ContiguousPool(BlockPool):
    """Gives contiguous ranges of blocks: the first free one that is long enough."""

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` neighbouring blocks; None, and nothing taken, when no `count` free ones are neighbours."""
        begin, length = 0, 0
        for block in sorted(self._free):
            begin, length = (begin, length + 1) if length and block == begin + length else (block, 1)
            if length == count:
                break
        if length < count:
            return None
        taken = list(range(begin, begin + count))
        for block in taken:
            self._references[block] = 1
        self._free = [block for block in self._free if not begin <= block < begin + count]
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What a scheduler notes for the measurement: the answers' lengths by request, the context, the high water."""

    answer_tokens: Mapping[str, int]
    context_tokens: int
    high_water: HighWater = field(default_factory=HighWater)


class WatchedScheduler(Scheduler):
    """The product's scheduler, with its blocks counted in each step, and prefix reuse only where wanted."""

    def __init__(self, pool: BlockPool, watch: Watch, *, prefix: bool, max_step_tokens: int, max_running: int) -> None:
        super().__init__(pool, max_step_tokens=max_step_tokens, max_running=max_running)
        self._watch = watch
        if not prefix:
            self._prefix = NoPrefixCache(pool)

    def schedule(self) -> Schedule:
        schedule = super().schedule()
        requests = [sequence.request for sequence in self.running]
        self._watch.high_water.see(
            live=self.pool.num_live,
            answer=sum(
                self._blocks(one.num_prompt_tokens + self._watch.answer_tokens[one.request_id]) for one in requests
            ),
            request=sum(self._blocks(one.num_prompt_tokens + one.max_new_tokens) for one in requests),
            context=len(requests) * self._blocks(self._watch.context_tokens),
            num_running=len(requests),
        )
        return schedule

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.pool.block_tokens)


class ReservingScheduler(WatchedScheduler):
    """Admits a sequence only with all the blocks that its request may ever need, so that nothing grows afterwards."""

    def _admit(self, sequence: Sequence) -> bool:
        request = sequence.request
        count = self._blocks(request.num_prompt_tokens + request.max_new_tokens)
        if count > self.pool.num_blocks:
            raise EngineError(f"a request needs {count} blocks in one piece and the pool has {self.pool.num_blocks}")
        blocks = self.pool.allocate(count)
        if blocks is None:
            return False
        sequence.attach(blocks)
        self.waiting.pop(0)
        insort(self.running, sequence, key=lambda one: one.order)
        sequence.state = SequenceState.RUNNING
        sequence.num_admissions += 1
        return True


class AblatedEngine(Engine):
    """An engine over a loaded model with a cold cache and `num_blocks` of its pool (None: all).

    It borrows the executor: let go of it instead of closing it.
    """

    def __init__(
        self, opened: OpenedEngine, variant: Variant, watch: Watch, *, max_running: int, num_blocks: int | None = None
    ) -> None:
        super().__init__(
            opened.executor,
            opened.tokenizer,
            eos_token_ids=(),
            context_tokens=watch.context_tokens,
            max_running=max_running,
        )
        layout = opened.executor.layout()
        count = layout.num_blocks if num_blocks is None else num_blocks
        if not 1 <= count <= layout.num_blocks:
            raise ValueError(f"the loaded pool has {layout.num_blocks} blocks, {count} are asked for")
        pool = BlockPool if variant.paging else ContiguousPool
        scheduler = WatchedScheduler if variant.paging else ReservingScheduler
        self._pool = pool(count, self.limits.block_tokens)
        self._scheduler = scheduler(
            self._pool,
            watch,
            prefix=variant.prefix,
            max_step_tokens=layout.max_step_tokens,
            max_running=self.max_running,
        )
        self.lookup = PromptLookup(self._scheduler, Speculation.OFF)
        self.sessions = Sessions(self._scheduler, None, layout, NO_SESSIONS)
