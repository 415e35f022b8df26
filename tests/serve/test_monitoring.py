"""Every metric and label that the dashboard and the alert rules name is told by a real server."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.test_end_to_end import running

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
NAME = re.compile(r"(?<![\w:$])((?:openautoglm_|vllm:|process_)\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!=|!~|=)")
GROUPING = re.compile(r"by \(([\w, ]+)\)")
# What Prometheus itself adds, and what a quantile is computed from.
ADDED = {"instance", "job", "le"}


def dashboard_expressions() -> list[str]:
    content = json.loads((MONITORING / "dashboard.json").read_text())
    return [target["expr"] for panel in content["panels"] for target in panel.get("targets", ())]


def alert_expressions() -> list[str]:
    content = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    return [rule["expr"] for group in content["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Labels by name of sample, of a server that has answered, failed and refused; families without samples too."""
    directory = tmp_path_factory.mktemp("monitored")
    arguments = (
        "--spill-memory", "8MiB", "--audit-log", str(directory / "audit"), "--otlp-endpoint", "http://127.0.0.1:9",
    )  # fmt: skip
    labels: dict[str, set[str]] = defaultdict(set)
    with running(directory, *arguments, environment={"OPENAUTOGLM_AUDIT_KEY": "k" * 32}) as server:
        chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        for body in (chat, {**chat, "stream": True}, {**chat, "temperature": -1}):
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        text = httpx.get(f"{server.url}/metrics", timeout=10).text
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        for suffix in suffixes:
            labels[family.name + suffix] |= set()
        for sample in family.samples:
            labels[sample.name] |= set(sample.labels)
    return labels


# Families that have no sample before something went wrong.
SILENT = {"openautoglm_failed_streams_total"}


@pytest.mark.parametrize("expression", dashboard_expressions() + alert_expressions())
def test_what_is_asked_for_exists(told: dict[str, set[str]], expression: str) -> None:
    names = NAME.findall(expression)
    assert names
    grouped = {label.strip() for group in GROUPING.findall(expression) for label in group.split(",")}
    known: set[str] = set(ADDED)
    for name, matchers in names:
        assert name in told, name
        if name not in SILENT:
            assert set(LABEL.findall(matchers)) - {"job"} <= told[name], (name, told[name])
        known |= told[name] | ({"code", "model_name"} if name in SILENT else set())
    assert grouped <= known


def test_metrics_have_panels_or_alerts(told: dict[str, set[str]]) -> None:
    """A guard of this test's own eyes: a look for names that finds nothing would pass everything."""
    named = {
        name for expression in dashboard_expressions() + alert_expressions() for name, _ in NAME.findall(expression)
    }
    assert len(named) > 40
    assert "openautoglm_not_there" not in told
