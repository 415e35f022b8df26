"""Prompts appear in no sink of a real server: log, errors, metrics, audit log, traces, profiles, crash output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from tests.serve.test_end_to_end import Server, running
from tests.serve.test_tracing import collecting

CANARY = "kanarienvogel-9c1f"
KEY = "k" * 32
LOGGING = ("--log-level", "debug", "--log-format", "json")
AUDIT = {"OPENAUTOGLM_AUDIT_KEY": KEY, "OPENAUTOGLM_ADMIN_KEY": "admin"}


def hostile_bodies() -> list[tuple[str, object]]:
    """Requests that are answered, and requests that fail at every place that looks at them, each with the canary."""
    chat, text = "/v1/chat/completions", f"{CANARY} tell me"
    message = {"role": "user", "content": text}
    return [
        (chat, {"messages": [message], "max_tokens": 8}),
        (chat, {"messages": [message], "max_tokens": 8, "stream": True, "logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", {"prompt": [text, text], "max_tokens": 4, "echo": False}),
        ("/v1/completions", {"prompt": text, "max_tokens": 4, CANARY: CANARY}),
        ("/v1/messages", {"messages": [message], "system": text, "max_tokens": 8, "stream": True}),
        ("/v1/messages/count_tokens", {"messages": [message], "system": text}),
        ("/v1/responses", {"input": text, "instructions": text, "max_output_tokens": 8, "store": True}),
        ("/v1/responses", {"input": [message], "max_output_tokens": 8, "stream": True}),
        ("/v1/embeddings", {"input": [text, text], "pooling": "mean"}),
        ("/tokenize", {"prompt": text}),
        ("/v1/split", {"text": text * 50, "max_tokens": 64}),
        # From here on they fail.
        (chat, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": text}]}]}),
        (
            chat,
            {
                "messages": [
                    {"role": "user", "content": text, "tool_calls": [{"function": {"name": "f", "arguments": text}}]}
                ]
            },
        ),
        (chat, {"messages": [message], "temperature": 99}),
        (chat, {"messages": [message], "max_tokens": 10**6}),
        (chat, {"messages": [{"role": "user", "content": text * 5000}]}),
        (chat, {"messages": [{"role": "user", "content": {"a": text}}]}),
        (chat, {"messages": text}),
        (chat, {"messages": [message], "response_format": {"type": text}}),
        (chat, {"messages": [message], "stop": [text] * 500}),
        (chat, {"messages": [message], "chat_template_kwargs": {"a": text}, "deadline_seconds": 0.001}),
        ("/v1/completions", {"prompt": [text, 5]}),
        ("/v1/completions", {"prompt": {"a": text}}),
        ("/v1/completions", {"prompt": text, "n": 5000}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": text}]}], "max_tokens": 8}),
        ("/v1/messages", {"messages": [message], "max_tokens": 8, "stop_sequences": text}),
        ("/v1/responses", {"input": [{"type": text}]}),
        ("/v1/responses", {"input": text, "metadata": {text: 1}}),
        ("/v1/embeddings", {"input": text, "pooling": text}),
        ("/v1/embeddings", {"input": [text, 5]}),
        ("/v1/split", {"text": text, "max_tokens": 1}),
        ("/v1/split", {"text": [text], "max_tokens": 100}),
        ("/detokenize", {"tokens": [text]}),
    ]


def headers_for(path: str) -> dict[str, str]:
    return {"Authorization": "Bearer admin"} if path.startswith("/admin") else {}


def tell_all(server: Server, sinks: dict[str, str]) -> None:
    """Send everything; collect what came back of what failed."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for index, (path, body) in enumerate(hostile_bodies()):
            answer = client.post(path, json=body, headers=headers_for(path))
            if answer.status_code != 200:
                sinks[f"error {index} {path}"] = answer.text + str(answer.headers)
        assert sum(name.startswith("error") for name in sinks) >= len(hostile_bodies()) - 12
        for data in (
            f'{{"messages": ["{CANARY}',
            f'{{"a": "{CANARY}" {CANARY}}}',
            f'["{CANARY}"]',
            f'{{"a": "{CANARY}\\ud800"}}',
        ):
            answer = client.post(
                "/v1/chat/completions", content=data.encode(), headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 400
            sinks[f"error {data}"] = answer.text.replace(data, "")
        report = client.post("/admin/memory/report", json={"trace": True}, headers=headers_for("/admin"))
        assert report.status_code == 200, report.text
        sinks["report"] = report.text
        profile = client.post("/admin/profile", json={"seconds": 0.3}, headers=headers_for("/admin"))
        assert profile.status_code == 200, profile.text
        sinks["profile"] = profile.text
        for path in ("/metrics", "/health", "/admin/memory", "/openapi.json"):
            sinks[path] = client.get(path, headers=headers_for(path)).text


def kill_the_engine(server: Server, sinks: dict[str, str]) -> None:
    """End the engine while it writes an answer: what its client and the log are told holds no prompt either."""
    body = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 1500, "ignore_eos": True, "stream": True}
    events: list[str] = []

    def read() -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer,
        ):
            events.extend(answer.iter_lines())

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + 30
    while len(events) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(server.children()["engine"], signal.SIGKILL)
    reader.join(60)
    errors = [event for event in events if '"error"' in event]
    assert errors
    sinks["stream"] = "\n".join(errors)
    while "engine process has ended" not in server.errors.read_text() and time.monotonic() < deadline + 30:
        time.sleep(0.05)


def test_prompts_appear_in_no_sink(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    sinks: dict[str, str] = {}
    arguments = (
        "--audit-log",
        str(audit),
        "--log-dir",
        str(tmp_path / "reports"),
        "--quant",
        "int8",
        "--context",
        "2048",
        "--concurrency",
        "2",
    )
    with (
        collecting() as collector,
        running(tmp_path, *arguments, "--otlp-endpoint", collector.url, environment=AUDIT, options=LOGGING) as server,
    ):
        tell_all(server, sinks)
        kill_the_engine(server, sinks)
        server.process.terminate()
        output, _ = server.process.communicate(timeout=60)
        sinks["stdout"] = output
        sinks["stderr"] = server.errors.read_text()
        sinks["traces"] = b"".join(collector.raw).decode("latin-1")
    sinks["audit"] = audit.read_text()
    assert {"queue", "prefill", "decode"} <= {span.name for span in collector.spans}
    # Whatever the processes say, tables and tracebacks included, is a line of JSON, and each request has one.
    told = [json.loads(line) for line in sinks["stderr"].splitlines()]
    answered = [line for line in told if line["message"].startswith("request ") and line.get("route") == "/v1/split"]
    assert [line["status"] for line in answered] == [200, 400, 400]
    assert len({line["pid"] for line in told}) >= 2
    assert "engine process has ended" in sinks["stderr"]
    for name, text in sinks.items():
        assert CANARY not in text, f"{name}: …{text[max(0, text.index(CANARY) - 200) :][:400]}"
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    done = subprocess.run(
        [sys.executable, "-m", "openautoglm", "audit", "verify", str(audit)],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | AUDIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert lines[-1]["event"] == "stop"
    assert len([line for line in lines if line["event"] == "request"]) == len(
        [line for line in lines if line["event"] == "end"]
    )
