"""Traces: what a collector receives, told by the protocol's own messages; and that one that is gone harms nobody."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from openautoglm.engine.record import ChoiceRecord, RequestRecord
from openautoglm.errors import ConfigError
from openautoglm.serve.trace_context import parse_traceparent
from openautoglm.serve.trace_options import TraceOptions
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CANARY = "kanarienvogel"


@dataclass
class Collector:
    """An OTLP collector over HTTP: decodes the protobuf, keeps spans and resources."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    status: int = 200

    def take(self, path: str, content_type: str | None, body: bytes) -> None:
        assert (path, content_type) == ("/v1/traces", "application/x-protobuf")
        self.raw.append(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({each.key: each.value.string_value for each in group.resource.attributes})
            for scope in group.scope_spans:
                self.spans.extend(scope.spans)

    def wait(self, num_roots: int) -> list[Span]:
        """Wait for so many requests' spans; return the requests'."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            roots = [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]
            if len(roots) >= num_roots:
                return roots
            time.sleep(0.02)
        raise AssertionError(f"{len(self.spans)} spans came")


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.status == 200:
                collector.take(self.path, self.headers["Content-Type"], body)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(tokenizer: Tokenizer, collector: Collector) -> Iterator[Live]:
    with live_server(tokenizer, traces=TraceOptions(endpoint=collector.url), context_tokens=2048) as live:
        yield live


@pytest.fixture
def spans(collector: Collector) -> Collector:
    collector.spans.clear()
    collector.raw.clear()
    return collector


def attributes(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def children(collector: Collector, root: Span) -> dict[str, Span]:
    return {span.name: span for span in collector.spans if span.parent_span_id == root.span_id}


def test_a_request_is_a_trace_with_its_phases(traced: Live, spans: Collector) -> None:
    begin = time.time_ns()
    traced.engine.seconds_before_first = 0.05
    answer = traced.chat(CANARY, stream=False)
    traced.engine.seconds_before_first = 0.0
    end = time.time_ns()
    (root,) = spans.wait(1)
    assert root.name == "POST /v1/chat/completions"
    told = attributes(root)
    usage = answer.json()["usage"]
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert told["gen_ai.response.id"] == answer.json()["id"]
    assert told["openautoglm.request_id"] == answer.headers["x-request-id"]
    assert told["http.response.status_code"] == 200
    assert not root.parent_span_id
    parts = children(spans, root)
    assert list(parts) == ["prepare", "queue", "prefill", "decode"]
    assert begin <= root.start_time_unix_nano <= root.end_time_unix_nano <= end + 10**8
    for before, after in zip(list(parts.values())[:-1], list(parts.values())[1:], strict=True):
        assert before.end_time_unix_nano <= after.start_time_unix_nano
    assert parts["decode"].end_time_unix_nano <= root.end_time_unix_nano
    waited = parts["prefill"].end_time_unix_nano - parts["queue"].start_time_unix_nano
    assert waited >= 0.05e9
    assert spans.resources[0]["service.name"] == "openautoglm"
    assert not any(CANARY.encode() in body for body in spans.raw)
    # What the client gets names the same span.
    context = parse_traceparent(answer.headers["traceparent"].encode())
    assert context is not None
    assert (context.trace_id, context.span_id) == (root.trace_id.hex(), root.span_id.hex())


def test_the_engines_record_tells_the_times(traced: Live, spans: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(request_id: str) -> RequestRecord:
        choice = ChoiceRecord(
            choice=0, finish_reason="stop", completion_tokens=3, queue_seconds=0.001, prefill_seconds=0.002,
            decode_seconds=0.004, preempted_seconds=0.003, spilled_seconds=0.0, num_preemptions=1, num_spills=0,
        )  # fmt: skip
        return RequestRecord(
            request_id=request_id, prompt_tokens=5, cached_tokens=2, total_seconds=0.01, rungs=("preempt",),
            choices=(choice,),
        )  # fmt: skip

    async def explain(request_id: str) -> RequestRecord:
        return record(request_id)

    monkeypatch.setattr(traced.engine, "explain", explain)
    traced.engine.seconds_before_first = 0.02
    assert traced.post("/v1/completions", {"prompt": ["a", "b"]}).status_code == 200
    traced.engine.seconds_before_first = 0.0
    (root,) = spans.wait(1)
    parts = [span for span in spans.spans if span.parent_span_id == root.span_id]
    assert [span.name for span in parts] == ["prepare", *["queue", "prefill", "decode"] * 2]
    lengths = [round((span.end_time_unix_nano - span.start_time_unix_nano) / 1e9, 4) for span in parts[1:4]]
    assert lengths == [0.001, 0.002, 0.007]
    decode = attributes(parts[3])
    assert decode["openautoglm.num_preemptions"] == 1
    assert [value.string_value for value in decode["openautoglm.rungs"].values] == ["preempt"]
    assert [attributes(span)["openautoglm.prompt"] for span in parts[1:]] == [0, 0, 0, 1, 1, 1]


def test_calls_of_tools_are_spans(traced: Live, spans: Collector) -> None:
    call = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    for stream in (False, True):
        answer = traced.chat(f"Wait. {call}\n{call}", tools=[tool], stream=stream)
        assert answer.status_code == 200, answer.text
    for root in spans.wait(2):
        parts = [span for span in spans.spans if span.parent_span_id == root.span_id]
        first, second = [span for span in parts if span.name == "tool"]
        (decode,) = [span for span in parts if span.name == "decode"]
        assert decode.start_time_unix_nano <= first.start_time_unix_nano < first.end_time_unix_nano
        assert first.end_time_unix_nano <= second.start_time_unix_nano < second.end_time_unix_nano


def test_a_clients_trace_is_continued(traced: Live, spans: Collector) -> None:
    header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    answer = traced.post("/v1/completions", {"prompt": "x", "stream": True}, headers=header)
    (root,) = spans.wait(1)
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert answer.headers["traceparent"] == f"00-{TRACE}-{root.span_id.hex()}-01"


def test_what_is_not_sampled_leaves_no_span(traced: Live, spans: Collector) -> None:
    header = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert traced.post("/v1/completions", {"prompt": "x"}, headers=header).headers["traceparent"].endswith("-00")
    assert traced.chat().status_code == 200
    (root,) = spans.wait(1)
    assert root.trace_id.hex() != TRACE


def test_failures_are_marked(traced: Live, spans: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    assert traced.chat(temperature=-1).status_code == 400
    monkeypatch.setattr(traced.engine, "fail_after_tokens", 2)
    assert traced.chat(stream=True).status_code == 200
    refused, failed = spans.wait(2)
    assert [attributes(span)["error.type"] for span in (refused, failed)] == ["invalid_request", "generation_failed"]
    assert {span.status.code for span in (refused, failed)} == {Status.STATUS_CODE_ERROR}


def test_the_share_that_is_traced_can_be_chosen(tokenizer: Tokenizer) -> None:
    with collecting() as collector:
        with live_server(tokenizer, traces=TraceOptions(endpoint=collector.url, sample_ratio=0.25)) as live:
            for _ in range(80):
                assert live.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200
        roots = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    # Of 80 draws at 0.25: fewer than 5 or more than 40 happen once in a million runs.
    assert 5 <= len(roots) <= 40


@pytest.mark.parametrize(
    "how", ["refuses", pytest.param("is deaf", marks=pytest.mark.long), pytest.param("fails", marks=pytest.mark.long)]
)
def test_a_collector_that_is_gone_harms_nobody(
    tokenizer: Tokenizer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with collecting() as collector, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if how == "is deaf":
            deaf.listen(1)
        collector.status = 503
        url = collector.url if how == "fails" else f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with live_server(tokenizer, traces=TraceOptions(endpoint=url)) as live:
            begin = time.monotonic()
            for _ in range(100):
                assert live.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200
            requests_seconds = time.monotonic() - begin
            live.still_answers()
            closing = time.monotonic()
        assert time.monotonic() - closing < 8
    assert requests_seconds < 30
    assert len([record for record in caplog.records if "traces may be lost" in record.getMessage()]) <= 1


@pytest.mark.parametrize(
    ("header", "ids"),
    [
        (f"00-{TRACE}-{PARENT}-01", (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-02", (TRACE, PARENT, False)),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{TRACE[1:]}-{PARENT}-01", None),
        ("00", None),
        ("\xff" * 60, None),
        ("", None),
    ],
)
def test_headers_are_read_as_the_standard_says(header: str, ids: tuple[str, str, bool] | None) -> None:
    found = parse_traceparent(header.encode("latin-1"))
    assert (None if found is None else (found.trace_id, found.span_id, found.sampled)) == ids


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://x", "http://", "/v1/traces"])
def test_an_endpoint_is_an_address(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="--otlp-endpoint"):
        TraceOptions(endpoint=endpoint).check()


def test_without_tracing_headers_are_left_alone(server: Live) -> None:
    answer = httpx.get(f"{server.url}/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert answer.status_code == 200
    assert "traceparent" not in answer.headers
