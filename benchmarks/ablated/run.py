"""One pass of a workload through one variant."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ablated.variants import AblatedEngine, HighWater, Variant, Watch
from ablated.workload import Ask
from openautoglm.engine.assemble import OpenedEngine
from openautoglm.engine.client import GenerationEvent, GenerationRequest
from openautoglm.errors import EngineError
from openautoglm.spec.sampling import SamplingParams
from peers.neighbours import Neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a pass took. `outputs` are the tokens of each request, in the workload's order.

    `first_token_seconds` runs from a request's arrival, one each; `token_gap_seconds` between a request's neighbouring
    tokens. `block_bytes` prices a block of the high water, which `num_pool_blocks` bound. `resident_bytes` is what the
    system had given to the pool at the end, cached prefixes included, none of it before. `others_busy_cores` is 0 on a
    quiet machine.
    """

    outputs: tuple[tuple[int, ...], ...]
    first_token_seconds: tuple[float, ...]
    token_gap_seconds: tuple[float, ...]
    seconds: float
    high_water: HighWater
    block_bytes: int
    num_pool_blocks: int
    resident_bytes: int
    prefix_hit_tokens: int
    num_preemptions: int
    others_busy_cores: float

    @property
    def peak_bytes(self) -> int:
        """Bytes of KV that the workload needed at once."""
        return self.high_water.live_blocks * self.block_bytes

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of the whole pass."""
        return sum(map(len, self.outputs)) / self.seconds


class _Clients:
    """Asks in order, `concurrency` at a time; each client asks again as soon as its answer has ended."""

    def __init__(self, engine: AblatedEngine, asks: Sequence[Ask], concurrency: int) -> None:
        self._engine = engine
        self._asks = asks
        self._concurrency = concurrency
        self._waiting = deque(range(len(asks)))
        self._asked_seconds: dict[int, float] = {}
        self._unfinished: set[int] = set()
        self.token_seconds: list[list[float]] = [[] for _ in asks]
        self.outputs: list[list[int]] = [[] for _ in asks]

    def work(self) -> None:
        """Run until every answer has ended."""
        while self._waiting or self._unfinished:
            while self._waiting and len(self._unfinished) < self._concurrency:
                self._ask(self._waiting.popleft())
            events = self._engine.step()
            if not events and not self._engine.status().num_running:
                raise EngineError("nothing runs and requests wait: the pool is too small for one of them")
            now = time.perf_counter()
            for event in events:
                self._take(event, now)

    def first_token_seconds(self) -> tuple[float, ...]:
        return tuple(times[0] - self._asked_seconds[index] for index, times in enumerate(self.token_seconds))

    def token_gap_seconds(self) -> tuple[float, ...]:
        return tuple(later - earlier for times in self.token_seconds for earlier, later in pairwise(times))

    def _ask(self, index: int) -> None:
        ask = self._asks[index]
        self._unfinished.add(index)
        self._asked_seconds[index] = time.perf_counter()
        sampling = SamplingParams(max_tokens=ask.max_tokens, temperature=0.0, ignore_eos=True)
        self._engine.add(GenerationRequest(request_id=str(index), prompt_tokens=ask.prompt, sampling=sampling))

    def _take(self, event: GenerationEvent, now: float) -> None:
        index = int(event.request_id)
        if event.finish_reason == "error":
            raise EngineError(f"request {index} failed: {event.error}")
        if index not in self._unfinished:
            return
        self.outputs[index] += event.tokens
        self.token_seconds[index] += [now] * len(event.tokens)
        if len(self.outputs[index]) == self._asks[index].answer_tokens:
            self._unfinished.remove(index)
            if event.finish_reason is None:
                self._engine.abort(event.request_id)


def run(
    opened: OpenedEngine, variant: Variant, asks: Sequence[Ask], *, concurrency: int, num_blocks: int | None = None
) -> Run:
    """Run a workload on a loaded model, with a cold prefix cache and a pool whose memory was given back."""
    executor = opened.executor
    answers = {str(index): ask.answer_tokens for index, ask in enumerate(asks)}
    watch = Watch(answer_tokens=answers, context_tokens=opened.plan.context_tokens)
    engine = AblatedEngine(opened, variant, watch, max_running=concurrency, num_blocks=num_blocks)
    clients = _Clients(engine, asks, concurrency)
    executor.trim([])
    untouched_bytes = executor.untouched_bytes
    neighbours = Neighbours()
    begin_seconds = time.perf_counter()
    clients.work()
    seconds = time.perf_counter() - begin_seconds
    busy_cores = neighbours.busy_cores()
    while engine.has_work:
        engine.step()
    engine.integrity_check()
    status = engine.status()
    return Run(
        outputs=tuple(map(tuple, clients.outputs)),
        first_token_seconds=clients.first_token_seconds(),
        token_gap_seconds=clients.token_gap_seconds(),
        seconds=seconds,
        high_water=watch.high_water,
        block_bytes=executor.layout().groups[0].block_bytes,
        num_pool_blocks=status.num_blocks,
        resident_bytes=untouched_bytes - executor.untouched_bytes,
        prefix_hit_tokens=status.prefix_hit_tokens,
        num_preemptions=status.num_preemptions,
        others_busy_cores=busy_cores,
    )


def mean_median_late(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, median and 95th percentile; zeros of nothing (answers of one token have no gaps)."""
    if not seconds:
        return 0.0, 0.0, 0.0
    ordered = sorted(seconds)
    return statistics.fmean(ordered), statistics.median(ordered), ordered[len(ordered) * 95 // 100]
