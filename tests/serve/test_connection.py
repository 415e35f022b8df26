"""Answers and clients that go: what a request held is freed, however its stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from openautoglm.serve.connection import EventStream


def test_a_client_that_goes_while_its_stream_is_closed_stops_nothing() -> None:
    closed: list[str] = []
    leave = asyncio.Event()

    async def close() -> None:
        leave.set()
        await asyncio.sleep(0.05)
        closed.append("closed")

    async def events() -> AsyncIterator[bytes]:
        yield b"data: [DONE]\n\n"

    async def receive() -> dict[str, object]:
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        return

    async def serve() -> None:
        await EventStream(events(), close, client_seconds=5)({"type": "http"}, receive, send)

    asyncio.run(serve())
    assert closed == ["closed"]
