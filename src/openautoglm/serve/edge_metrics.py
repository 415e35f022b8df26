"""Metrics of the HTTP edge: errors by code, failed streams, connections turned away, sizes of requests, the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from openautoglm import __version__
from openautoglm.serve.strangers import Strangers

_SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
# Of what is wrong with a request; everything else has a code.
UNNAMED_CODE = "invalid_request"


class EdgeMetrics:
    """Part of a server's registry; every label is one of this server's own words."""

    def __init__(self, registry: CollectorRegistry, model_name: str, strangers: Strangers) -> None:
        self._model_name = model_name
        labels = ("model_name",)
        self._errors = Counter(
            "openautoglm_http_errors",
            "Requests answered with an error, by status and code.",
            (*labels, "status", "code"),
            registry=registry,
        )
        self._failed_streams = Counter(
            "openautoglm_failed_streams",
            "Answers that had begun and ended with an error, by code.",
            (*labels, "code"),
            registry=registry,
        )

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets).labels(model_name)

        self._prompt_tokens = histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", _SIZE_BUCKETS)
        self._generation_tokens = histogram(
            "vllm:request_generation_tokens", "Tokens generated for a request.", _SIZE_BUCKETS
        )
        self._token_seconds = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time of a request's tokens but the first.",
            _TOKEN_BUCKETS,
        )  # fmt: skip
        build = Gauge("openautoglm_build_info", "Always 1.", (*labels, "version"), registry=registry)
        build.labels(model_name, __version__).set(1)
        self._registry = registry
        self._follow(
            "openautoglm_turned_away_connections",
            "Connections that were closed before they made a request, by reason.",
            "reason",
            lambda: strangers.counts,
        )
        ProcessCollector(registry=registry)

    def follow_spans(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Tell at each scrape how many spans of traces were exported, and how many were not."""
        self._follow("openautoglm_trace_spans", "Spans by what became of them.", "result", counts)

    def _follow(self, name: str, text: str, label: str, counts: Callable[[], Mapping[str, int]]) -> None:
        self._registry.register(_CountsCollector(name, text, ("model_name", self._model_name), label, counts))

    def error(self, status: int, code: str) -> None:
        """Count a request that was answered with an error."""
        self._errors.labels(self._model_name, str(status), code).inc()

    def failed_stream(self, code: str) -> None:
        """Count an answer that ended with an error after its status had been sent."""
        self._failed_streams.labels(self._model_name, code).inc()

    def sizes(self, *, prompt_tokens: int, generated_tokens: int, decode_seconds: float | None) -> None:
        """Record a request that has ended; `decode_seconds` is what all tokens but the first took."""
        self._prompt_tokens.observe(prompt_tokens)
        self._generation_tokens.observe(generated_tokens)
        if decode_seconds is not None and generated_tokens > 1:
            self._token_seconds.observe(decode_seconds / (generated_tokens - 1))


class _CountsCollector:
    """Tells at a scrape what somebody else counts."""

    def __init__(
        self, name: str, text: str, constant: tuple[str, str], label: str, counts: Callable[[], Mapping[str, int]]
    ) -> None:
        self._name, self._text = name, text
        self._constant = constant
        self._label = label
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Yield the counter."""
        counter = CounterMetricFamily(self._name, self._text, labels=[self._constant[0], self._label])
        for value, number in self._counts().items():
            counter.add_metric([self._constant[1], value], number)
        yield counter
