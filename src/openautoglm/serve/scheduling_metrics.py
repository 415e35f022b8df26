"""Metrics of queues and of the budget of steps."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from openautoglm.engine.client import EngineStatus


def scheduling_metrics(model_name: str, status: EngineStatus) -> Iterator[Metric]:
    """Yield the metrics of an engine's queues, and of its budget where there is one."""
    queues = status.queues
    for name, text, values in (
        ("running", "Choices being computed.", {name: one.num_running for name, one in queues.items()}),
        ("waiting", "Choices that wait.", {name: one.num_waiting for name, one in queues.items()}),
        (
            "oldest_seconds",
            "Age of the oldest request with a choice that waits.",
            {name: one.oldest_seconds for name, one in queues.items()},
        ),
    ):
        gauge = GaugeMetricFamily(f"openautoglm_queue_{name}", text, labels=["model_name", "queue"])
        for queue, value in values.items():
            gauge.add_metric([model_name, queue], value)
        yield gauge
    budget = status.budget
    if budget is None:
        return
    for name, text, figure in (
        ("slo_itl_seconds", "Target for the time between tokens.", budget.itl_seconds),
        ("slo_ttft_seconds", "Target for the time to a first token.", budget.ttft_seconds),
        ("step_budget_tokens", "Prompt tokens of the last step that was limited.", budget.last_tokens),
    ):
        if figure is not None:
            gauge = GaugeMetricFamily(f"openautoglm_{name}", text, labels=["model_name"])
            gauge.add_metric([model_name], figure)
            yield gauge
    for name, text, count in (
        ("limited_steps", "Steps whose prompt tokens were limited for running streams.", budget.num_limited_steps),
        ("late_steps", "Limited steps that took longer than they should.", budget.num_late_steps),
    ):
        counter = CounterMetricFamily(f"openautoglm_{name}", text, labels=["model_name"])
        counter.add_metric([model_name], count)
        yield counter
