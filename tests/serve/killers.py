"""Requests that have ended servers like this one, or might: what is sent, and how it may be answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

CHAT, COMPLETION, TOKENIZE, DETOKENIZE, SPLIT = (
    "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/split",
)  # fmt: skip
JSON = (("Content-Type", "application/json"),)
# Answered, or refused as the client's fault. Nothing here is a reason for the server to be unavailable.
FINE = frozenset({200, 400})
REFUSED = frozenset({400})
KIB64 = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Killer:
    """`body` is sent as JSON unless it is bytes; `statuses` are those that are allowed."""

    body: Any
    path: str = CHAT
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = JSON
    statuses: frozenset[int] = FINE

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True, kw_only=True)
class Hangup:
    """A client that goes: `sent` goes out, so many bytes of the answer are read, then the connection ends.

    `reset` ends it without a goodbye, and `pause_seconds` comes before that.
    """

    sent: bytes
    read_bytes: int = 0
    pause_seconds: float = 0.0
    reset: bool = False


def chat(content: object = "hi", **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}


def field(name: str, value: object, statuses: frozenset[int] = FINE, **more: object) -> Killer:
    return Killer(body=chat(**{name: value, **more}), statuses=statuses)


def prompt(value: object, statuses: frozenset[int] = FINE, **more: object) -> Killer:
    return Killer(path=COMPLETION, body={"prompt": value, "max_tokens": 4, **more}, statuses=statuses)


def raw(body: bytes, *statuses: int, path: str = CHAT, headers: tuple[tuple[str, str], ...] = JSON) -> Killer:
    return Killer(body=body, path=path, headers=headers, statuses=frozenset(statuses or REFUSED))


def schema(value: object) -> Killer:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}
    return field("response_format", wanted)


def nested(depth: int, inner: object = 1) -> object:
    value = inner
    for _ in range(depth):
        value = {"a": value}
    return value


def request(body: object, path: str = COMPLETION) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def long_stream(text: object = "def ", **fields: object) -> bytes:
    return request({"prompt": text, "max_tokens": 900, "ignore_eos": True, "stream": True, **fields})


PARAMETERS = {
    "the hottest temperature": field("temperature", 100),
    "a temperature that is zero in float32": field("temperature", 1e-300),
    "the smallest top_p": field("top_p", 1e-6, temperature=2),
    "a top_k of 2**31": field("top_k", 2**31),
    "a min_p of one": field("min_p", 1, temperature=2),
    "the smallest repetition_penalty": field("repetition_penalty", 1e-6),
    "a repetition_penalty of 1e30": field("repetition_penalty", 1e30),
    "all penalties": field("frequency_penalty", 2, presence_penalty=-2, repetition_penalty=0.01, temperature=1),
    "the smallest seed": field("seed", -(2**63)),
    "a seed of 2**64": field("seed", 2**64),
    "an integer of 4,000 digits": raw(
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 4000 + b"}"
    ),
    "a float of 100,000 digits": raw(
        b'{"prompt": "x", "max_tokens": 1, "temperature": 0.' + b"1" * 100_000 + b"}", 200, 400, path=COMPLETION
    ),
    "the most choices": field("n", 16, temperature=1),
    "a billion choices": field("n", 10**9, REFUSED),
    "minus one choice": field("n", -1, REFUSED),
    "choices times prompts": prompt(["x"] * 64, n=16),
    "max_tokens of 2**63": field("max_tokens", 2**63, REFUSED),
    "negative max_tokens": field("max_tokens", -1, REFUSED),
    "min_tokens above max_tokens": field("min_tokens", 5, REFUSED),
    "min_tokens with a stop that always matches": field("min_tokens", 4, stop=[" ", "e", "a"]),
    "a billion logprobs": field("top_logprobs", 10**9, REFUSED, logprobs=True),
    "the most logprobs of the most choices": field("top_logprobs", 20, logprobs=True, n=16),
    "the most and longest stop strings": field("stop", ["x" * 1024] * 16),
    "100,000 stop strings": field("stop", ["x"] * 100_000, frozenset({400, 413})),
    "stop strings that overlap": field("stop", ["a" * length for length in range(1, 17)]),
    "every token banned that may be": field("logit_bias", {str(token): -100 for token in range(1024)}),
    "a bias for a token outside": field("logit_bias", {"99999999999999999999": 1}, REFUSED),
    "a bias beside the vocabulary": field("logit_bias", {"1000000": 100}),
    "a bias of NaN": raw(b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"5": NaN}}'),
    "a deadline of a nanosecond": field("deadline_seconds", 1e-9, frozenset({400, 429, 504, 503, 408})),
    "a deadline of minus one": field("deadline_seconds", -1, REFUSED),
    "the highest priority": field("priority", -1000),
    "the lowest priority": field("priority", 1000),
    "a model of 64 KiB": field("model", "m" * KIB64, frozenset({404})),
    "a model that climbs": field("model", "../../../etc/passwd", frozenset({404})),
    "a thousand unknown fields": Killer(body=chat() | {f"field_{index}": index for index in range(1000)}),
    "a field that Python knows": field("__class__", {"__init__": 1}),
    "stream_options of nonsense": field("stream_options", {"include_usage": "yes"}, REFUSED, stream=True),
}

TEXTS = {
    **{
        f"64 KiB of {name}": prompt(text * (KIB64 // len(text.encode())))
        for name, text in {
            "one letter": "a", "spaces": " ", "line ends": "\n", "bombs": "💣", "one accent": "e\u0301",
            "one Chinese character": "中", "backslashes": "\\", "digits": "7", "angle brackets": "<|",
        }.items()
    },
    "64 KiB of one letter in a chat": Killer(body=chat("a" * KIB64)),
    "64 KiB of one letter to tokenize": Killer(path=TOKENIZE, body={"prompt": "a" * KIB64}),
    "64 KiB of one letter to split": Killer(path=SPLIT, body={"text": "a" * KIB64, "max_tokens": 64}),
    "a quarter of a megabyte without a sentence": Killer(path=SPLIT, body={"text": "a b" * 80_000, "max_tokens": 32}),
    "an empty prompt": prompt(""),
    "an empty chat": Killer(body=chat("")),
    "nothing but whitespace": prompt(" \t\r\n\u3000\u200b"),
    "nothing but special text": prompt("<|endoftext|>" * 20),
    "special text in a chat": Killer(body=chat("<|user|><|assistant|><|system|>\n[gMASK]<sop>")),
    "nothing but special tokens": prompt([0, 1, 2, 3] * 10),
    "NUL": prompt("\x00"),
    "64 KiB of NUL": prompt("\x00" * KIB64),
    "control characters": prompt("".join(map(chr, range(32))) + "\x7f\x80\x9f"),
    "a lone high surrogate": raw(b'{"prompt": "\\ud800", "max_tokens": 1}', path=COMPLETION),
    "a lone low surrogate": raw(b'{"prompt": "a\\udfffb", "max_tokens": 1}', path=COMPLETION),
    "surrogates the wrong way round": raw(b'{"prompt": "\\udc00\\ud800", "max_tokens": 1}', path=COMPLETION),
    "a pair of surrogates": raw(b'{"prompt": "\\ud83d\\udca3", "max_tokens": 1}', 200, path=COMPLETION),
    "a surrogate in a stop string": raw(b'{"prompt": "x", "stop": "\\ud800"}', path=COMPLETION),
    "no characters": prompt("\ufffe\uffff\U0010ffff\ufdd0"),
    "text that runs backwards": prompt("\u202e" * 500 + "\u2066" * 500),
    "a thousand accents on a letter": prompt("e" + "\u0301" * 1000),
    "10,000 empty messages": Killer(body={"messages": [{"role": "user", "content": ""}] * 10_000}),
    "a content of 10,000 parts": Killer(body=chat([{"type": "text", "text": "a"}] * 10_000)),
    "an assistant's last word": Killer(body={"messages": [{"role": "assistant", "content": "a"}], "max_tokens": 2}),
    "64 prompts, empty": prompt([""] * 64),
    "lists in lists": prompt([[[1]]], REFUSED),
    "the largest token": prompt([2**31 - 1], REFUSED),
    "a token of 2**63": prompt([2**63], REFUSED),
    "100,000 tokens to detokenize": Killer(path=DETOKENIZE, body={"tokens": [5] * 100_000}),
}  # fmt: skip

STRUCTURES = {
    "JSON 64 deep": Killer(body=chat() | {"x": nested(62)}),
    "JSON 65 deep": Killer(body=chat() | {"x": nested(65)}, statuses=REFUSED),
    "JSON 100,000 deep": raw(b'{"messages": ' + b"[" * 100_000),
    "100,000 keys": Killer(body=chat() | {f"k{index}": 0 for index in range(100_000)}, statuses=frozenset({400, 413})),
    "a key twice": raw(
        b'{"prompt": "x", "max_tokens": 1, "max_tokens": 2, "prompt": "y", "max_tokens": 1}', 200, path=COMPLETION
    ),
    "a key twice, of two types": raw(b'{"prompt": "x", "max_tokens": 1, "max_tokens": "1"}', path=COMPLETION),
    "NaN": raw(b'{"prompt": "x", "temperature": NaN}', path=COMPLETION),
    "Infinity": raw(b'{"prompt": "x", "temperature": Infinity}', path=COMPLETION),
    "1e999": raw(b'{"prompt": "x", "temperature": 1e999}', path=COMPLETION),
    "invalid UTF-8": raw(b'{"prompt": "\xff\xfe\xc0\xaf"}', path=COMPLETION),
    "invalid UTF-8 as a key": raw(b'{"prompt": "x", "\xed\xa0\x80": 1}', path=COMPLETION),
    "UTF-16": raw('{"prompt": "x"}'.encode("utf-16"), path=COMPLETION),
    "a byte order mark": raw(b'\xef\xbb\xbf{"prompt": "x"}', path=COMPLETION),
    "garbage behind": raw(b'{"prompt": "x"} {"prompt": "y"}', path=COMPLETION),
    "no JSON at all": raw(b"\x00" * 100, path=COMPLETION),
    "plain text": raw(b'{"prompt": "x"}', 415, path=COMPLETION, headers=(("Content-Type", "text/plain"),)),
    "a form": raw(b"prompt=x", 415, path=COMPLETION, headers=(("Content-Type", "application/x-www-form-urlencoded"),)),
    "several parts": raw(
        b"--x--", 415, path=COMPLETION, headers=(("Content-Type", "multipart/form-data; boundary=x"),)
    ),
    "a bomb of gzip": raw(
        b"\x1f\x8b\x08" + b"\x00" * 1000, 415, path=COMPLETION, headers=(*JSON, ("Content-Encoding", "gzip"))
    ),
    "JSON that says it is UTF-7": raw(
        b'{"prompt": "x", "max_tokens": 1}', 200, 415, path=COMPLETION,
        headers=(("Content-Type", "application/json; charset=utf-7"),),
    ),
    "template variables 60 deep": field("chat_template_kwargs", nested(58)),
    "template variables of 64 KiB": field("chat_template_kwargs", {"x": "a" * KIB64}),
    "template variables named like Python's": field("chat_template_kwargs", {"__class__": 1, "self": 2, "loop": 3}),
    "arguments of a tool call, deep": Killer(
        body={"messages": [{"role": "assistant", "tool_calls": [{"type": "function", "id": "1", "function": {
            "name": "f", "arguments": "[" * 30_000}}]}], "max_tokens": 2}
    ),
    "a schema of 2,000 properties": schema(
        {"type": "object", "properties": {f"p{index}": {"type": "string"} for index in range(2000)}}
    ),
    "a schema 50 deep": schema(nested(50, {"type": "object", "properties": {}})),
    "a schema that refers to itself": schema({"$ref": "#"}),
    "a schema of alternatives": schema({"anyOf": [{"const": index} for index in range(5000)]}),
    "a schema with an endless pattern": schema({"type": "string", "pattern": "^(a|a)*(a|a)*(a|a)*$"}),
    "a schema of impossible sizes": schema({"type": "array", "minItems": 10**9, "items": {"maxLength": 10**12}}),
    "a regex that explodes": field("guided_regex", "(a+)+" * 100 + "$"),
    "a regex of 26,000 letters": field("guided_regex", "a" * 26_000),
    "a regex that repeats too often": field("guided_regex", "((a{1,1000}){1,1000}){1,1000}"),
    "a grammar that goes round": field("guided_grammar", "start: start start | start"),
    "5,000 choices to choose from": field("guided_choice", [f"choice {index}" for index in range(5000)]),
    "1,000 tools": field("tools", [{"type": "function", "function": {"name": f"f{index}"}} for index in range(1000)]),
    "a tool with a strange name": field("tools", [{"type": "function", "function": {"name": "\n<|user|>"}}]),
}  # fmt: skip

PROTOCOL = {
    "a path with NUL": Killer(path="/v1/models/%00", method="GET", body=b"", statuses=frozenset({404})),
    "a path that climbs": Killer(
        path="/v1/models/..%2f..%2fetc%2fpasswd", method="GET", body=b"", statuses=frozenset({404})
    ),
    "a path of 20 KiB": Killer(path="/v1/models/" + "m" * 20_000, method="GET", body=b"", statuses=frozenset({404})),
    "a body where none belongs": Killer(path="/health", method="GET", body=b"x" * 1000, statuses=frozenset({200})),
    "an unknown method": Killer(path=CHAT, method="BREW", body=b"", statuses=frozenset({405})),
    "DELETE": Killer(path=CHAT, method="DELETE", body=b"", statuses=frozenset({405})),
    "a request id that writes lines": Killer(
        body=chat(), headers=(*JSON, ("X-Request-ID", "a" * 5000)), statuses=frozenset({200})
    ),
    "300 header fields": Killer(
        body=chat(), headers=(*JSON, *((f"X-{index}", "y") for index in range(300))), statuses=frozenset({200})
    ),
    "a trace that is none": Killer(body=chat(), headers=(*JSON, ("traceparent", "00-zz-zz-zz")), statuses=FINE),
}

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HANGUPS = {
    "before a byte": Hangup(sent=b""),
    "in the head": Hangup(sent=HEAD[:40]),
    "behind the head": Hangup(sent=HEAD + b"Content-Length: 100\r\n\r\n"),
    "in the body": Hangup(sent=HEAD + b'Content-Length: 100\r\n\r\n{"prompt": '),
    "in a chunk": Hangup(sent=HEAD + b'Transfer-Encoding: chunked\r\n\r\n40\r\n{"prompt"'),
    "behind a chunk of nonsense": Hangup(sent=HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", read_bytes=1),
    "right behind the body": Hangup(sent=long_stream()),
    "right behind the body, reset": Hangup(sent=long_stream(), reset=True),
    "in the queue": Hangup(sent=long_stream(n=16, temperature=1), pause_seconds=0.05),
    "in the queue, reset": Hangup(sent=long_stream(n=16, temperature=1), pause_seconds=0.05, reset=True),
    "in the prompt": Hangup(sent=long_stream([300 + index for index in range(100)] * 10), pause_seconds=0.02),
    "in many prompts": Hangup(sent=long_stream([[301 + index] * 900 for index in range(30)]), pause_seconds=0.1),
    "in the first event": Hangup(sent=long_stream(), read_bytes=1),
    "in the answer": Hangup(sent=long_stream(), read_bytes=8000),
    "in the answer, reset": Hangup(sent=long_stream(), read_bytes=8000, reset=True),
    "in an answer with logprobs": Hangup(sent=long_stream(logprobs=20), read_bytes=8000),
    "in a whole answer": Hangup(sent=long_stream(stream=False), pause_seconds=0.1),
    "in the last event": Hangup(sent=long_stream(max_tokens=1), read_bytes=300, reset=True),
    "behind the last event": Hangup(sent=long_stream(max_tokens=1), pause_seconds=0.2),
    "with the next request sent": Hangup(sent=long_stream(max_tokens=2) * 3, read_bytes=1),
}

KILLERS: dict[str, Killer] = PARAMETERS | TEXTS | STRUCTURES | PROTOCOL
