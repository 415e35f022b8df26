"""Bad input: each case with its status and what the error names, and after each the server still answers."""

from __future__ import annotations

import json
import resource
import socket
import time
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.serve.live import Live

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True, kw_only=True)
class Case:
    """`body` is JSON or raw bytes; `says` is part of the message; `param` and `code` are the error's fields."""

    path: str = CHAT
    body: Any = None
    status: int = 400
    says: str = ""
    param: str | None = None
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"


def chat(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hi"}], **fields}


def part(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [fields]}]}


def field(name: str, value: object, says: str, *, where: str | None = None, **more: object) -> Case:
    return Case(body=chat(**{name: value, **more}), says=says, param=where or name)


def raw(body: bytes, says: str, **more: Any) -> Case:
    return Case(body=body, says=says, **more)


TOOL = {"type": "function", "function": {"name": "f"}}
MEDIA = "unsupported_media_type"
TEN_MEGABYTES = "word " * 2_000_000

CASES = {
    # The body itself
    "not JSON": raw(b"{", "not valid JSON", code="invalid_json"),
    "empty body": raw(b"", "not valid JSON", code="invalid_json"),
    "a list": raw(b"[1]", "must be a JSON object, not a list", code="invalid_json"),
    "a number": raw(b"3", "must be a JSON object, not a number", code="invalid_json"),
    "invalid UTF-8": raw(b'{"messages": "\xff\xfe"}', "not valid JSON", code="invalid_json"),
    "NaN literal": raw(b'{"temperature": NaN}', "not valid JSON", code="invalid_json"),
    "Infinity literal": raw(b'{"temperature": -Infinity}', "not valid JSON", code="invalid_json"),
    "number out of range": raw(b'{"temperature": 1e999}', "not valid JSON", code="invalid_json"),
    "lone surrogate": raw(b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid", code="invalid_json"),
    "deep lists": raw(b'{"x": ' + b"[" * 100_000, "nests deeper than 64", code="invalid_json"),
    "deep objects": raw(b'{"x":' * 65 + b"1" + b"}" * 65, "nests deeper than 64", code="invalid_json"),
    "300,000 objects": raw(b'{"x": [' + b"{}," * 300_000 + b"{}]}", "more than 50000 strings", code="invalid_json"),
    "unterminated string": raw(b'{"messages": "' + b'\\"' * 100_000, "not valid JSON", code="invalid_json"),
    "10 MB prompt": Case(
        path=COMPLETION, body={"prompt": TEN_MEGABYTES}, status=413, says="1.00 MiB", code="request_too_large"
    ),
    "wrong content type": raw(
        b"{}", "must be application/json", status=415, code=MEDIA, headers=(("Content-Type", "text/plain"),)
    ),
    "no content type": raw(
        b"{}", "must be application/json", status=415, code=MEDIA, headers=(("Content-Type", ""),)
    ),
    "compressed body": raw(
        b"\x1f\x8b", "'gzip' is not accepted", status=415, code=MEDIA, headers=(("Content-Encoding", "gzip"),)
    ),
    # Paths and methods
    "unknown path": Case(path="/v1/nothing", status=404, says="no such path", code="not_found"),
    "wrong method": Case(method="GET", status=405, says="does not take that method", code="method_not_allowed"),
    "unknown model": Case(
        body=chat(model="gpt-9"), status=404, says="'gpt-9' is not served", param="model", code="model_not_found"
    ),
    # Messages
    "no messages": Case(body={}, says="Field required", param="messages"),
    "empty messages": Case(body={"messages": []}, says="at least 1", param="messages"),
    "messages of text": Case(body={"messages": "hi"}, says="valid list", param="messages"),
    "a message of text": Case(body={"messages": ["hi"]}, says="messages[0]", param="messages[0]"),
    "no role": Case(body={"messages": [{"content": "hi"}]}, says="Field required", param="messages[0].role"),
    "a role that writes tokens": Case(
        body={"messages": [{"role": "user|><|system", "content": "hi"}]}, says="pattern", param="messages[0].role"
    ),
    "a role that the template refuses": Case(
        body={"messages": [{"role": "forbidden", "content": "hi"}]},
        says="no such role here",
        param="messages",
        code="chat_template_error",
    ),
    "no content": Case(body={"messages": [{"role": "user"}]}, says="missing", param="messages[0].content"),
    "content of a number": Case(
        body={"messages": [{"role": "user", "content": 3}]}, says="valid string", param="messages[0].content"
    ),
    "an image": Case(
        body=part(type="image_url", image_url={"url": "data:image/png;base64,AAAA"}),
        says="does not read images",
        param="messages[0].content[0]",
    ),
    "audio": Case(body=part(type="input_audio"), says="does not read audio", param="messages[0].content[0]"),
    "an unknown part": Case(body=part(type="smell"), says='"type": "text"', param="messages[0].content[0]"),
    "a text part without text": Case(body=part(type="text"), says='"type": "text"', param="messages[0].content[0]"),
    "broken arguments of a tool call": Case(
        body={
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            ]
        },
        says="arguments are not JSON",
        param="messages[0].tool_calls",
    ),
    "template variables that replace the messages": field(
        "chat_template_kwargs", {"messages": []}, "cannot set messages"
    ),
    # Sampling
    "temperature below zero": field("temperature", -0.1, "temperature must be a number in [0, 100]"),
    "temperature of text": field("temperature", "hot", "valid number"),
    "temperature of a boolean": field("temperature", True, "valid number"),
    "top_p of zero": field("top_p", 0, "top_p must be a number in [1e-06, 1]"),
    "a top_p that is zero in float32": field("top_p", 1e-300, "top_p must be a number in [1e-06, 1]"),
    "a repetition_penalty that is zero in float32": field("repetition_penalty", 1e-50, "repetition_penalty must be"),
    "top_p above one": field("top_p", 1.01, "top_p must be"),
    "top_k below -1": field("top_k", -2, "top_k must be"),
    "min_p above one": field("min_p", 2, "min_p must be"),
    "repetition_penalty of zero": field("repetition_penalty", 0, "repetition_penalty must be"),
    "frequency_penalty above two": field("frequency_penalty", 2.5, "frequency_penalty must be"),
    "presence_penalty below -2": field("presence_penalty", -3, "presence_penalty must be"),
    "max_tokens of zero": field("max_tokens", 0, "max_tokens must be"),
    "negative max_tokens": field("max_tokens", -1, "max_tokens must be"),
    "max_tokens of a fraction": field("max_tokens", 1.5, "valid integer"),
    "min_tokens above max_tokens": field("min_tokens", 9, "min_tokens 9 is above max_tokens 3", max_tokens=3),
    "two limits": field("max_completion_tokens", 5, "differ: send one", max_tokens=3),
    "n of zero": field("n", 0, "n must be an integer in [1, 16]"),
    "a billion choices": field("n", 1_000_000_000, "n must be an integer in [1, 16]"),
    "a seed of 30 digits": field("seed", 10**30, "seed must be an integer"),
    "top_logprobs above 20": field("top_logprobs", 21, "top_logprobs must be an integer in [0, 20]", logprobs=True),
    "top_logprobs without logprobs": field("top_logprobs", 2, "needs logprobs: true"),
    "logprobs of a number": field("logprobs", 3, "valid boolean"),
    "an empty stop string": field("stop", ["a", ""], "stop strings need 1 to 1024 bytes"),
    "a long stop string": field("stop", "x" * 1025, "stop strings need 1 to 1024 bytes"),
    "many stop strings": field("stop", ["x"] * 17, "at most 16"),
    "a stop of numbers": field("stop", [1, 2], "string or a list"),
    "many stop ids": field("stop_token_ids", list(range(65)), "stop_token_ids takes at most 64"),
    "a bias for a word": field("logit_bias", {"the": 1}, "maps token ids to numbers"),
    "a bias above 100": field("logit_bias", {"5": 101}, "[-100, 100]"),
    "many biases": field("logit_bias", {str(token): 0.0 for token in range(1025)}, "at most 1024"),
    "priority out of range": field("priority", 5000, "less than or equal to 1000"),
    # What is known and cannot be honoured
    "json_schema": field("response_format", {"type": "json_schema"}, "needs json_schema"),
    "another backend": field("guided_decoding_backend", "outlines", "followed in one way here"),
    "a backend's own tags": field("structured_outputs", {"structural_tag": "{}"}, "structural_tag cannot be honoured"),
    "a tool without a function": field("tools", [{"type": "function"}], "must be", where="tools[0].function"),
    "a tool without a name": field(
        "tools", [{"type": "function", "function": {"name": "a b"}}], "1 to 128", where="tools[0].function.name"
    ),
    "a tool of an array": field(
        "tools",
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}],
        "object",
        where="tools[0].function.parameters",
    ),
    "a tool twice": field("tools", [TOOL, TOOL], "another tool", where="tools[1]"),
    "too many tools": field("tools", [TOOL] * 129, "at most 128"),
    "a required tool of none": field("tool_choice", "required", "none", tools=[]),
    "an unknown tool": field(
        "tool_choice", {"type": "function", "function": {"name": "g"}}, "none of those sent", tools=[TOOL]
    ),
    "a strange choice": field("tool_choice", "any", "must be", tools=[TOOL]),
    "functions": field("functions", [{}], "send tools"),
    "an unknown switch": field("enable_thinking", True, "no such switch"),
    "an unknown effort": field("reasoning_effort", "high", "no such switch"),
    "audio output": field("modalities", ["text", "audio"], "only text"),
    "a template in the request": field("chat_template", "{{ 1 }}", "templates are not taken from requests"),
    "best_of above n": field("best_of", 4, "equals n"),
    "an unknown tier": field("service_tier", "scale", "service_tier must be one of"),
    "silent truncation": field("truncate_prompt_tokens", 5, "never shortened in silence"),
    "a cache key of the client": field("cache_salt", "x", "separated by the server"),
    "stream_options without stream": field("stream_options", {"include_usage": True}, "needs stream: true"),
    # Plain completions
    "no prompt": Case(path=COMPLETION, body={}, says="Field required", param="prompt"),
    "a prompt of a number": Case(path=COMPLETION, body={"prompt": 3}, says="prompt must be text", param="prompt"),
    "an empty list": Case(path=COMPLETION, body={"prompt": []}, says="prompt must be text", param="prompt"),
    "mixed prompts": Case(path=COMPLETION, body={"prompt": ["a", [1]]}, says="must not mix", param="prompt"),
    "a thousand prompts": Case(path=COMPLETION, body={"prompt": ["a"] * 1000}, says="at most 64", param="prompt"),
    "prompts times choices": Case(path=COMPLETION, body={"prompt": ["a"] * 20, "n": 16}, says="128", param="n"),
    "a token outside": Case(path=COMPLETION, body={"prompt": [1, 10**6]}, says="token ids", param="prompt"),
    "a negative token": Case(path=COMPLETION, body={"prompt": [-1]}, says="token ids", param="prompt"),
    "a token of a boolean": Case(path=COMPLETION, body={"prompt": [1, True]}, says="token ids", param="prompt"),
    "a prompt that fills the context": Case(
        path=COMPLETION, body={"prompt": "a b " * 400}, says="the context holds 512", param="prompt",
        code="context_length_exceeded",
    ),
    "a megabyte of one letter": Case(
        path=COMPLETION, body={"prompt": "x" * 1_000_000}, says="shorten it", param="prompt",
        code="context_length_exceeded",
    ),
    "a quarter of a million tokens": Case(
        path=COMPLETION, body={"prompt": [1] * 250_000}, says="250000 tokens", param="prompt",
        code="context_length_exceeded",
    ),
    "an answer that overflows the context": Case(
        path=COMPLETION, body={"prompt": "a", "max_tokens": 600}, says="max_tokens", param="max_tokens",
        code="context_length_exceeded",
    ),
    "suffix": Case(path=COMPLETION, body={"prompt": "a", "suffix": "b"}, says="not filled in", param="suffix"),
    "echo with logprobs": Case(
        path=COMPLETION, body={"prompt": "a", "echo": True, "logprobs": 1}, says="echo", param="echo"
    ),
    "logprobs above 20": Case(path=COMPLETION, body={"prompt": "a", "logprobs": 21}, says="[0, 20]", param="logprobs"),
    # Tokens
    "neither prompt nor messages": Case(path="/tokenize", body={}, says="either prompt or messages", param="prompt"),
    "tokens of text": Case(path="/detokenize", body={"tokens": "x"}, says="valid list", param="tokens"),
    "tokens outside": Case(path="/detokenize", body={"tokens": [10**9]}, says="token ids", param="tokens"),
    "many bad tokens": Case(path="/detokenize", body={"tokens": ["x"] * 40_000}, says="integer", param="tokens[0]"),
}  # fmt: skip


def send(server: Live, case: Case) -> httpx.Response:
    content = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
    headers = {"Content-Type": "application/json", **dict(case.headers)}
    return server.http.request(case.method, case.path, content=content, headers=headers)


def test_there_are_at_least_forty_cases() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", list(CASES))
def test_a_bad_request_fails_alone(server: Live, name: str) -> None:
    case = CASES[name]
    response = send(server, case)
    assert response.status_code == case.status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert case.says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == case.param
    assert error["code"] == case.code
    assert response.headers["x-request-id"]
    assert server.engine.requests == []
    server.still_answers()


CAPPED = ["a billion choices", "top_logprobs above 20", "many stop strings", "a thousand prompts", "deep lists"]


@pytest.mark.parametrize("name", CAPPED)
def test_caps_refuse_quickly_and_without_memory(server: Live, name: str) -> None:
    case = CASES[name]
    server.still_answers()
    content = json.dumps(case.body).encode() if not isinstance(case.body, bytes) else case.body
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with httpx.Client(base_url=server.url, headers={"Content-Type": "application/json"}) as client:
        client.get("/health")
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            assert client.post(case.path, content=content).status_code == 400
            seconds.append(time.perf_counter() - begin)
    # The best of five: other work on the machine only adds.
    assert min(seconds) < 0.05
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10 << 10


def test_a_body_larger_than_it_said_is_cut_off(server: Live) -> None:
    """Chunked, so that no length is announced: the cap counts what arrives."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        sent = 0
        try:
            while sent < 64 << 20:
                connection.sendall(piece)
                sent += 0x10000
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 64 << 20, "the server read everything"
    server.still_answers()


def test_a_body_that_trickles_is_given_up(tokenizer: Any) -> None:
    from tests.serve.live import live_server

    with live_server(tokenizer, body_seconds=0.3) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b'Content-Length: 100\r\n\r\n{"prompt'
            )
            answer = connection.recv(65536).decode()
        assert "408" in answer.splitlines()[0]
        server.still_answers()


def test_faults_of_the_server_tell_nothing_of_its_inside(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine, "refuse", RuntimeError("secret at 0x7f00deadbeef"))
    response = server.chat()
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "internal_error"
    assert "0x" not in response.text
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in error["message"]
    monkeypatch.setattr(server.engine, "refuse", None)
    server.still_answers()


def test_prompts_are_in_no_error(server: Live) -> None:
    canary = "canary-7391"
    bad = [
        {"messages": [{"role": "user", "content": canary, "tool_calls": canary}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 3, "x": canary}]}]},
        chat(stop=[canary, 3]),
        {"messages": canary},
    ]
    for body in bad:
        response = server.post(CHAT, body)
        assert response.status_code == 400
        assert canary not in response.text
