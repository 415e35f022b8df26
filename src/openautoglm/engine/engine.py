"""`Engine`: the serving loop. `step` is the whole of it: schedule, run, commit."""

from __future__ import annotations

import time
from collections.abc import Callable

from openautoglm.engine.admission import AdmissionLimits
from openautoglm.engine.batch import build_batch
from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.charges import LEAST_SPACE_BYTES
from openautoglm.engine.client import EngineStatus, GenerationEvent, GenerationRequest
from openautoglm.engine.costs import StepCosts
from openautoglm.engine.events import end_event, token_event
from openautoglm.engine.explain import RequestHistory, make_record
from openautoglm.engine.failures import without_token
from openautoglm.engine.gate import DeadlineGate
from openautoglm.engine.grammars import Grammars
from openautoglm.engine.intake import Intake
from openautoglm.engine.logprobs import Logprobs
from openautoglm.engine.pooling import ask_hidden, take_hidden
from openautoglm.engine.queues import scheduler_figures
from openautoglm.engine.record import RequestRecord
from openautoglm.engine.request import Request, Sequence, SequenceState
from openautoglm.engine.resize import PoolResize, resize_pool
from openautoglm.engine.schedule import Schedule
from openautoglm.engine.scheduler import Scheduler
from openautoglm.engine.sessions import Sessions
from openautoglm.engine.speculation import PromptLookup
from openautoglm.engine.spill import Spill
from openautoglm.engine.step_budget import StepBudget
from openautoglm.engine.timeline import Phase
from openautoglm.errors import (
    DeadlineError,
    InvalidRequestError,
    OpenAutoGLMError,
    OutOfMemoryError,
    StepRefusedError,
    WeightReadError,
)
from openautoglm.executor.protocol import Executor, StepResult
from openautoglm.log import get_logger
from openautoglm.memory.ledger import Ledger, Reservation
from openautoglm.memory.spill_store import SpillStore
from openautoglm.spec.reuse import NO_SESSIONS, SessionLimits, Speculation
from openautoglm.spec.scheduling import PLAIN_SCHEDULING, SchedulingOptions
from openautoglm.spec.step_cost import StepCost
from openautoglm.text.detokenize import TokenSource

_log = get_logger(__name__)


class Engine:
    """Runs requests on an executor. Not thread-safe: one thread calls it, `EngineRunner` is that thread.

    `max_running` bounds the sequences computed at once (and is itself bounded by the executor's rows and tokens of
    a step), `max_queued` the requests beyond that. Every request that `add` accepts ends with one last event for
    each choice; its tokens depend on the request and its seed alone. While `refuses` is set, nothing new is taken.
    With a `spill_store`, which it closes, choices that are set back keep their blocks there; with `grammars`, which it
    closes too, requests may have constraints. `step_cost` is what steps are taken to cost at first.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: TokenSource,
        *,
        eos_token_ids: tuple[int, ...],
        context_tokens: int,
        max_running: int | None = None,
        max_queued: int = 256,
        resident_bytes: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
        request_space_bytes: int = LEAST_SPACE_BYTES,
        spill_store: SpillStore | None = None,
        index_charge: Reservation | None = None,
        grammars: Grammars | None = None,
        speculation: Speculation = Speculation.OFF,
        sessions: SessionLimits = NO_SESSIONS,
        scheduling: SchedulingOptions = PLAIN_SCHEDULING,
        step_cost: StepCost | None = None,
    ) -> None:
        layout = executor.layout()
        most_tokens = layout.max_step_tokens
        self._executor, self._num_groups = executor, len(layout.groups)
        self.limits = AdmissionLimits.of(
            executor,
            context_tokens,
            eos_token_ids=eos_token_ids,
            keeps_sessions=sessions.seconds > 0,
            aging_seconds=scheduling.aging_seconds,
        )
        self._pool = BlockPool(layout.num_blocks, self.limits.block_tokens, charge=index_charge)
        rows = min(layout.max_step_rows, most_tokens)
        self.max_running = rows if max_running is None else min(max_running, rows)
        self.max_queued, self._most_step_tokens = max_queued, most_tokens
        self._clock, self._resident_bytes = clock, resident_bytes
        self.spill = None if spill_store is None else Spill(spill_store, executor)
        self._scheduler = Scheduler(
            self._pool, max_step_tokens=most_tokens, max_running=self.max_running, clock=clock, spill=self.spill
        )
        self.lookup = PromptLookup(self._scheduler, speculation)
        self.sessions = Sessions(self._scheduler, self.spill, layout, sessions, clock=clock)
        self._gate = DeadlineGate(self._scheduler, self._scheduler.lengths, StepCosts(step_cost))
        self._intake = Intake(
            self.limits,
            tokenizer,
            self._gate,
            max_running=self.max_running,
            max_queued=max_queued,
            space_bytes=request_space_bytes,
            clock=clock,
        )
        self.grammars = grammars or Grammars(None, Ledger(0, domain="grammars"), clock=clock)
        self._scheduler.budget = StepBudget(scheduling, self._gate.costs) if scheduling.limits_steps else None
        self._requests: dict[str, Request] = {}
        self._events: list[GenerationEvent] = []
        self._generated_tokens = self._num_missed_deadlines = 0
        self.history = RequestHistory()
        # How many steps were computed, and their seconds: replaced as one, so that another thread may ask.
        self.steps = (0, 0.0)

    @property
    def pool(self) -> BlockPool:
        """The blocks, to be looked at."""
        return self._pool

    @property
    def scheduler(self) -> Scheduler:
        """The lists, for the ladder."""
        return self._scheduler

    @property
    def charged_bytes(self) -> int:
        """What the requests that run or wait are charged beside their blocks."""
        return self._intake.charged_bytes

    @property
    def max_blocks(self) -> int:
        """The most blocks that the pool can ever have."""
        return self._executor.layout().max_blocks

    @property
    def refuses(self) -> bool:
        """Whether nothing new is taken."""
        return self._intake.refuses

    @refuses.setter
    def refuses(self, value: bool) -> None:
        self._intake.refuses = value

    @property
    def num_refused(self) -> int:
        """How many requests found no room."""
        return self._intake.num_refused

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to report."""
        return bool(self._events) or self._scheduler.has_work or self.grammars.num_open > 0

    def add(self, generation: GenerationRequest) -> None:
        """Queue a request.

        Raises `InvalidRequestError`, `ContextOverflowError`, `OverloadedError` when the queue is full or the pool has
        shrunk below what the request needs alone, and `DeadlineError` when not even alone it could end in time.
        """
        if generation.request_id in self._requests:
            raise InvalidRequestError(f"request id {generation.request_id!r} is in use: choose another")
        self.grammars.check_room(constraint := generation.sampling.constraint)
        request = self._intake.take(generation, num_requests=len(self._requests), num_blocks=self._pool.num_usable)
        self.sessions.begin(request)
        self._requests[request.request_id] = request
        self._gate.add(request)
        (self._scheduler.add if constraint is None else self.grammars.want)(request)

    def abort(self, request_id: str) -> None:
        """End a request: its blocks are free at once, the next step reports "abort" for each unfinished choice."""
        if (request := self._requests.get(request_id)) is not None:
            self._end_request(request, "abort", None)

    def step(self) -> list[GenerationEvent]:
        """Compute one step and return what became known, in the order of the batch.

        Raises `EngineError` when the executor failed; the engine is of no use afterwards.
        """
        begin_seconds = self._clock()
        if self._gate.active:
            self._keep_deadlines(begin_seconds)
        if self.grammars.num_open:
            self._start_compiled()
        schedule = self._scheduler.schedule()
        if schedule.rows:
            schedule.stamp(begin_seconds)
            schedule = self.lookup.extend(schedule)
            computed = self._compute(schedule)
            step_seconds = self._clock() - begin_seconds
            self.steps = self.steps[0] + 1, self.steps[1] + step_seconds
            if computed:
                self.lookup.observe(schedule, step_seconds)
                self._gate.observe(schedule, step_seconds)
        events, self._events = self._events, []
        return events

    def _keep_deadlines(self, now_seconds: float) -> None:
        """End what is out of time, and let only those start who can still end in time."""
        for request in self._gate.begin_step(now_seconds):
            self._num_missed_deadlines += 1
            told = f"no answer within deadline_seconds {request.deadline_seconds:g}: allow more, or try again later"
            self._fail(request, DeadlineError(told))
        self._scheduler.gate = self._gate.judge if self._gate.active else None

    def _start_compiled(self) -> None:
        """Queue what has its grammar now, and end what has none."""
        for request, error in self.grammars.take(wait=not self._events and not self._scheduler.has_work):
            if error is None:
                self._scheduler.add(request)
            else:
                self._fail(request, error)

    def _compute(self, schedule: Schedule) -> bool:
        """Compute a schedule; return whether that went as planned, so that its time tells what such a step takes."""
        if not schedule.rows or (result := self._run(schedule)) is None:
            return False
        if result.hidden is not None:
            take_hidden(schedule, result.hidden)
        self._scheduler.commit(schedule)
        self._commit_tokens(schedule, result)
        return True

    def _run(self, schedule: Schedule) -> StepResult | None:
        """Run a step; None when memory ran out, and the next one will be smaller, or when it was refused or lost."""
        try:
            batch = build_batch(schedule, num_groups=self._num_groups, constrained=self.grammars.num_live > 0)
            return self._executor.submit(ask_hidden(batch, schedule) if self._intake.num_pooled else batch).result()
        except (OutOfMemoryError, MemoryError) as error:
            _log.warning("a step of %d tokens ran out of memory, trying a smaller one: %s", schedule.num_tokens, error)
            if not self._scheduler.shrink(schedule):
                self._end_request(schedule.rows[0].sequence.request, "error", f"out of memory: {error}")
            self._pool.drop_cached()
            self._executor.trim(self._pool.live_blocks())
        except StepRefusedError as error:
            self._isolate(schedule, error)
        except WeightReadError as error:
            for row in schedule.rows:
                self._fail(row.sequence.request, error)
        return None

    def _isolate(self, schedule: Schedule, error: StepRefusedError) -> None:
        """Compute a refused step request by request, so that only the one at fault ends."""
        if len(parts := schedule.by_request()) > 1:
            for part in parts:
                self._compute(part.still_running())
            return
        request = schedule.rows[0].sequence.request
        _log.error("request %s ends, its step was refused: %s", request.request_id, error)
        self._end_request(request, "error", "the engine could not compute this request")

    def _commit_tokens(self, schedule: Schedule, result: StepResult) -> None:
        for sequence, token, logprobs in self.lookup.drawn(schedule, result):
            if token is None:
                self._fail(sequence.request, without_token(sequence.request))
            else:
                self._accept(sequence, token, logprobs)

    def _accept(self, sequence: Sequence, token: int, logprobs: Logprobs) -> None:
        """Append a generated token, decide whether the choice ends with it, and report it."""
        request, sampling = sequence.request, sequence.request.sampling
        sequence.append(token)
        if sequence.timeline.phase is not Phase.DECODE:
            now = self._clock()
            sequence.timeline.enter(Phase.DECODE, now)
            if request.first_token_seconds is None:
                request.first_token_seconds = now
        self._generated_tokens += 1
        ends = token in request.eos_tokens or token in request.stop_tokens
        text = ""
        if sampling.include_stop or not ends:
            text = sequence.text.push(token, match_stops=sequence.num_generated > sampling.min_tokens)
        matched = sequence.text.matched is not None
        finish_reason = "stop" if matched or ends else None
        if finish_reason is None and sequence.grammar is not None:
            if (failure := self.grammars.follow(sequence, token)) is not None:
                self._fail(request, failure)
                return
            finish_reason = "stop" if sequence.grammar.stopped else None
        if finish_reason is None and sequence.num_generated >= request.max_new_tokens:
            finish_reason = "length"
        stop_reason: str | int | None = token if token in request.stop_tokens and not matched else None
        if finish_reason is not None:
            text += sequence.text.finish()
            if sequence.text.matched is not None:
                finish_reason, stop_reason = "stop", sequence.text.matched
        record = None if finish_reason is None else self._finish(sequence, finish_reason)
        self._events.append(token_event(sequence, text, token, logprobs, finish_reason, stop_reason, record))

    def _fail(self, request: Request, error: OpenAutoGLMError) -> None:
        self._end_request(request, "error", str(error), type(error).__name__)

    def _end_request(self, request: Request, finish_reason: str, error: str | None, kind: str | None = None) -> None:
        """End every unfinished choice of a request, with the text that was held back."""
        request.error = error
        for sequence in request.sequences:
            if sequence.state is SequenceState.FINISHED:
                continue
            record = self._finish(sequence, finish_reason)
            self._events.append(end_event(sequence, finish_reason, record, error_kind=kind))

    def _finish(self, sequence: Sequence, finish_reason: str) -> RequestRecord | None:
        """End a choice; return the record of its request if that has ended with it and the ladder had touched it."""
        if sequence.state is SequenceState.COMPILING:
            sequence.state = SequenceState.FINISHED
        self.sessions.end(sequence, finish_reason)
        request, now = sequence.request, self._clock()
        sequence.finish_reason = finish_reason
        sequence.timeline.enter(Phase.ENDED, now)
        if finish_reason in ("stop", "length") and request.pooled is None:
            self._scheduler.lengths.add(sequence.num_generated)
        if not request.finished:
            return None
        request.end_seconds = now
        del self._requests[request.request_id]
        self._intake.release(request.request_id)
        if request.sampling.constraint is not None:
            self.grammars.release(request)
        record = make_record(request, now)
        self.history.add(record)
        return record if request.rungs else None

    def explain(self, request_id: str) -> RequestRecord | None:
        """Return where a request's time went, running or ended; None for one that is unknown or forgotten."""
        request = self._requests.get(request_id)
        return self.history.find(request_id) if request is None else make_record(request, self._clock())

    @property
    def least_blocks(self) -> int:
        """The fewest blocks that the pool can have now: what one unfinished request may come to need for a choice."""
        return self._pool.num_pinned + max((request.max_blocks for request in self._requests.values()), default=1)

    def resize_pool(self, target_blocks: int) -> PoolResize:
        """Make the KV pool `target_blocks` large, or as near as possible, between two steps; no output changes by it.

        Blocks in use are moved (a copy each), idle prefixes kept as far as they fit. Where more blocks are in use than
        may stay, nothing changes and the result says how many must be freed first. Growth is charged to the ledger, up
        to the blocks that addresses were reserved for; raises `OutOfMemoryError` if refused.
        """
        return resize_pool(
            self._pool, self._scheduler, self._executor, target_blocks=target_blocks, least_blocks=self.least_blocks
        )

    def limit_step_tokens(self, num_tokens: int) -> int:
        """Compute at most `num_tokens` tokens in a step from now on; return the bytes of workspace given back by that.

        No less than `max_running`, a place for every choice that decodes, and no more than at load. A larger limit
        takes memory again; raises `OutOfMemoryError` if the ledger refuses it.
        """
        num_tokens = min(max(num_tokens, self.max_running), self._most_step_tokens)
        given_back_bytes = self._executor.limit_step_tokens(num_tokens)
        self._scheduler.limit_step_tokens(num_tokens)
        return given_back_bytes

    def status(self, *, heartbeat: int = 0) -> EngineStatus:
        """Return counters and gauges; `heartbeat` is the caller's, who owns the loop.

        Only reads numbers, so another thread may call it in the middle of a step.
        """
        scheduler, (num_steps, step_seconds) = self._scheduler, self.steps
        return EngineStatus(
            ready=True,
            heartbeat=heartbeat,
            num_waiting=scheduler.num_waiting + self.grammars.num_open,
            prompt_tokens=self._intake.prompt_tokens,
            generated_tokens=self._generated_tokens,
            num_steps=num_steps,
            step_seconds=step_seconds,
            resident_bytes=self._resident_bytes(),
            num_refused=self.num_refused,
            num_missed_deadlines=self._num_missed_deadlines,
            spill=None if self.spill is None else self.spill.status(),
            constraints=self.grammars.status(),
            speculation=self.lookup.status(),
            sessions=self.sessions.status(),
            **scheduler_figures(scheduler, self._clock()),
        )

    def integrity_check(self) -> None:
        """Check that blocks, tables and lists agree; raise `EngineError` if they do not. For tests and idle time."""
        self._scheduler.integrity_check()

    def close(self) -> None:
        """Drop all requests without a further event, and close the executor; safe to call twice."""
        for request in list(self._requests.values()):
            self._end_request(request, "abort", None)
        self._events.clear()
        self.grammars.close()
        if self.spill is not None:
            self.spill.store.close()
        self._executor.close()
