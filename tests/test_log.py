"""Logging: text for people, lines of JSON for programs; whatever a process says on stderr is one or the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

SCRIPT = """
import threading, warnings
from openautoglm.log import announce, configure_logging, get_logger, request_ids, rewrite_log_lines
configure_logging("info", {format!r})
log = get_logger("openautoglm.here")
log.debug("not asked for")
announce("a table\\nof two lines")
request_ids.set({{"request_id": "r-1", "trace_id": "ab" * 16}})
log.info("%s tokens", 5, extra={{"fields": {{"status": 200, "what": "line\\nbreak"}}}})
rewrite_log_lines(lambda text: text.replace("secret", "[gone]"))
try:
    raise ValueError("a secret\\nin two lines")
except ValueError:
    log.exception("failed: secret")
warnings.warn("take care", UserWarning, stacklevel=1)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise KeyError("at the end")
"""


def stderr_of(log_format: str) -> str:
    command = [sys.executable, "-c", SCRIPT.format(format=log_format)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stderr


def test_every_line_is_json() -> None:
    lines = [json.loads(line) for line in stderr_of("json").splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "a table\nof two lines"),
        ("info", "5 tokens"),
        ("error", "failed: [gone]"),
        ("warning", lines[3]["message"]),
        ("critical", "an error that nobody caught"),
        ("critical", "an error that nobody caught"),
    ]
    assert "UserWarning: take care" in lines[3]["message"]
    assert (lines[1]["status"], lines[1]["what"], lines[1]["logger"]) == (200, "line\nbreak", "openautoglm.here")
    assert "request_id" not in lines[0]
    assert {(line["request_id"], line["trace_id"]) for line in lines[1:4]} == {("r-1", "ab" * 16)}
    assert "ValueError: a [gone]\nin two lines" in lines[2]["exception"]
    assert "ZeroDivisionError" in lines[4]["exception"]
    assert "at the end" in lines[5]["exception"]
    for line in lines:
        assert abs((datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds()) < 60
        assert line["pid"] > 1


def test_text_stays_text() -> None:
    text = stderr_of("text")
    assert text.startswith("a table\nof two lines\n")
    assert "INFO    openautoglm.here: 5 tokens\n" in text
    assert "secret" not in text.replace("Traceback", "").partition("Exception in thread")[0]
    assert "r-1" not in text


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "told"),
    [
        (["--log-format", "xml", "ls"], {}, 2, "xml"),
        (["ls"], {"OPENAUTOGLM_LOG_FORMAT": "xml"}, 2, "OPENAUTOGLM_LOG_FORMAT"),
        (["--log-format", "json", "plan", "/nowhere/at/all"], {}, 1, '"level": "error"'),
        (["plan", "/nowhere/at/all"], {"OPENAUTOGLM_LOG_FORMAT": "json"}, 1, '"level": "error"'),
        (["--log-format", "text", "plan", "/nowhere/at/all"], {"OPENAUTOGLM_LOG_FORMAT": "json"}, 1, "error: "),
    ],
)
def test_the_format_is_a_flag_and_a_setting(
    arguments: list[str], environment: dict[str, str], code: int, told: str
) -> None:
    command = [sys.executable, "-m", "openautoglm", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=os.environ | environment
    )
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr
