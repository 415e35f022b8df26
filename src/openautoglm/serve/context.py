"""`ServeContext`: what every route needs, passed explicitly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from openautoglm.engine.client import EngineClient, EngineDescription, EngineStatus
from openautoglm.engine.watchdog import Watchdog
from openautoglm.errors import EngineError
from openautoglm.memory.requests import request_space
from openautoglm.planner.price import MIN_HEADROOM_BYTES
from openautoglm.serve.access import Access
from openautoglm.serve.audit import AuditLog
from openautoglm.serve.deadline import NO_DEADLINE, Deadline
from openautoglm.serve.drain import Drain
from openautoglm.serve.intake import Intake
from openautoglm.serve.limits import Limits
from openautoglm.serve.metrics import Metrics
from openautoglm.serve.privacy import Privacy
from openautoglm.serve.recording import TrafficRecorder
from openautoglm.serve.settings import EdgeSettings
from openautoglm.serve.slow_start import SlowStart
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.template import ChatTemplate
from openautoglm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    # What it imports is there only with an extra.
    from openautoglm.serve.tracing import Tracing

T = TypeVar("T")
# Rendering and tokenising are bursts of native code; more threads would only take the engine's cores.
_TEXT_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeContext:
    """One served model. The owner closes `client` and `template`; `close` ends what belongs to the context.

    `watchdog` watches the memory of this process; None where nobody started one.
    `tracing` makes traces, `recorder` keeps what traffic there was; None where nobody asked for them.
    """

    client: EngineClient
    description: EngineDescription
    tokenizer: Tokenizer
    template: ChatTemplate
    default_sampling: SamplingParams
    settings: EdgeSettings
    metrics: Metrics
    limits: Limits
    access: Access = field(default_factory=Access)
    watchdog: Watchdog | None = None
    audit: AuditLog | None = None
    tracing: Tracing | None = None
    recorder: TrafficRecorder | None = None
    privacy: Privacy = field(default_factory=Privacy)
    drain: Drain = field(default_factory=Drain)
    slow_start: SlowStart = field(default_factory=SlowStart)
    intake: Intake = field(default_factory=lambda: Intake(request_space(MIN_HEADROOM_BYTES)))
    created_seconds: int = field(default_factory=lambda: int(time.time()))
    text_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="text")
    )

    # A large document takes a second or so: the text threads stay free for chats, also when its client has gone.
    split_thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="split"))

    async def in_text_thread(self, work: Callable[[], T], deadline: Deadline = NO_DEADLINE) -> T:
        """Run CPU-bound work on text beside the event loop; raise `DeadlineError` if its turn comes too late."""

        def in_turn() -> T:
            deadline.left_seconds()
            return work()

        return await asyncio.get_running_loop().run_in_executor(self.text_threads, in_turn)

    async def status(self) -> EngineStatus:
        """Return the engine's status; raise `EngineError` if it does not answer within `status_seconds`."""
        try:
            async with asyncio.timeout(self.settings.status_seconds):
                return await self.client.status()
        except TimeoutError:
            raise EngineError(f"the engine did not answer within {self.settings.status_seconds:g} s") from None

    def close(self) -> None:
        """End the threads."""
        for threads in (self.text_threads, self.split_thread):
            threads.shutdown(wait=False, cancel_futures=True)
