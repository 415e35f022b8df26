"""`TrafficRecorder`: a trace of the requests that a server had, for simulations. No prompt and no text is kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from openautoglm.engine.client import GenerationEvent, GenerationRequest
from openautoglm.errors import ConfigError
from openautoglm.log import get_logger
from openautoglm.spec.trace import TraceRequest, format_trace

_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """What is kept of a request while it runs; `begun_seconds` is from the start of the recording."""

    begun_seconds: float
    num_prompt_tokens: int
    max_tokens: int | None
    deadline_seconds: float | None
    priority: int


class TrafficRecorder:
    """Writes a line for each choice that was answered whole, when it ends. One event loop's.

    A disk that fails ends the recording, which the log tells, and nothing else.
    """

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Make the file, for this user alone; raise `ConfigError` where it is there already or cannot be made."""
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigError(f"--record-traffic {file}: {error.strerror or error}: name a file to be made") from error
        self._sink: TextIO | None = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
        self._clock = clock
        self._begin = clock()

    def begin(self, request: GenerationRequest) -> RecordedRequest:
        """Take note of a request that arrives now."""
        return RecordedRequest(
            begun_seconds=self._clock() - self._begin,
            num_prompt_tokens=len(request.prompt_tokens),
            max_tokens=request.sampling.max_tokens,
            deadline_seconds=request.deadline_seconds,
            priority=request.priority,
        )

    def event(self, request: RecordedRequest, event: GenerationEvent) -> None:
        """Write the choice that ends with an event, if it does and was answered."""
        if self._sink is None or event.finish_reason not in ("stop", "length"):
            return
        num_tokens = max(1, event.completion_tokens)
        line = TraceRequest(
            arrival_seconds=round(request.begun_seconds, 6),
            prompt_tokens=request.num_prompt_tokens,
            output_tokens=num_tokens,
            max_tokens=None if request.max_tokens is None else max(request.max_tokens, num_tokens),
            deadline_seconds=request.deadline_seconds,
            priority=request.priority,
        )
        try:
            self._sink.write(format_trace((line,)))
        except OSError as error:
            _logger.error("traffic is recorded no longer: %s", error.strerror or error)
            self._sink = None

    def close(self) -> None:
        """End the recording; safe to call twice."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None
