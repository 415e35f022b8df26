"""Work that ends when its client goes, and streams of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openautoglm.serve.body import ClientGoneError

T = TypeVar("T")

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def event_bytes(value: object) -> bytes:
    """Return one server-sent event with a JSON value."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_event_bytes(value: Mapping[str, object]) -> bytes:
    """Return one server-sent event that is named as its JSON value's `type`."""
    return b"event: " + str(value["type"]).encode("ascii") + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, which the client's leaving cancels; raise `ClientGoneError` then."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class WholeAnswer(Response):
    """A JSON body; `release` is called when it has been sent, or cannot be."""

    def __init__(self, body: bytes, release: Callable[[], None]) -> None:
        super().__init__(body, media_type="application/json")
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()


class EventStream(Response):
    """A stream of server-sent events; `close` is awaited however it ends.

    A client that takes nothing for `client_seconds` has gone, whatever its system says: what waits for it is memory.
    """

    def __init__(
        self, events: AsyncIterator[bytes], close: Callable[[], Awaitable[None]], *, client_seconds: float
    ) -> None:
        super().__init__()
        self._events = events
        self._close = close
        self._closing: asyncio.Future[None] | None = None
        self._client_seconds = client_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes."""
        try:
            await unless_gone(receive, self._send_all(send))
        except (ClientGoneError, OSError):  # TimeoutError is one
            # Nobody is left to answer; `close` frees what the request held.
            return
        finally:
            await self._close_once()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        async for event in self._events:
            async with asyncio.timeout(self._client_seconds):
                await send({"type": "http.response.body", "body": event, "more_body": True})
        # What the request held is free before its client sees the end, and sends the next one.
        await self._close_once()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _close_once(self) -> None:
        """Close, once for all who ask; a client that goes in the middle of it stops nothing."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)
