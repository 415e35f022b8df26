"""Metrics of what was computed once and used again: drafts, sessions, prefixes in the spill tiers."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from openautoglm.engine.client import EngineStatus


def reuse_metrics(status: EngineStatus, model_name: str) -> Iterator[Metric]:
    """Yield them; drafts have vLLM's names. What is turned off, or has no tier, has none."""
    drafts, sessions, spill = status.speculation, status.sessions, status.spill
    if drafts is not None:
        yield _counter("vllm:spec_decode_num_drafts", "Drafts of next tokens.", drafts.drafts, model_name)
        yield _counter("vllm:spec_decode_num_draft_tokens", "Tokens drafted.", drafts.draft_tokens, model_name)
        text = "Drafted tokens that were right."
        yield _counter("vllm:spec_decode_num_accepted_tokens", text, drafts.accepted_tokens, model_name)
    if spill is not None:
        text = "KV blocks of idle prefixes and sessions that left the pool for a tier."
        yield _counter("openautoglm_spilled_prefix_blocks", text, spill.prefix_blocks, model_name)
        text = "Such blocks that a prompt began with again."
        yield _counter("openautoglm_restored_prefix_blocks", text, spill.prefix_hits, model_name)
    if sessions is not None:
        yield _gauge("openautoglm_sessions", "Sessions whose KV cache is kept.", sessions.sessions, model_name)
        yield _gauge("openautoglm_session_blocks", "KV blocks that sessions hold.", sessions.blocks, model_name)
        text = "Requests that went on with a session."
        yield _counter("openautoglm_resumed_sessions", text, sessions.resumed, model_name)
        expired = CounterMetricFamily(
            "openautoglm_expired_sessions", "Sessions let go, by reason.", labels=["model_name", "reason"]
        )
        for reason, number in (("time", sessions.expired_time), ("space", sessions.expired_space)):
            expired.add_metric([model_name, reason], number)
        yield expired


def _counter(name: str, text: str, value: float, model_name: str) -> Metric:
    metric = CounterMetricFamily(name, text, labels=["model_name"])
    metric.add_metric([model_name], value)
    return metric


def _gauge(name: str, text: str, value: float, model_name: str) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=["model_name"])
    metric.add_metric([model_name], value)
    return metric
