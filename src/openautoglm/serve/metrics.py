"""Prometheus metrics: vLLM's names, for dashboards that exist, beside openautoglm_* for memory and the engine.

Requests are observed at the edge; counters and gauges of the engine are read from its status when scraped. Names that
vLLM has given up, and dashboards still ask for, are told with the values of their successors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from openautoglm.engine.client import EngineStatus, GenerationEvent
from openautoglm.engine.record import MemoryReport
from openautoglm.engine.watchdog import Watchdog
from openautoglm.serve.edge_metrics import EdgeMetrics
from openautoglm.serve.reuse_metrics import reuse_metrics
from openautoglm.serve.scheduling_metrics import scheduling_metrics
from openautoglm.serve.strangers import Strangers

_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
_NEXT_TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
)  # fmt: skip
_MAX_PARTS = 16


class Metrics:
    """The server's own registry, for one served model."""

    def __init__(self, model_name: str, strangers: Strangers | None = None) -> None:
        self._model_name = model_name
        self._registry = CollectorRegistry()
        self.strangers = strangers or Strangers()
        self.edge = EdgeMetrics(self._registry, model_name, self.strangers)
        self._engine = _EngineCollector(model_name)
        # A collector that is registered is asked at once for its names: it has none yet.
        self._registry.register(self._engine)
        labels = ("model_name",)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            metric = Histogram(name, text, labels, registry=self._registry, buckets=buckets)
            return metric.labels(model_name)

        self._first_token = histogram(
            "vllm:time_to_first_token_seconds", "Time from a request to its first token.", _FIRST_TOKEN_BUCKETS
        )
        next_token = Histogram(
            "vllm:inter_token_latency_seconds", "Time between two tokens of a choice.", labels,
            registry=self._registry, buckets=_NEXT_TOKEN_BUCKETS,
        )  # fmt: skip
        self._next_token = next_token.labels(model_name)
        self._registry.register(_FormerName("vllm:time_per_output_token_seconds", next_token))
        self._end_to_end = histogram(
            "vllm:e2e_request_latency_seconds", "Time from a request to its end.", _REQUEST_BUCKETS
        )
        self._decode = histogram(
            "vllm:request_decode_time_seconds", "Time from a request's first token to its end.", _REQUEST_BUCKETS
        )
        self._queue = histogram(
            "vllm:request_queue_time_seconds", "Time from a prompt's arrival to its first step.", _REQUEST_BUCKETS
        )
        self._prefill = histogram(
            "vllm:request_prefill_time_seconds", "Time from a prompt's first step to its first token.", _REQUEST_BUCKETS
        )
        self._inference = histogram(
            "vllm:request_inference_time_seconds", "Time from a prompt's first step to the request's end.",
            _REQUEST_BUCKETS,
        )  # fmt: skip
        self._finished = Counter(
            "vllm:request_success",
            "Choices that ended, by reason.",
            (*labels, "finished_reason"),
            registry=self._registry,
        )
        self._http_requests = Counter(
            "openautoglm_http_requests",
            "HTTP requests answered, by path and status.",
            (*labels, "path", "status"),
            registry=self._registry,
        )
        self._audit_missed = Gauge(
            "openautoglm_audit_missed_entries",
            "Entries that the audit log could not take and has no gap line for yet.",
            labels,
            registry=self._registry,
        ).labels(model_name)

    def audit_missed(self, num_entries: int) -> None:
        """Tell how many entries the audit log lacks now."""
        self._audit_missed.set(num_entries)

    def http_request(self, path: str, status: int) -> None:
        """Count an answer; `path` is a route of this server, never what a client sent."""
        self._http_requests.labels(self._model_name, path, str(status)).inc()

    def meter(self) -> RequestMeter:
        """Start to measure a request."""
        return RequestMeter(metrics=self)

    def render(self, status: EngineStatus | None, watchdog: Watchdog | None = None, *, weight: float = 1.0) -> bytes:
        """Return the text format; `status` None means that the engine does not answer.

        `weight` is the share of its requests that this server should get while it starts.
        """
        self._engine.status, self._engine.watchdog, self._engine.weight = status, watchdog, weight
        return generate_latest(self._registry)

    def observe_first_token(self, seconds: float) -> None:
        """Record a time to the first token."""
        self._first_token.observe(seconds)

    def observe_next_tokens(self, seconds: float, num_tokens: int) -> None:
        """Record the time between tokens; several that come together share it."""
        for _ in range(num_tokens):
            self._next_token.observe(seconds / num_tokens)

    def observe_start(self, queue_seconds: float, prefill_seconds: float) -> None:
        """Record how long a prompt waited for its first step, and from there to its first token."""
        self._queue.observe(queue_seconds)
        self._prefill.observe(prefill_seconds)

    def observe_end(
        self, end_to_end_seconds: float, decode_seconds: float | None = None, prefill_seconds: float = 0.0
    ) -> None:
        """Record a request's whole time; if it had tokens, what its steps took before and after the first one."""
        self._end_to_end.observe(end_to_end_seconds)
        if decode_seconds is not None:
            self._decode.observe(decode_seconds)
            self._inference.observe(prefill_seconds + decode_seconds)

    def count_finished(self, reason: str) -> None:
        """Count a choice that ended."""
        self._finished.labels(self._model_name, reason).inc()


@dataclass(slots=True, kw_only=True)
class RequestMeter:
    """Times of one HTTP request."""

    metrics: Metrics
    begin: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: dict[tuple[int, int], float] = field(default_factory=dict)
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    num_generated: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    # Name, begin and end of what else it spent time on, such as the call of a tool.
    parts: list[tuple[str, float, float]] = field(default_factory=list)

    def event(self, prompt: int, event: GenerationEvent) -> None:
        """Take note of an event of the prompt with this index."""
        now = time.monotonic()
        if event.tokens:
            before = self.last.get((prompt, event.choice))
            if self.first is None:
                self.first = now
                self.metrics.observe_first_token(now - self.begin)
                self.queue_seconds, self.prefill_seconds = event.queue_seconds, event.prefill_seconds
            if before is None:
                self.prompt_tokens[prompt] = event.prompt_tokens
                if event.choice == 0:
                    self.metrics.observe_start(event.queue_seconds, event.prefill_seconds)
            if before is not None:
                self.metrics.observe_next_tokens(now - before, len(event.tokens))
            self.last[prompt, event.choice] = now
            self.num_generated += len(event.tokens)
        if event.finish_reason is not None:
            self.metrics.count_finished(event.finish_reason)

    def note(self, name: str, begin: float, end: float) -> None:
        """Note a part of the request's time for its trace; beyond a few they are left out."""
        if len(self.parts) < _MAX_PARTS:
            self.parts.append((name, begin, end))

    def seconds(self) -> dict[str, float]:
        """Return what is known of where its time went: of its first prompt to start, queue, prefill and first token."""
        if self.first is None:
            return {}
        return {
            "queue_seconds": self.queue_seconds,
            "prefill_seconds": self.prefill_seconds,
            "first_token_seconds": self.first - self.begin,
        }

    def end(self, *, num_aborted: int) -> None:
        """The request is over; `num_aborted` choices of it had not finished."""
        now = time.monotonic()
        for _ in range(num_aborted):
            self.metrics.count_finished("abort")
        decode_seconds = None if self.first is None else now - self.first
        self.metrics.observe_end(now - self.begin, decode_seconds, self.prefill_seconds)
        self.metrics.edge.sizes(
            prompt_tokens=sum(self.prompt_tokens.values()),
            generated_tokens=self.num_generated,
            decode_seconds=decode_seconds,
        )


class _FormerName:
    """Tells a histogram under another name too, at a scrape; observing it costs nothing more."""

    def __init__(self, name: str, histogram: Histogram) -> None:
        self._name = name
        self._histogram = histogram

    def describe(self) -> Iterator[Metric]:
        """Yield the metric without samples."""
        yield Metric(self._name, "As its successor.", "histogram")

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        for metric in self._histogram.collect():
            told = Metric(self._name, f"As {metric.name}.", metric.type)
            told.samples = [
                sample._replace(name=self._name + sample.name.removeprefix(metric.name)) for sample in metric.samples
            ]
            yield told


class _EngineCollector:
    """Turns the engine's status into metrics at the moment of a scrape."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self.status: EngineStatus | None = None
        self.watchdog: Watchdog | None = None
        self.weight = 1.0

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the last status."""
        status = self.status
        yield self._gauge("openautoglm_engine_ready", "Whether the engine takes requests.", float(_ready(status)))
        yield self._gauge(
            "openautoglm_slow_start_weight",
            "Share of its requests that a balancer should send here: rises to 1 after a start, 0 when not ready.",
            self.weight if _ready(status) else 0.0,
        )
        yield from self._reports(status)
        if status is None:
            return
        used_blocks = status.num_blocks - status.num_free_blocks - status.num_cached_blocks
        yield self._gauge("vllm:num_requests_running", "Requests being computed.", status.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Requests in the queue.", status.num_waiting)
        yield from scheduling_metrics(self._model_name, status)
        usage = used_blocks / status.num_blocks if status.num_blocks else 0.0
        yield self._gauge("vllm:kv_cache_usage_perc", "KV blocks in use, 0 to 1.", usage)
        yield self._gauge("vllm:gpu_cache_usage_perc", "As vllm:kv_cache_usage_perc.", usage)
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up.", status.prefix_query_tokens)
        yield self._counter("vllm:prefix_cache_hits", "Prompt tokens found in the cache.", status.prefix_hit_tokens)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens taken.", status.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens generated.", status.generated_tokens)
        yield self._counter("vllm:num_preemptions", "Sequences set back to make room.", status.num_preemptions)
        blocks = GaugeMetricFamily("openautoglm_kv_blocks", "KV blocks by state.", labels=["model_name", "state"])
        for state, number in (
            ("used", used_blocks),
            ("cached", status.num_cached_blocks),
            ("free", status.num_free_blocks),
        ):
            blocks.add_metric([self._model_name, state], number)
        yield blocks
        yield self._counter("openautoglm_steps", "Steps computed.", status.num_steps)
        yield self._counter("openautoglm_step_seconds", "Time spent in steps.", status.step_seconds)
        yield self._gauge("openautoglm_resident_bytes", "Memory of the engine's process.", status.resident_bytes)
        yield self._counter("openautoglm_refused_requests", "Requests that found no room.", status.num_refused)
        yield self._counter(
            "openautoglm_missed_deadlines", "Requests that had not ended in time.", status.num_missed_deadlines
        )
        yield from self._spilling(status)
        yield from self._constraints(status)
        yield from reuse_metrics(status, self._model_name)
        yield self._gauge("openautoglm_ladder_rung", "Rung of the memory ladder, 0 for none.", status.rung)
        entered = CounterMetricFamily(
            "openautoglm_ladder_rung_transitions", "How often a rung was entered.", labels=["model_name", "rung"]
        )
        for rung, number in status.rung_transitions.items():
            entered.add_metric([self._model_name, rung], number)
        yield entered
        yield self._gauge("openautoglm_memory_budget_bytes", "Bound on the process tree.", status.budget_bytes)
        yield self._gauge("openautoglm_memory_tree_bytes", "Memory of the process tree.", status.tree_bytes)
        yield self._gauge("openautoglm_memory_pressure", "Byte pressure: 0 none, 1 nothing left.", status.byte_pressure)
        if status.memory is not None:
            yield from self._memory(status.memory)

    def _reports(self, status: EngineStatus | None) -> Iterator[Metric]:
        """Yield what the watchdogs of both processes have counted; nothing before there is one."""
        made: dict[str, tuple[dict[str, int], int]] = {}
        if self.watchdog is not None:
            made["http"] = self.watchdog.num_reports, self.watchdog.num_unwritten
        if status is not None and status.memory_reports:
            made["engine"] = status.memory_reports, status.num_unwritten_reports
        if not made:
            return
        labels = ["model_name", "process"]
        reports = CounterMetricFamily(
            "openautoglm_memory_reports", "Reports of where memory is, by what brought them on.",
            labels=[*labels, "reason"],
        )  # fmt: skip
        unwritten = CounterMetricFamily(
            "openautoglm_memory_reports_unwritten", "Memory reports that found no place on disk.", labels=labels
        )
        for process, (counts, num_unwritten) in made.items():
            for reason, number in counts.items():
                reports.add_metric([self._model_name, process, reason], number)
            unwritten.add_metric([self._model_name, process], num_unwritten)
        yield reports
        yield unwritten

    def _memory(self, memory: MemoryReport) -> Iterator[Metric]:
        """Yield the memory map: what the ledger has charged, the pool's sizes, the bounds around the process tree."""

        def gauges(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
            metric = GaugeMetricFamily(name, text, labels=["model_name", label])
            for key, value in values.items():
                metric.add_metric([self._model_name, key], value)
            return metric

        pool = {
            "now": memory.pool_blocks,
            "target": memory.pool_target_blocks,
            "planned": memory.planned_blocks,
            "most": memory.max_blocks,
        }
        limits = {room.source: room.limit_bytes for room in memory.rooms}
        left = {room.source: room.left_bytes for room in memory.rooms}
        yield gauges("openautoglm_memory_ledger_bytes", "What the ledger has charged.", "part", dict(memory.ledger))
        yield gauges("openautoglm_memory_limit_bytes", "Bounds on the process tree.", "source", limits)
        yield gauges("openautoglm_memory_left_bytes", "What is left below a bound.", "source", left)
        yield gauges("openautoglm_kv_pool_blocks", "Sizes of the KV pool, in blocks.", "size", pool)
        yield self._gauge("openautoglm_kv_block_bytes", "Bytes of one KV block.", memory.block_bytes)
        yield self._gauge("openautoglm_step_tokens", "Most tokens of one step now.", memory.step_tokens)
        yield self._gauge("openautoglm_block_pressure", "Share of the pool in use, or what had to be done beyond.",
                          memory.block_pressure)  # fmt: skip
        yield self._gauge("openautoglm_memory_stalled_share", "Time spent waiting for memory, 0 to 1.",
                          memory.stalled_share)  # fmt: skip

    def _constraints(self, status: EngineStatus) -> Iterator[Metric]:
        constraints = status.constraints
        if constraints is None:
            return
        for name, text, number in (
            ("constraints_compiled", "Constraints of answers that were compiled.", constraints.num_compiled),
            ("constraints_refused", "Constraints that were malformed or passed a limit.", constraints.num_refused),
            ("constraints_cached", "Constraints that were known from before.", constraints.num_cached),
            ("constraint_compile_seconds", "Time to compile constraints, beside steps.", constraints.compile_seconds),
            ("constraint_masks", "Tokens that a constraint was followed by.", constraints.num_masks),
            ("constraint_mask_seconds", "Time to follow constraints, a part of steps.", constraints.mask_seconds),
        ):
            yield self._counter(f"openautoglm_{name}", text, number)
        yield self._gauge(
            "openautoglm_constraints_waiting", "Requests whose constraint is being compiled.", constraints.num_waiting
        )
        yield self._gauge(
            "openautoglm_constraints_live", "Requests that follow a constraint now.", constraints.num_live
        )

    def _spilling(self, status: EngineStatus) -> Iterator[Metric]:
        yield self._counter("openautoglm_spills", "Sequences set back whose KV blocks were kept.", status.num_spills)
        yield self._counter("openautoglm_recomputed_tokens", "Tokens computed again.", status.recomputed_tokens)
        spill = status.spill
        if spill is None:
            return
        for name, text, number in (
            ("spilled_blocks", "KV blocks that left the pool for a tier.", spill.spilled_blocks),
            ("restored_blocks", "KV blocks that came back.", spill.restored_blocks),
            ("spill_lost_blocks", "KV blocks for which no tier had room.", spill.lost_blocks),
            ("spill_damaged_blocks", "KV blocks that came back damaged and were dropped.", spill.damaged_blocks),
            ("spill_errors", "Errors of the disk; the first turns writing off.", spill.num_errors),
        ):
            yield self._counter(f"openautoglm_{name}", text, number)
        tiers = GaugeMetricFamily("openautoglm_spill_bytes", "Spilled KV blocks.", labels=["model_name", "tier"])
        tiers.add_metric([self._model_name, "memory"], spill.memory_bytes)
        tiers.add_metric([self._model_name, "disk"], spill.disk_bytes)
        yield tiers

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        metric = GaugeMetricFamily(name, text, labels=["model_name"])
        metric.add_metric([self._model_name], value)
        return metric

    def _counter(self, name: str, text: str, value: float) -> Metric:
        metric = CounterMetricFamily(name, text, labels=["model_name"])
        metric.add_metric([self._model_name], value)
        return metric


def _ready(status: EngineStatus | None) -> bool:
    return status is not None and status.ready
