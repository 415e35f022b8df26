"""`LLM`: the engine as a library, in the caller's process.

    llm = LLM("org/name", memory="4GiB")
    llm.generate(["Once upon a time"], SamplingParams(max_tokens=32))[0].text
    llm.chat([{"role": "user", "content": "Hello"}]).text
    for text in llm.stream("Once upon a time"): ...

Calls from several threads share the engine's batches: whoever holds the lock steps for everybody.
"""

from __future__ import annotations

import uuid
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, TypeGuard, Unpack, cast

from openautoglm.engine.client import EngineStatus, GenerationEvent, GenerationRequest, TokenLogprob
from openautoglm.engine.failures import event_error
from openautoglm.engine.opening import open_model
from openautoglm.engine.options import EngineOptions
from openautoglm.engine.record import MemoryReport
from openautoglm.engine.turns import EngineTurns
from openautoglm.engine.watch import MemoryWatch
from openautoglm.errors import EngineError, InvalidRequestError, OverloadedError
from openautoglm.progress import ProgressCallback
from openautoglm.spec.goal import Goal
from openautoglm.spec.goal_settings import GoalSettings, make_goal
from openautoglm.spec.notices import Notice
from openautoglm.spec.plan import Plan
from openautoglm.spec.reuse import Speculation, parse_speculation
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.template import ChatTemplate

if TYPE_CHECKING:
    from openautoglm.engine.assemble import OpenedEngine
    from openautoglm.executor.protocol import Executor
    from openautoglm.text.tokenizer import Tokenizer

Message = Mapping[str, object]
Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One continuation; `finish_reason` is "stop", "length", "abort" or "error"."""

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    stop_reason: str | int | None
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The answer to one prompt: `n` choices. `rungs` names what the memory ladder did to it, mildest first."""

    prompt_tokens: int
    cached_tokens: int
    choices: tuple[Choice, ...]
    rungs: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text


def plan(model: str, **settings: Unpack[GoalSettings]) -> Plan:
    """Plan a model without loading it; raise `DoesNotFitError` with the nearest plans that do fit."""
    from openautoglm.engine.assemble import prepare

    return prepare(EngineOptions(model=model, goal=make_goal(settings))).plan


class LLM:
    """A loaded model. Close it, or use it in a `with` block, to give its memory back.

    `cache` is the directory of packed weights of earlier loads, "off", or None for the user's default. `strict` raises
    `DowngradeError` where the load would do anything differently than asked; else `notices` tells. A thread looks at
    memory, and the ladder acts between steps; see `memory`. `speculation` drafts tokens from what a text has said
    before: "auto" while it pays, "prompt-lookup" wherever it can, "off" never; answers are the same.
    """

    def __init__(
        self,
        model: str,
        *,
        cache: str | None = None,
        strict: bool = False,
        speculation: str = "auto",
        **settings: Unpack[GoalSettings],
    ) -> None:
        mode = parse_speculation(speculation)
        options = EngineOptions(model=model, goal=make_goal(settings), cache=cache, strict=strict, speculation=mode)
        self._start(*open_model(options))

    @classmethod
    def open(
        cls,
        model: str,
        goal: Goal,
        *,
        on_plan: Callable[[Plan], None] | None = None,
        progress: ProgressCallback | None = None,
        chat: bool = False,
        cache: str | None = None,
        strict: bool = False,
        speculation: Speculation = Speculation.AUTO,
    ) -> LLM:
        """Open a model for a goal; `on_plan` sees the plan before anything is loaded.

        With `chat`, a model without a chat template is refused before the load, which may take minutes.
        """
        options = EngineOptions(model=model, goal=goal, cache=cache, strict=strict, speculation=speculation)
        llm = cls.__new__(cls)
        llm._start(*open_model(options, on_plan=on_plan, progress=progress, chat=chat))
        return llm

    def _start(self, opened: OpenedEngine, template: ChatTemplate | None) -> None:
        self._opened = opened
        self._turns = EngineTurns()
        self._lock = self._turns.lock
        self._watch = MemoryWatch(opened.memory.ladder, opened.memory.probe, self._turns.call)
        # The thread knows the engine, not this object: one that is dropped without being closed ends it.
        self._stop_watching = weakref.finalize(self, self._watch.stop)
        self._watch.start()
        self._events: dict[str, deque[GenerationEvent]] = {}
        self._template = template
        self._closed = False

    @property
    def plan(self) -> Plan:
        """The plan that was loaded."""
        return self._opened.plan

    @property
    def receipt(self) -> str:
        """Planned, measured and unaccounted bytes as a table."""
        return self._opened.receipt

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What the load did differently than asked: fallbacks and downgrades."""
        return self._opened.description.notices

    @property
    def receipt_json(self) -> str:
        """The receipt for programs: each component and its parts, planned and measured, as JSON."""
        return self._opened.description.receipt_json

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self._opened.tokenizer

    @property
    def executor(self) -> Executor:
        """The executor, for measuring while no request runs."""
        return self._opened.executor

    @property
    def default_sampling(self) -> SamplingParams:
        """The checkpoint's own sampling defaults."""
        return self._opened.default_sampling

    def generate(self, prompts: Prompt | Sequence[Prompt], sampling: SamplingParams | None = None) -> list[Completion]:
        """Continue every prompt (text or token ids); all run in one batch. Results stand in the prompts' order."""
        batch = [prompts] if _is_prompt(prompts) else _prompts(prompts)
        requests = [self._request(self._tokens(prompt), sampling) for prompt in batch]
        submitted: list[str] = []
        completions: list[Completion] = []
        try:
            while len(completions) < len(requests):
                self._submit_some(requests, submitted, len(completions))
                completions.append(_collect(self._follow(requests[len(completions)])))
        finally:
            for request_id in submitted:
                self._forget(request_id)
        return completions

    def chat(
        self, messages: Sequence[Message], sampling: SamplingParams | None = None, **template_variables: object
    ) -> Completion:
        """Answer a conversation, rendered with the checkpoint's own chat template."""
        return self.generate([self.render_chat(messages, **template_variables)], sampling)[0]

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        sampling: SamplingParams | None = None,
        **template_variables: object,
    ) -> Generator[str, None, None]:
        """Yield the answer to a prompt or a conversation as it comes. Closing the iterator ends the request."""
        if _is_prompt(prompt):
            tokens = self._tokens(prompt)
        else:
            tokens = self.render_chat(cast("Sequence[Message]", prompt), **template_variables)
        request = self._request(tokens, sampling)
        if request.sampling.n != 1:
            raise InvalidRequestError("stream() yields one choice: leave n at 1, or use generate()", param="n")
        self._submit(request)
        try:
            for event in self._follow(request):
                if event.text:
                    yield event.text
                if event.finish_reason == "error":
                    raise event_error(event)
        finally:
            self._forget(request.request_id)

    def engine_status(self) -> EngineStatus:
        """Return the engine's counters and gauges."""
        with self._lock:
            return self._watch.complete(self._opened.engine.status())

    def memory(self, budget_bytes: int | None = None) -> MemoryReport:
        """Return budget, usage and ladder; with `budget_bytes`, announce a new budget first, met between two steps.

        Raises `InvalidRequestError` for a budget that leaves the KV cache no block. What the process had taken before
        the load is not counted.
        """
        with self._lock:
            if self._closed:
                raise EngineError("this LLM is closed: open a new one")
            return self._watch.report(budget_bytes)

    def render_chat(self, messages: Sequence[Message], **template_variables: object) -> tuple[int, ...]:
        """Return the token ids of a conversation with the assistant's turn opened."""
        if self._template is None:
            self._template = ChatTemplate.from_directory(self._opened.directory)
        text = self._template.render(_conversation(messages), variables=template_variables or None)
        return tuple(self._opened.tokenizer.encode(text))

    def close(self) -> None:
        """Free the model's memory and threads; safe to call twice."""
        self._stop_watching()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._opened.engine.close()
            if self._template is not None:
                self._template.close()

    def __enter__(self) -> LLM:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _tokens(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self._opened.tokenizer.encode(prompt, add_special_tokens=True))
        return tuple(prompt)

    def _request(self, tokens: tuple[int, ...], sampling: SamplingParams | None) -> GenerationRequest:
        if sampling is not None and not isinstance(sampling, SamplingParams):
            raise InvalidRequestError(
                f"sampling must be SamplingParams, got {type(sampling).__name__}", param="sampling"
            )
        return GenerationRequest(
            request_id=uuid.uuid4().hex, prompt_tokens=tokens, sampling=sampling or self.default_sampling
        )

    def _submit(self, request: GenerationRequest) -> None:
        with self._lock:
            if self._closed:
                raise EngineError("this LLM is closed: open a new one")
            self._events[request.request_id] = deque()
            try:
                self._opened.engine.add(request)
            except BaseException:
                del self._events[request.request_id]
                raise

    def _submit_some(self, requests: Sequence[GenerationRequest], submitted: list[str], num_done: int) -> None:
        """Submit what the engine's queue has room for; raise `OverloadedError` only if nothing of ours runs."""
        for request in requests[len(submitted) :]:
            try:
                self._submit(request)
            except OverloadedError:
                if len(submitted) == num_done:
                    raise
                return
            submitted.append(request.request_id)

    def _follow(self, request: GenerationRequest) -> Iterator[GenerationEvent]:
        """Yield a request's events until all choices have finished, stepping the engine when none is waiting."""
        unfinished = request.sampling.n
        while unfinished:
            # Let go of after each step: a request that only waits for its grammar must keep nobody else out.
            with self._lock:
                waiting = self._events[request.request_id]
                if not waiting:
                    if self._closed:
                        raise EngineError("this LLM was closed while the request ran")
                    self._turns.run_calls()
                    for event in self._opened.engine.step():
                        if event.request_id in self._events:
                            self._events[event.request_id].append(event)
                if not waiting:
                    continue
                event = waiting.popleft()
            unfinished -= event.finish_reason is not None
            yield event

    def _forget(self, request_id: str) -> None:
        with self._lock:
            self._events.pop(request_id, None)
            if not self._closed:
                self._opened.engine.abort(request_id)


@dataclass(slots=True)
class _PartialChoice:
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: GenerationEvent | None = None


def _is_prompt(prompt: object) -> TypeGuard[Prompt]:
    if isinstance(prompt, str):
        return True
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], int)


def _prompts(prompts: object) -> Sequence[Prompt]:
    """Return a batch as it was given; raise `InvalidRequestError` for what is none."""
    if isinstance(prompts, Sequence) and all(
        isinstance(prompt, str) or (isinstance(prompt, Sequence) and not isinstance(prompt, bytes))
        for prompt in prompts
    ):
        return prompts
    raise InvalidRequestError(
        "prompts must be text, a list of token ids, or a list of these; "
        f"got {type(prompts).__name__}: chat() takes messages",
        param="prompt",
    )


def _conversation(messages: object) -> Sequence[Message]:
    """Return messages as they were given; raise `InvalidRequestError` for what is no conversation."""
    if isinstance(messages, Sequence) and all(isinstance(message, Mapping) for message in messages):
        return messages
    raise InvalidRequestError(
        'messages must be a list such as [{"role": "user", "content": "Hello"}]; generate() continues text',
        param="messages",
    )


def _collect(events: Iterator[GenerationEvent]) -> Completion:
    partial: defaultdict[int, _PartialChoice] = defaultdict(_PartialChoice)
    rungs: tuple[str, ...] = ()
    for event in events:
        choice = partial[event.choice]
        choice.text.append(event.text)
        choice.tokens.extend(event.tokens)
        choice.logprobs.extend(event.logprobs)
        choice.last = event
        rungs = rungs if event.record is None else event.record.rungs
        if event.finish_reason == "error":
            raise event_error(event)
    choices = tuple(_finished(index, partial[index]) for index in sorted(partial))
    last = partial[0].last
    assert last is not None
    return Completion(prompt_tokens=last.prompt_tokens, cached_tokens=last.cached_tokens, choices=choices, rungs=rungs)


def _finished(index: int, choice: _PartialChoice) -> Choice:
    assert choice.last is not None
    assert choice.last.finish_reason is not None
    return Choice(
        index=index,
        text="".join(choice.text),
        tokens=tuple(choice.tokens),
        finish_reason=choice.last.finish_reason,
        stop_reason=choice.last.stop_reason,
        logprobs=tuple(choice.logprobs),
    )


def with_overrides(sampling: SamplingParams, **overrides: object) -> SamplingParams:
    """Return `sampling` with every override that is not None set."""
    return replace(sampling, **{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
