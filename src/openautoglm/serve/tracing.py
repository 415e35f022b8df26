"""OpenTelemetry traces of requests, made from what is known when a request is over: no token costs anything.

POST /v1/chat/completions    from the head's arrival to the end of the answer
  prepare                    body, template, tokens
  queue, prefill, decode     of each prompt's first choice, as the engine's record of it tells
  grammar, tool              where a request has them
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from openautoglm import __version__
from openautoglm.engine.client import EngineClient
from openautoglm.engine.record import RequestRecord
from openautoglm.errors import OpenAutoGLMError
from openautoglm.log import get_logger
from openautoglm.serve.trace_context import TraceContext
from openautoglm.serve.trace_options import TraceOptions
from openautoglm.serve.trace_parts import Attribute, Ended, Phase

# Spans that wait for the exporter, of 2 KiB or so; what comes beyond is dropped.
_MAX_WAITING_SPANS = 1024
_BATCH_SPANS = 256
_BATCH_MILLISECONDS = 500
_EXPORT_SECONDS = 5
_CLOSE_SECONDS = 2.0
_RECORD_SECONDS = 2.0
_MAX_FINISHING = 64
_MAX_PROMPTS = 8
_QUIET_SECONDS = 60.0

_logger = get_logger(__name__)


class Tracing:
    """Makes spans and hands them to a thread that exports them; a collector that is gone costs spans, nothing else."""

    def __init__(self, options: TraceOptions, model_name: str, client: EngineClient) -> None:
        self._client = client
        endpoint = options.endpoint.rstrip("/") + "/v1/traces"
        self._exporter = _CountingExporter(OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS))
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(options.sample_ratio)),
            resource=Resource.create(
                {"service.name": "openautoglm", "service.version": __version__, "openautoglm.model": model_name}
            ),
            span_limits=SpanLimits(max_span_attributes=32, max_attribute_length=256),
            shutdown_on_exit=False,
        )
        logger = logging.getLogger("opentelemetry")
        logger.handlers[:] = [_Complaints()]
        logger.propagate = False
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=_MAX_WAITING_SPANS,
                max_export_batch_size=_BATCH_SPANS,
                schedule_delay_millis=_BATCH_MILLISECONDS,
            )
        )
        self._tracer = self._provider.get_tracer("openautoglm", __version__)
        self._finishing: set[asyncio.Task[None]] = set()
        # Steady times become the clock's by one offset, so that the parts of a trace fit together.
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def begin(self, parent: TraceContext | None, begin: float) -> trace.Span:
        """Start the span of a request that arrived at `begin`; `parent` is what its client said."""
        context = None
        if parent is not None:
            flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
            remote = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(NonRecordingSpan(remote))
        return self._tracer.start_span("request", context, kind=SpanKind.SERVER, start_time=self._ns(begin))

    def context_of(self, span: trace.Span) -> TraceContext:
        """Return the ids of a span, for whoever is told of it."""
        ids = span.get_span_context()
        return TraceContext(
            trace_id=f"{ids.trace_id:032x}", span_id=f"{ids.span_id:016x}", sampled=bool(ids.trace_flags.sampled)
        )

    def counts(self) -> dict[str, int]:
        """Return how many spans were exported, and how many could not be."""
        return {"exported": self._exporter.num_exported, "failed": self._exporter.num_failed}

    def end(self, span: trace.Span, ended: Ended) -> None:
        """End a request's span, with those of its phases; the engine is asked for its record beside everything else."""
        if not span.is_recording():
            return
        end = time.monotonic()
        if not ended.prompts or len(self._finishing) >= _MAX_FINISHING:
            self._finish(span, ended, ended.guessed, end)
            return
        task = asyncio.get_running_loop().create_task(self._finish_with_records(span, ended, end))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def close(self) -> None:
        """Export what waits, for as long as the end of a server may take."""
        await asyncio.gather(*self._finishing, return_exceptions=True)
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _CLOSE_SECONDS)

    async def _finish_with_records(self, span: trace.Span, ended: Ended, end: float) -> None:
        phases: list[Phase] = []
        try:
            async with asyncio.timeout(_RECORD_SECONDS):
                for index, name in enumerate(ended.prompts[:_MAX_PROMPTS]):
                    record = await self._client.explain(name)
                    if record is not None:
                        phases.extend(_engine_phases(record, index, ended.submitted))
        except (OpenAutoGLMError, TimeoutError):
            # An engine that is gone has taken its records along: the edge knows roughly.
            phases.clear()
        self._finish(span, ended, phases or ended.guessed, end)

    def _finish(self, span: trace.Span, ended: Ended, engine: Iterable[Phase], end: float) -> None:
        span.update_name(ended.name)
        span.set_attributes(ended.attributes)
        if ended.error:
            span.set_attribute("error.type", ended.error)
            span.set_status(Status(StatusCode.ERROR))
        inside = trace.set_span_in_context(span)
        for phase in (*ended.phases, *engine):
            part = self._tracer.start_span(
                phase.name, inside, start_time=self._ns(phase.begin), attributes=phase.attributes
            )
            part.end(self._ns(min(phase.end, end)))
        span.end(self._ns(end))

    def _ns(self, seconds: float) -> int:
        return int(seconds * 1e9) + self._offset_ns


def _engine_phases(record: RequestRecord, prompt: int, submitted: float) -> list[Phase]:
    """Return the phases of a prompt's first choice; what was lost and made up for again is a part of decoding."""
    choice = record.choices[0]
    decoding = choice.decode_seconds + choice.preempted_seconds + choice.spilled_seconds
    seconds = {"queue": choice.queue_seconds, "prefill": choice.prefill_seconds, "decode": decoding}
    attributes: dict[str, dict[str, Attribute]] = {
        "prefill": {"prompt_tokens": record.prompt_tokens, "cached_tokens": record.cached_tokens},
        "decode": {
            "completion_tokens": sum(each.completion_tokens for each in record.choices),
            "preempted_seconds": choice.preempted_seconds,
            "spilled_seconds": choice.spilled_seconds,
            "num_preemptions": choice.num_preemptions,
            "rungs": record.rungs,
        },
    }
    phases, begin = [], submitted
    for name, length in seconds.items():
        if length > 0:
            told = {f"openautoglm.{key}": value for key, value in attributes.get(name, {}).items()}
            told["openautoglm.prompt"] = prompt
            phases.append(Phase(name=name, begin=begin, end=begin + length, attributes=told))
        begin += length
    return phases


class _CountingExporter(SpanExporter):
    """Counts what another exporter could deliver."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self.num_exported = self.num_failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans, in the thread of the exporter."""
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.num_exported += len(spans)
        else:
            self.num_failed += len(spans)
        return result

    def shutdown(self) -> None:
        """End the exporter."""
        self._inner.shutdown()


class _Complaints(logging.Handler):
    """Passes on what the exporter logs, at most once a minute: a collector that is gone is no news every second."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last = -_QUIET_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record as our own."""
        now = time.monotonic()
        if now - self._last >= _QUIET_SECONDS:
            self._last = now
            _logger.warning("traces may be lost: %s", record.getMessage())
