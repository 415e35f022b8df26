"""/health, /metrics and the server's description of itself."""

from __future__ import annotations

import logging
import socket
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from openautoglm.engine.client import SpillStatus
from openautoglm.serve.strangers import LATE, MALFORMED, Strangers
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server


def samples(server: Live) -> dict[tuple[str, str], float]:
    """Metrics by name and by whatever label tells samples of a name apart."""
    found = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            assert sample.labels.get("model_name", "small") == "small" or sample.name.startswith("process_")
            rest = ",".join(value for label, value in sample.labels.items() if label != "model_name")
            found[sample.name, rest] = sample.value
    return found


def test_metrics_have_the_names_that_dashboards_know(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer) as server:
        server.chat(n=2)
        server.chat(max_tokens=2)
        server.chat(temperature=-1)
        server.get("/made/up/by/a/client")
        found = samples(server)
    generated = 2 * (len(tokenizer.encode("0:hello")) + 1) + 2
    expected = {
        ("vllm:num_requests_running", ""): 0,
        ("vllm:num_requests_waiting", ""): 1,
        ("vllm:kv_cache_usage_perc", ""): 0.1,
        ("vllm:prefix_cache_queries_total", ""): 50,
        ("vllm:prefix_cache_hits_total", ""): 30,
        ("vllm:prompt_tokens_total", ""): 2 * len(tokenizer.encode("<|user|>hello<|assistant|>")),
        ("vllm:generation_tokens_total", ""): generated,
        ("vllm:num_preemptions_total", ""): 2,
        ("vllm:request_success_total", "stop"): 2,
        ("vllm:request_success_total", "length"): 1,
        ("vllm:time_to_first_token_seconds_count", ""): 2,
        ("vllm:inter_token_latency_seconds_count", ""): generated - 3,
        ("vllm:e2e_request_latency_seconds_count", ""): 2,
        ("vllm:request_decode_time_seconds_count", ""): 2,
        # Names that vLLM had before.
        ("vllm:time_per_output_token_seconds_count", ""): generated - 3,
        ("vllm:gpu_cache_usage_perc", ""): 0.1,
        ("vllm:request_inference_time_seconds_count", ""): 2,
        ("vllm:request_prompt_tokens_count", ""): 2,
        ("vllm:request_prompt_tokens_sum", ""): 2 * len(tokenizer.encode("<|user|>hello<|assistant|>")),
        ("vllm:request_generation_tokens_sum", ""): generated,
        ("vllm:request_time_per_output_token_seconds_count", ""): 2,
        ("openautoglm_http_errors_total", "invalid_request,400"): 1,
        ("openautoglm_http_errors_total", "not_found,404"): 1,
        ("openautoglm_engine_ready", ""): 1,
        ("openautoglm_kv_blocks", "used"): 10,
        ("openautoglm_kv_blocks", "cached"): 20,
        ("openautoglm_kv_blocks", "free"): 70,
        ("openautoglm_resident_bytes", ""): 123456,
        ("openautoglm_steps_total", ""): 7,
        ("openautoglm_step_seconds_total", ""): 0.5,
        ("openautoglm_http_requests_total", "/v1/chat/completions,200"): 2,
        ("openautoglm_http_requests_total", "/v1/chat/completions,400"): 1,
        # What a client makes up is no label.
        ("openautoglm_http_requests_total", "none,404"): 1,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_metrics_count_streams_that_fail_and_connections_that_are_no_requests(
    server: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def counted() -> list[float]:
        found = samples(server)
        names = (("failed_streams", "generation_failed"), ("turned_away_connections", "malformed"))
        return [found.get((f"openautoglm_{name}_total", label), 0) for name, label in names]

    before = counted()
    monkeypatch.setattr(server.engine, "fail_after_tokens", 2)
    assert server.chat(stream=True).status_code == 200
    monkeypatch.setattr(server.engine, "fail_after_tokens", None)
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
                assert b"400" in connection.recv(100)
    assert [after - was for was, after in zip(before, counted(), strict=True)] == [1, 20]
    assert len([record for record in caplog.records if "turned away" in record.getMessage()]) <= 1
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_few_lines_tell_of_many_strangers(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    strangers = Strangers(quiet_seconds=60, clock=lambda: now)
    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            strangers.turned_away(MALFORMED)
            now += 0.1
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition("; ")[2] for line in lines] == ["1 since the line before", "600 since the line before"]
    assert strangers.counts == {MALFORMED: 1000, LATE: 0}


def test_metrics_tell_of_spilled_blocks(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    found = samples(server)
    assert (found["openautoglm_spills_total", ""], found["openautoglm_recomputed_tokens_total", ""]) == (1, 40)
    assert ("openautoglm_spilled_blocks_total", "") not in found
    spill = SpillStatus(
        spilled_blocks=11, restored_blocks=7, lost_blocks=3, damaged_blocks=2,
        memory_bytes=4096, disk_bytes=8192, num_errors=1,
    )  # fmt: skip
    monkeypatch.setattr(server.engine, "spill", spill)
    found = samples(server)
    expected = {
        ("openautoglm_spilled_blocks_total", ""): 11,
        ("openautoglm_restored_blocks_total", ""): 7,
        ("openautoglm_spill_lost_blocks_total", ""): 3,
        ("openautoglm_spill_damaged_blocks_total", ""): 2,
        ("openautoglm_spill_errors_total", ""): 1,
        ("openautoglm_spill_bytes", "memory"): 4096,
        ("openautoglm_spill_bytes", "disk"): 8192,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_metrics_go_on_without_the_engine(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine, "gone", True)
    found = samples(server)
    assert found["openautoglm_engine_ready", ""] == 0
    assert ("vllm:num_requests_running", "") not in found


def test_health_tells_liveness_from_readiness(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, stalled_seconds=0.2, status_seconds=0.2) as server:
        healthy = server.get("/health")
        assert healthy.status_code == 200
        assert healthy.json() == {"status": "ok", "live": True, "ready": True, "draining": False, "weight": 1.0}
        # It answers, but its loop does not turn.
        server.engine.hung = True
        server.get("/health")
        time.sleep(0.25)
        hung = server.get("/health")
        assert (hung.status_code, hung.json()["live"]) == (503, False)
        server.engine.hung = False
        assert server.get("/health").status_code == 200
        server.engine.deaf = True
        begin = time.monotonic()
        assert server.get("/health").json() == {
            "status": "unavailable", "live": False, "ready": False, "draining": False, "weight": 0.0,
        }  # fmt: skip
        assert time.monotonic() - begin < 2
        server.engine.deaf = False
        server.engine.gone = True
        assert server.get("/health").status_code == 503


def test_the_description_names_every_route_and_resolves(server: Live) -> None:
    described = server.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/tokenize", "/detokenize",
        "/health", "/metrics", "/admin/memory", "/admin/memory/report", "/admin/profile",
        "/v1/requests/{request_id}/explain", "/v1/split", "/v1/embeddings", "/v1/messages",
        "/v1/messages/count_tokens", "/v1/responses", "/v1/responses/{response_id}", "/v1/responses/input_tokens",
    }  # fmt: skip
    schemas = described["components"]["schemas"]
    assert {"ChatBody", "ChatMessage", "CompletionBody", "StreamOptions"} <= set(schemas)
    references = str(described).split("'$ref': '#/components/schemas/")[1:]
    assert references
    assert {reference.split("'")[0] for reference in references} <= set(schemas)
