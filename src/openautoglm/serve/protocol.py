"""HTTP/1.1 on one connection, with deadlines below the application: what trickles or stalls never reaches it."""

from __future__ import annotations

import asyncio
import logging

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from openautoglm.serve.replies import ErrorReply
from openautoglm.serve.settings import EdgeSettings
from openautoglm.serve.strangers import LATE, MALFORMED, Strangers
from openautoglm.units import KIB

# Request line and fields together. The largest that browsers and proxies send are half of it.
MAX_HEADER_BYTES = 32 * KIB
# What an answer may wait for in this process, beside the kernel's buffer of the connection.
_WRITE_BUFFER_BYTES = 8 * KIB

# uvicorn warns of each connection that is no HTTP, which `Strangers` counts; what it calls an error stays one.
_connection_logger = logging.getLogger("uvicorn.error.connection")
_connection_logger.setLevel(logging.ERROR)


def protocol_class(settings: EdgeSettings, visitors: Strangers) -> type[asyncio.Protocol]:
    """Return the protocol of a server's connections, as uvicorn wants it."""

    class Protocol(EdgeProtocol):
        edge = settings
        strangers = visitors

    return Protocol


class EdgeProtocol(H11Protocol):
    """uvicorn's protocol, and clocks that it lacks.

    A request's head has `header_seconds` from its first byte; a connection may be idle for `idle_seconds`, also before
    its first request; the rest of a body that was answered unread has `body_seconds`.
    """

    edge: EdgeSettings
    strangers: Strangers
    _clock: asyncio.TimerHandle | None = None
    _clocked: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: also a connection that never says anything comes to an end."""
        self.logger = _connection_logger
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.timeout_keep_alive_task = self.loop.call_later(self.edge.idle_seconds, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        super().data_received(data)
        self._watch(began=True)

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        super().on_response_complete()
        self._watch(began=bool(self.conn.trailing_data[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        super().connection_lost(exc)
        self._set_clock(None)
        self._unset_keepalive_if_required()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or whose head is too large, and hang up."""
        self.strangers.turned_away(MALFORMED)
        message = f"this is no HTTP/1.1 request, or its head is larger than {MAX_HEADER_BYTES} bytes"
        self._hang_up(ErrorReply(status=400, message=message, code="malformed_http"))

    def _watch(self, *, began: bool) -> None:
        """Set the clock for what the client owes now; one that runs for the same thing goes on."""
        if self.transport.is_closing():
            self._set_clock(None)
        elif self.conn.their_state is h11.IDLE and began:
            self._set_clock("head")
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            self._set_clock("rest")
        else:
            self._set_clock(None)

    def _set_clock(self, owed: str | None) -> None:
        if owed == self._clocked:
            return
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        self._clocked = owed
        if owed == "head":
            self._clock = self.loop.call_later(self.edge.header_seconds, self._head_is_late)
        elif owed == "rest":
            self._clock = self.loop.call_later(self.edge.body_seconds, self.transport.close)

    def _head_is_late(self) -> None:
        self.strangers.turned_away(LATE)
        message = f"the request's head did not arrive within {self.edge.header_seconds:g} s"
        self._hang_up(ErrorReply(status=408, message=message, code="request_timeout"))

    def _hang_up(self, reply: ErrorReply) -> None:
        """Answer below h11, whose state does not matter any more, and close."""
        self._set_clock(None)
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(reply.body())
        phrase = {400: b"Bad Request", 408: b"Request Timeout"}[reply.status]
        head = b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        self.transport.write(head % (reply.status, phrase, len(body)) + body)
        self.transport.close()
