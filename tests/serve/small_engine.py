"""A small deterministic engine behind the real `EngineClient` interface: real events, no tensors.

It answers with the prompt's own text, behind the number of the choice, token by token, then ends the sequence.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from openautoglm.engine.client import (
    EngineDescription,
    EngineStatus,
    GenerationEvent,
    GenerationRequest,
    Pooling,
    SpillStatus,
    TokenLogprob,
)
from openautoglm.engine.record import MemoryReport, RequestRecord, WatchdogReport
from openautoglm.errors import ContextOverflowError, EngineError, InvalidRequestError, OverloadedError
from openautoglm.probe.process_memory import measure_process_memory
from openautoglm.probe.stacks import StackProfile
from openautoglm.text.detokenize import Detokenizer
from openautoglm.text.stop import StopMatcher
from openautoglm.text.tokenizer import Tokenizer

CACHED_TOKENS = 3

NO_VECTOR = (2, 1, 2, 1)  # a prompt whose hidden states are no vector of numbers


@dataclass
class SmallEngine:
    """Set the public fields to make it slow, full, broken or deaf."""

    tokenizer: Tokenizer
    context_tokens: int = 512
    seconds_per_token: float = 0.0
    seconds_before_first: float = 0.0
    fail_after_tokens: int | None = None
    refuse: Exception | None = None
    gone: bool = False
    deaf: bool = False
    requests: list[GenerationRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    heartbeat: int = 0
    hung: bool = False
    generated_tokens: int = 0
    records: dict[str, RequestRecord] = field(default_factory=dict)
    budgets: list[int] = field(default_factory=list)
    traces: list[bool | None] = field(default_factory=list)
    late_after_tokens: int | None = None
    spill: SpillStatus | None = None
    # What it says to a request whose prompt has this text, instead of the text itself.
    answer: Callable[[GenerationRequest, str], str] | None = None

    @property
    def eos(self) -> int:
        token = self.tokenizer.token_id("<|endoftext|>")
        assert token is not None
        return token

    async def describe(self) -> EngineDescription:
        return EngineDescription(
            model="small",
            fingerprint="fp_small",
            context_tokens=self.context_tokens,
            vocab_size=self.tokenizer.vocab_size,
            max_running_requests=8,
            max_queued_requests=8,
            plan_table="",
        )

    async def generate(
        self, request: GenerationRequest, *, on_accepted: Callable[[], None] | None = None
    ) -> AsyncGenerator[GenerationEvent, None]:
        if self.gone:
            raise EngineError("the engine is gone")
        if self.refuse is not None:
            raise self.refuse
        room = self.context_tokens - len(request.prompt_tokens)
        if (request.sampling.max_tokens or 1) > room:
            raise ContextOverflowError(f"max_tokens is above the {room} tokens left", param="max_tokens")
        self.requests.append(request)
        self.running.add(request.request_id)
        if on_accepted is not None:
            on_accepted()
        finished = False
        try:
            await asyncio.sleep(self.seconds_before_first)
            choices = [_Choice(self, request, index) for index in range(request.sampling.n)]
            while any(choice.last is None for choice in choices):
                for choice in choices:
                    if choice.last is None:
                        await asyncio.sleep(self.seconds_per_token)
                        yield choice.step()
            finished = True
        finally:
            self.running.discard(request.request_id)
            if not finished:
                self.aborted.append(request.request_id)

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def status(self) -> EngineStatus:
        if self.gone:
            raise EngineError("the engine is gone")
        if self.deaf:
            await asyncio.sleep(3600)
        if not self.hung:
            self.heartbeat += 1
        return EngineStatus(
            ready=True,
            heartbeat=self.heartbeat,
            num_running=len(self.running),
            num_waiting=1,
            num_blocks=100,
            num_free_blocks=70,
            num_cached_blocks=20,
            prefix_query_tokens=50,
            prefix_hit_tokens=30,
            prompt_tokens=sum(len(request.prompt_tokens) for request in self.requests),
            generated_tokens=self.generated_tokens,
            num_preemptions=2,
            num_steps=7,
            step_seconds=0.5,
            resident_bytes=123456,
            num_spills=1,
            recomputed_tokens=40,
            spill=self.spill,
        )

    async def explain(self, request_id: str) -> RequestRecord | None:
        return self.records.get(request_id)

    async def memory(self, budget_bytes: int | None = None) -> MemoryReport:
        if budget_bytes is not None:
            self.budgets.append(budget_bytes)
        return MemoryReport(
            budget_bytes=budget_bytes or 1 << 30, planned_bytes=1 << 30, tree_bytes=5, ledger={"weights": 3},
            pool_blocks=10, pool_target_blocks=10, planned_blocks=10, max_blocks=20, block_bytes=7, step_tokens=64,
            rung="none", block_pressure=0.5, byte_pressure=0.25, tightest="budget", transitions={"spill": 2},
        )  # fmt: skip

    async def report(self, *, trace: bool | None = None) -> WatchdogReport:
        if self.gone:
            raise EngineError("the engine is gone")
        if trace:
            raise InvalidRequestError("tracing takes memory that the budget has not", param="trace")
        self.traces.append(trace)
        return WatchdogReport(
            process="engine", pid=7, time="2026-01-01T00:00:00Z", reason="request", growth=None,
            memory=measure_process_memory(descendants=False), ledger_bytes=9, measured={"weights": 3}, charged={},
            other_bytes=5, uncharged_bytes=5, heap=None, mappings={}, objects={}, traced=None, budget=None,
        )  # fmt: skip

    async def profile(self, *, seconds: float, rate_hz: int) -> StackProfile:
        return StackProfile(process="engine", pid=7, seconds=seconds, num_looks=rate_hz, stacks={"main;a:b;a:c": 3})

    async def close(self) -> None:
        self.gone = True


class _Choice:
    """One choice in the making."""

    def __init__(self, engine: SmallEngine, request: GenerationRequest, index: int) -> None:
        self._engine, self._request, self._index = engine, request, index
        tokenizer = engine.tokenizer
        prompt = tokenizer.decode(request.prompt_tokens)
        text = f"{index}:{prompt}" if engine.answer is None else engine.answer(request, prompt)
        self._script = [*tokenizer.encode(text), engine.eos]
        room_tokens = engine.context_tokens - len(request.prompt_tokens)
        self._most_tokens = room_tokens if request.sampling.max_tokens is None else request.sampling.max_tokens
        self._detokenizer = Detokenizer(tokenizer, request.sampling.skip_special_tokens)
        self._matcher = StopMatcher(request.sampling.stop)
        self._num_tokens = 0
        self.last: GenerationEvent | None = None

    def step(self) -> GenerationEvent:
        engine, sampling = self._engine, self._request.sampling
        if engine.late_after_tokens is not None and self._num_tokens >= engine.late_after_tokens:
            return self._end(
                GenerationEvent(
                    **self._common(), finish_reason="error", error="no answer in time", error_kind="DeadlineError"
                )
            )
        if engine.fail_after_tokens is not None and self._num_tokens >= engine.fail_after_tokens:
            return self._end(GenerationEvent(**self._common(), finish_reason="error", error="out of memory: pool"))
        # Whose end is ignored goes on until the length is reached.
        token = self._script[min(self._num_tokens, len(self._script) - 1)]
        self._num_tokens += 1
        engine.generated_tokens += 1
        ended = token == engine.eos and not sampling.ignore_eos
        result = self._matcher.push("" if ended else self._detokenizer.push(token))
        text, reason, stop = result.text, None, result.matched
        if result.matched is not None or ended:
            reason = "stop"
        elif self._num_tokens >= self._most_tokens:
            reason = "length"
        if reason is not None and result.matched is None:
            text += self._matcher.push(self._detokenizer.flush()).text + self._matcher.flush()
        logprobs = ()
        if sampling.logprobs is not None:
            top = tuple(((token + k) % 256, -0.5 - k) for k in range(sampling.logprobs))
            logprobs = (TokenLogprob(token=token, logprob=-0.5, top=top),)
        event = GenerationEvent(
            **self._common(),
            text=text,
            tokens=(token,),
            logprobs=logprobs,
            finish_reason=reason,
            stop_reason=stop,
            embedding=b"" if reason is None else self._embedding(),
            record=None if reason is None else engine.records.get(self._request.request_id.rpartition("-")[2]),
        )
        return event if reason is None else self._end(event)

    def _embedding(self) -> bytes:
        """The prompt's first four tokens, made a vector of length 1; MEAN has the other sign."""
        if self._request.pooling is None:
            return b""
        sign = -1 if self._request.pooling is Pooling.MEAN else 1
        if self._request.prompt_tokens == NO_VECTOR:
            return b""
        numbers = [*self._request.prompt_tokens[:4], 0, 0, 0, 0][:4]
        if not any(numbers):
            numbers[0] = 1
        length = math.sqrt(sum(number * number for number in numbers))
        return struct.pack("<4f", *(sign * number / length for number in numbers))

    def _common(self) -> dict[str, object]:
        return {
            "request_id": self._request.request_id,
            "choice": self._index,
            "prompt_tokens": len(self._request.prompt_tokens),
            "cached_tokens": min(CACHED_TOKENS, len(self._request.prompt_tokens)),
            "completion_tokens": self._num_tokens,
        }

    def _end(self, event: GenerationEvent) -> GenerationEvent:
        self.last = event
        return event


def overloaded() -> OverloadedError:
    """What a full engine raises."""
    return OverloadedError("the queue is full", retry_after_seconds=2.5)


__all__ = ["CACHED_TOKENS", "SmallEngine", "overloaded"]
