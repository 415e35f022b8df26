"""Running requests on the engine: several prompts as one stream of events, ended when the client or the server goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import NoReturn, cast

from openautoglm.engine.client import GenerationEvent, GenerationRequest, Pooling
from openautoglm.engine.failures import event_error
from openautoglm.errors import EngineError
from openautoglm.serve.access import Caller
from openautoglm.serve.context import ServeContext
from openautoglm.serve.deadline import Deadline
from openautoglm.serve.limits import Allowance, Use, Wish
from openautoglm.serve.metrics import RequestMeter
from openautoglm.serve.priority import granted_priority
from openautoglm.serve.prompts import Prompt
from openautoglm.serve.recording import RecordedRequest
from openautoglm.serve.replies import ReplyError, failed_reply
from openautoglm.spec.sampling import SamplingParams

# Events wait in the engine's client rather than here when a client reads slowly.
_QUEUED_EVENTS = 4


class Usage:
    """Token counts of one HTTP request, over its prompts and choices."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, int]] = {}
        self._completions: dict[tuple[int, int], int] = {}
        self._num_reasoning_tokens = 0

    def event(self, prompt: int, event: GenerationEvent) -> None:
        """Take note of an event: its counts are cumulative."""
        self._prompts[prompt] = (event.prompt_tokens, event.cached_tokens)
        self._completions[prompt, event.choice] = event.completion_tokens

    def reasoned(self, num_tokens: int) -> None:
        """Take note of tokens that were reasoning."""
        self._num_reasoning_tokens += num_tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts that have begun."""
        return sum(tokens for tokens, _ in self._prompts.values())

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of these prompts that were in the prefix cache."""
        return sum(cached for _, cached in self._prompts.values())

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens that were reasoning; none where that is not set apart."""
        return self._num_reasoning_tokens

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of all choices so far."""
        return sum(self._completions.values())

    def as_dict(self) -> dict[str, object]:
        """Return the `usage` object."""
        prompt_tokens, completion_tokens = self.num_prompt_tokens, self.num_completion_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
            # None where reasoning is not split from the answer.
            "completion_tokens_details": {"reasoning_tokens": self._num_reasoning_tokens},
        }


class Generation:
    """One HTTP request on the engine. `close` aborts what has not finished, and must be called.

    `error` is what `next` has raised, if it has; `meter` has its times. The engine
    got its prompts as `request_ids` at `submitted_seconds` (monotonic).
    """

    def __init__(
        self,
        context: ServeContext,
        requests: list[GenerationRequest],
        meter: RequestMeter,
        usage: Usage,
        on_accepted: Callable[[], None],
        use: Use | None,
    ) -> None:
        self._context = context
        self.meter = meter
        self._usage = usage
        self._num_unfinished = sum(request.sampling.n for request in requests)
        self.error: Exception | None = None
        self.request_ids = tuple(request.request_id for request in requests)
        self.submitted_seconds = time.monotonic()
        self._ended_by_engine = False
        self._queue: asyncio.Queue[tuple[int, GenerationEvent] | Exception] = asyncio.Queue(_QUEUED_EVENTS)
        self._num_untaken = len(requests)
        self._redaction = context.privacy.answer()
        self._on_accepted = on_accepted
        self._use = use
        self._tasks = []
        for index in range(len(requests)):
            noted = None if context.recorder is None else context.recorder.begin(requests[0])
            # The stream alone holds the prompt, until the engine has it.
            stream = cast("_ClosableEvents", context.client.generate(requests.pop(0), on_accepted=self._accepted))
            self._tasks.append(asyncio.create_task(self._pump(index, stream, noted)))
        self._tasks.append(asyncio.create_task(self._wait_for_cut()))

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return self._usage

    async def next(self, timeout_seconds: float | None = None) -> tuple[int, GenerationEvent] | None:
        """Return the next event and the index of its prompt; None after a silence of `timeout_seconds`.

        Raises what the engine raised, `PrivateDataError` for an answer that is blocked, and
        `ReplyError` for a choice that ended in an error or was aborted.
        """
        try:
            return await self._next(timeout_seconds)
        except Exception as error:
            self.error = error
            raise

    async def _next(self, timeout_seconds: float | None) -> tuple[int, GenerationEvent] | None:
        if self._queue.empty():
            try:
                async with asyncio.timeout(timeout_seconds):
                    item = await self._queue.get()
            except TimeoutError:
                return None
        else:
            item = self._queue.get_nowait()
        if isinstance(item, Exception):
            self._ended_by_engine = True
            raise item
        prompt, event = item
        self.meter.event(prompt, event)
        self._usage.event(prompt, event)
        if self._use is not None:
            self._use.generated(len(event.tokens))
        self._num_unfinished -= event.finish_reason is not None
        if event.finish_reason == "error":
            error = event_error(event)
            if not isinstance(error, EngineError):
                raise error
            raise ReplyError(failed_reply(event.error or "the engine gave the request up"))
        if event.finish_reason == "abort":
            raise ReplyError(failed_reply("the request was aborted by the server"))
        return item if self._redaction is None else (prompt, self._redaction.event(prompt, event))

    @property
    def redacted(self) -> Mapping[str, int]:
        """How often private data was replaced in the answer so far, by kind."""
        return {} if self._redaction is None else self._redaction.counts

    @property
    def finished(self) -> bool:
        """Whether every choice has ended."""
        return self._num_unfinished == 0

    async def events(self) -> AsyncIterator[tuple[int, GenerationEvent]]:
        """Yield events until every choice has finished."""
        while not self.finished:
            item = await self.next()
            assert item is not None
            yield item

    async def close(self) -> None:
        """Abort what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._use is not None:
            self._use.close(taken=self._num_untaken == 0)
        self.meter.end(num_aborted=0 if self._ended_by_engine else self._num_unfinished)

    def _accepted(self) -> None:
        self._num_untaken -= 1
        if self._num_untaken == 0:
            self._on_accepted()

    async def _pump(self, index: int, stream: _ClosableEvents, noted: RecordedRequest | None) -> None:
        try:
            # Leaving the generator early is what aborts the request in the engine.
            async with aclosing(stream):
                async for event in stream:
                    if noted is not None and self._context.recorder is not None:
                        self._context.recorder.event(noted, event)
                    await self._queue.put((index, event))
        except Exception as error:  # noqa: BLE001  raised again where the events are read
            await self._queue.put(error)

    async def _wait_for_cut(self) -> NoReturn:
        await self._context.drain.cut.wait()
        message = "the server is stopping, and the time to finish is over: try again later"
        await self._queue.put(ReplyError(failed_reply(message)))
        raise asyncio.CancelledError


class _ClosableEvents(AsyncIterator[GenerationEvent]):
    """An event iterator as async generators make it."""

    async def aclose(self) -> None:
        """End it early."""


def start(
    context: ServeContext,
    prompts: list[Prompt],
    sampling: SamplingParams,
    *,
    completion_id: str,
    priority: int | None,
    deadline: Deadline,
    session_id: str | None = None,
    caller: Caller,
    allowance: Allowance | None,
    meter: RequestMeter,
    on_accepted: Callable[[], None] = lambda: None,
    pooling: Pooling | None = None,
) -> Generation:
    """Submit prompts that share their parameters; `on_accepted` is called when the engine has all of them.

    With a `pooling` the last event of each prompt has its embedding.

    Raises what `Allowance.begin` raises where the caller has used what it may, `ReplyError` (403) for a priority
    that it may not ask for (None leaves that open), and `DeadlineError` for a deadline that has passed.

    The list of prompts is empty afterwards: nobody here needs to hold them any longer.
    """
    granted = granted_priority(priority, caller)
    left_seconds = deadline.left_seconds()
    use = None
    if allowance is not None:
        use = allowance.begin(
            Wish(
                prompt_tokens=[len(prompt.tokens) for prompt in prompts],
                num_choices=sampling.n,
                max_tokens=sampling.max_tokens,
                context_tokens=context.description.context_tokens,
            )
        )
    requests = [
        GenerationRequest(
            request_id=f"{completion_id}-{index}",
            prompt_tokens=prompt.tokens,
            sampling=sampling,
            priority=granted,
            namespace=caller.namespace,
            deadline_seconds=left_seconds,
            session_id=session_id,
            pooling=pooling,
        )
        for index, prompt in enumerate(prompts)
    ]
    prompts.clear()
    return Generation(context, requests, meter, Usage(), on_accepted, use)
