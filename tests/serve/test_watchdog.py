"""Reports of memory as an operator has them: a real server of two processes, asked over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.test_end_to_end import Server, running

MARKER = "xyzzymarker"
ADMIN = {"Authorization": "Bearer adm"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="oag-") as name:
        reports = Path(name) / "reports"
        arguments = ("--admin-key", "adm", "--log-dir", str(reports), "--watchdog-slope", "50MiB/min")
        with running(Path(name), *arguments) as started:
            yield started


def ask(server: Server, body: dict[str, object]) -> dict[str, dict[str, Any]]:
    """Return the reports by process."""
    answer = httpx.post(f"{server.url}/admin/memory/report", json=body, headers=ADMIN, timeout=60)
    assert answer.status_code == 200, answer.text
    return {report["process"]: report for report in answer.json()["reports"]}


def test_a_report_tells_where_memory_is_and_nothing_of_requests(server: Server) -> None:
    server.chat(messages=[{"role": "user", "content": f"What is {MARKER}?"}])
    began = ask(server, {"trace": True})
    server.chat(messages=[{"role": "user", "content": f"Why {MARKER}?"}])
    ended = ask(server, {"trace": False})
    assert began.keys() == ended.keys() == {"engine", "http"}
    engine = ended["engine"]
    assert set(engine["measured"]) == {"weights", "KV pool", "workspace"}
    assert 0 < engine["other_bytes"] < 60 << 20
    # What was measured and the rest are what the process takes of its own.
    taken = engine["memory"]["anonymous_bytes"] + engine["memory"]["shared_bytes"]
    assert sum(engine["measured"].values()) + engine["other_bytes"] == pytest.approx(taken, abs=4 << 20)
    assert engine["budget"]["ledger"]["weights"] > 1 << 20
    assert engine["budget"]["ledger"]["allocation tracing"] == 2 * (16 << 20)
    assert engine["mappings"]["anonymous"]["resident_bytes"] > engine["measured"]["weights"]
    assert all(report["traced"]["lines"] for report in ended.values())
    assert all(report["objects"] for report in ended.values())
    assert "allocation tracing" not in ask(server, {})["engine"]["budget"]["ledger"]
    files = sorted((server.directory / "reports").iterdir())
    assert len(files) == 6
    for file in files:
        text = file.read_text()
        assert file.stat().st_mode & 0o777 == 0o600
        assert MARKER not in text
        assert "dedent" not in text
        assert json.loads(text)["reason"] == "request"
    assert MARKER not in json.dumps(ended)
    for process in ("engine", "http"):
        label = f'{{model_name="demo",process="{process}",reason="request"}}'
        assert server.metric(f"openautoglm_memory_reports_total{label}") == 3
        growth = label.replace('"request"', '"growth"')
        assert server.metric(f"openautoglm_memory_reports_total{growth}") == 0


def test_a_report_waits_for_no_request(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "count"}], "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        next(lines)
        report = ask(server, {})["engine"]
        assert report["charged"]["requests"] > 1500 * 20
        assert report["budget"]["pool_blocks"] > 0


def test_a_directory_that_is_full_or_gone_costs_the_file_alone(server: Server) -> None:
    """A file in the place of the directory stands for a disk that takes nothing."""
    reports = server.directory / "reports"
    for file in reports.iterdir():
        file.unlink()
    reports.rmdir()
    reports.write_text("")
    before = server.metric('openautoglm_memory_reports_unwritten_total{model_name="demo",process="engine"}')
    assert {process: report["file"] for process, report in ask(server, {}).items()} == {"engine": None, "http": None}
    after = server.metric('openautoglm_memory_reports_unwritten_total{model_name="demo",process="engine"}')
    assert after == before + 1
    reports.unlink()
    assert ask(server, {})["http"]["file"] is not None
    server.chat()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--watchdog-slope", "10MiB"), 2, "10MiB/min"),
        (("--watchdog-slope", "0/min"), 2, "above zero"),
        (("--watchdog", "maybe"), 2, "maybe"),
        (("--watchdog", "off", "--watchdog-slope", "1MiB/min"), 2, "leave one out"),
        (("--log-dir", "/proc/nowhere"), 2, "--log-dir /proc/nowhere"),
    ],
)
def test_options_that_cannot_be(arguments: tuple[str, ...], code: int, words: str) -> None:
    command = [sys.executable, "-m", "openautoglm", "serve", "demo", "--port", "0", *arguments]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    # Before anything is planned or loaded.
    assert "plan for" not in done.stderr
    assert time.monotonic() - begin < 30
