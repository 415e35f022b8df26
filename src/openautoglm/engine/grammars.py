"""`Grammars`: the constraints of an engine's requests, compiled beside its steps, and followed token by token."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from openautoglm.engine.client import ConstraintStatus
from openautoglm.engine.request import Request, Sequence, SequenceState
from openautoglm.errors import ConstraintError, InvalidRequestError, OpenAutoGLMError, OutOfMemoryError, OverloadedError
from openautoglm.log import get_logger
from openautoglm.memory.ledger import Ledger, Reservation
from openautoglm.spec.constraint import Constraint
from openautoglm.text.grammar import CheckedGrammar, Grammar, GrammarCompiler
from openautoglm.units import KIB, MIB, format_bytes

MAX_WAITING = 64
CACHE_BYTES = 4 * MIB
# The rows of one choice's parser and its mask.
COPY_BYTES = 256 * KIB
_ENTRY_BYTES = 1 * KIB
_WAIT_SECONDS = 0.002
_RETRY_SECONDS = 1.0
_log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Job:
    """A request that waits for its grammar, and then the grammar or why there is none."""

    request: Request
    begin_seconds: float
    grammar: Grammar | None = None
    charge: Reservation | None = None
    error: OpenAutoGLMError | None = None
    dropped: bool = False


class CheckedCache:
    """What was found of constraints, good or bad: the least recently used go first. One thread only."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._found: OrderedDict[bytes, CheckedGrammar | ConstraintError] = OrderedDict()
        self.num_bytes = 0

    def find(self, key: bytes) -> CheckedGrammar | ConstraintError | None:
        """Return what is known of a constraint."""
        if key in self._found:
            self._found.move_to_end(key)
        return self._found.get(key)

    def keep(self, key: bytes, found: CheckedGrammar | ConstraintError) -> None:
        """Remember what was found."""
        self._found[key] = found
        self.num_bytes += _size(found)
        while self.num_bytes > self._max_bytes:
            _, oldest = self._found.popitem(last=False)
            self.num_bytes -= _size(oldest)


@dataclass(slots=True)
class _Counts:
    num_compiled: int = 0
    num_refused: int = 0
    num_cached: int = 0
    compile_seconds: float = 0.0
    num_masks: int = 0
    mask_seconds: float = 0.0


@dataclass(slots=True)
class Grammars:
    """Compiles constraints in a thread of its own and charges them to `ledger` while their requests live.

    A request waits outside the scheduler until `take` returns it. Every method is for the thread that steps the engine;
    nothing here costs a step anything while `num_open` and `num_live` are 0. Without a compiler it refuses everybody.
    """

    compiler: GrammarCompiler | None
    ledger: Ledger
    clock: Callable[[], float] = time.monotonic
    max_waiting: int = MAX_WAITING
    num_open: int = 0
    _jobs: dict[str, _Job] = field(default_factory=dict)
    _held: dict[str, Reservation] = field(default_factory=dict)
    _wanted: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue)
    _done: queue.SimpleQueue[_Job] = field(default_factory=queue.SimpleQueue)
    _cache: CheckedCache = field(default_factory=CheckedCache)
    _tables: Reservation | None = None
    _thread: threading.Thread | None = None
    _counts: _Counts = field(default_factory=_Counts)

    @property
    def num_live(self) -> int:
        """Requests that follow a grammar now."""
        return len(self._held)

    @property
    def charged_bytes(self) -> int:
        """What the ledger was charged in this process: tables, and the grammars of what runs."""
        tables = 0 if self._tables is None else self._tables.num_bytes
        return tables + sum(charge.num_bytes for charge in self._held.values())

    def check_room(self, constraint: Constraint | None) -> None:
        """Raise `OverloadedError` where too many wait already, `InvalidRequestError` where nothing can be compiled."""
        if constraint is None:
            return
        if self.compiler is None:
            raise InvalidRequestError("this engine knows no constraints", param=constraint.param)
        if self.num_open >= self.max_waiting:
            raise OverloadedError(
                f"{self.num_open} requests wait for their constraints to be compiled: try again later",
                retry_after_seconds=_RETRY_SECONDS,
            )

    def want(self, request: Request) -> None:
        """Begin to compile a request's constraint."""
        for sequence in request.sequences:
            sequence.state = SequenceState.COMPILING
        job = _Job(request, self.clock())
        self._jobs[request.request_id] = job
        self.num_open += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="openautoglm-grammars", daemon=True)
            self._thread.start()
        self._wanted.put(job)

    def take(self, *, wait: bool) -> list[tuple[Request, OpenAutoGLMError | None]]:
        """Return requests that can start now, or why they cannot; with `wait`, wait a moment for one."""
        found: list[tuple[Request, OpenAutoGLMError | None]] = []
        while self.num_open:
            try:
                job = self._done.get(block=wait and not found, timeout=_WAIT_SECONDS)
            except queue.Empty:
                break
            self.num_open -= 1
            if job.dropped:
                _release(job.charge)
                continue
            request = job.request
            del self._jobs[request.request_id]
            request.constraint_seconds = self.clock() - job.begin_seconds
            if job.error is None and job.grammar is not None and job.charge is not None:
                self._held[request.request_id] = job.charge
                _start(request, job.grammar)
            found.append((request, job.error))
        return found

    def follow(self, sequence: Sequence, token: int) -> ConstraintError | None:
        """Go on by a token; return what is to end the request, if that took more than it may."""
        grammar = sequence.grammar
        assert grammar is not None
        begin_seconds = self.clock()
        failure: ConstraintError | None = None
        try:
            grammar.accept(token)
        except ConstraintError as error:
            failure = error
        seconds = self.clock() - begin_seconds
        sequence.request.mask_seconds += seconds
        self._counts.mask_seconds += seconds
        self._counts.num_masks += 1
        return failure

    def release(self, request: Request) -> None:
        """A request has ended, whether its grammar was compiled or not."""
        job = self._jobs.pop(request.request_id, None)
        if job is not None:
            job.dropped = True
        for sequence in request.sequences:
            sequence.grammar = None
        _release(self._held.pop(request.request_id, None))

    def status(self) -> ConstraintStatus | None:
        """Return counters and gauges, None without a compiler; another thread may ask."""
        if self.compiler is None:
            return None
        counts = self._counts
        return ConstraintStatus(
            num_compiled=counts.num_compiled,
            num_refused=counts.num_refused,
            num_cached=counts.num_cached,
            compile_seconds=counts.compile_seconds,
            num_masks=counts.num_masks,
            mask_seconds=counts.mask_seconds,
            num_waiting=self.num_open,
            num_live=self.num_live,
            cache_bytes=self._cache.num_bytes,
        )

    def close(self) -> None:
        """End the thread and the child; safe to call twice."""
        if self.compiler is not None:
            self.compiler.close()
        if self._thread is not None:
            self._wanted.put(None)
            self._thread.join()
            self._thread = None
        _release(self._tables)
        self._tables = None

    def _run(self) -> None:
        while (job := self._wanted.get()) is not None:
            if not job.dropped:
                begin_seconds = time.thread_time()
                try:
                    assert self.compiler is not None
                    self._compile(job, self.compiler)
                    self._counts.num_compiled += 1
                except OpenAutoGLMError as error:
                    job.error = error
                    self._counts.num_refused += 1
                except Exception as error:  # noqa: BLE001 - the request hears of it, and nothing else suffers
                    # Not what it says: that may hold the constraint's text.
                    _log.error("a constraint could not be compiled: %s", type(error).__name__)
                    job.error = ConstraintError(f"the constraint could not be compiled: {type(error).__name__}")
                self._counts.compile_seconds += time.thread_time() - begin_seconds
            self._done.put(job)

    def _compile(self, job: _Job, compiler: GrammarCompiler) -> None:
        request = job.request
        constraint = request.sampling.constraint
        assert constraint is not None
        if self._tables is None:
            self._tables = self._reserve("grammar tables", compiler.table_bytes + CACHE_BYTES)
        checked = self._checked(compiler, constraint, request.max_new_tokens)
        num_bytes = checked.num_bytes + len(request.sequences) * COPY_BYTES
        charge = self._reserve("grammars", num_bytes)
        try:
            job.grammar = compiler.compile(checked)
        except BaseException:
            charge.release()
            raise
        job.charge = charge

    def _checked(self, compiler: GrammarCompiler, constraint: Constraint, max_new_tokens: int) -> CheckedGrammar:
        """Return a constraint that has passed in the child, now or before."""
        extent = compiler.extent(max_new_tokens)
        wanted = f"{constraint.kind} {constraint.param} {extent} {constraint.text}"
        key = hashlib.sha256(wanted.encode("utf-8")).digest()
        found = self._cache.find(key)
        if found is None:
            with self._reserve("grammar checks", compiler.check_bytes):
                try:
                    found = compiler.check(constraint, max_new_tokens=max_new_tokens)
                except ConstraintError as error:
                    # Without the frames, which hold the constraint's text.
                    found = error.with_traceback(None)
                    found.__context__ = None
            self._cache.keep(key, found)
        else:
            self._counts.num_cached += 1
        if isinstance(found, ConstraintError):
            raise type(found)(str(found), param=found.param)
        return found

    def _reserve(self, name: str, num_bytes: int) -> Reservation:
        try:
            return self.ledger.reserve(name, num_bytes)
        except OutOfMemoryError as error:
            raise OverloadedError(
                f"there is no memory for {name} now ({format_bytes(num_bytes)} of the budget): try again later, with "
                "fewer constrained requests at once, or give the server more --memory",
                retry_after_seconds=_RETRY_SECONDS,
            ) from error


def _start(request: Request, grammar: Grammar) -> None:
    for sequence in request.sequences:
        sequence.state = SequenceState.HELD
        sequence.grammar = grammar if sequence.choice == 0 else grammar.copy()


def _release(charge: Reservation | None) -> None:
    if charge is not None:
        charge.release()


def _size(found: CheckedGrammar | ConstraintError) -> int:
    return _ENTRY_BYTES + 4 * len(found.source if isinstance(found, CheckedGrammar) else str(found))
