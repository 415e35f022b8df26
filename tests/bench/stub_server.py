"""A server of a few lines whose answers are scripts: bytes, pauses and what else a test wants to see."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

Answer = Callable[[dict[str, object], asyncio.StreamWriter], Awaitable[None]]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@dataclass
class StubServer:
    """What it was asked, and when each request's answer may begin."""

    url: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)


def event(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def piece(text: str) -> bytes:
    return event({"id": "x", "choices": [{"index": 0, "text": text, "finish_reason": None}]})


def usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}})


DONE = event(b"[DONE]")


def plain(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def stub_server(answer: Answer) -> AsyncIterator[StubServer]:
    """Answer each request by `answer`, which writes whole responses; the connection closes behind it."""
    stub = StubServer()
    open_ones: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_ones[task] = writer
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            size = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
            body = json.loads(await reader.readexactly(size) or b"{}")
            stub.bodies.append(body)
            await answer(body, writer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        try:
            yield stub
        finally:
            for task, writer in open_ones.items():
                task.cancel()
                writer.close()
            await asyncio.gather(
                *open_ones, *(writer.wait_closed() for writer in open_ones.values()), return_exceptions=True
            )
