"""The outermost layer: request ids, access, refusal while draining, and the last net for errors. Plain ASGI."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openautoglm.log import get_logger, request_ids
from openautoglm.serve.access import role_of
from openautoglm.serve.body import ClientGoneError
from openautoglm.serve.context import ServeContext
from openautoglm.serve.edge_metrics import UNNAMED_CODE
from openautoglm.serve.generation import Generation
from openautoglm.serve.keys import Role
from openautoglm.serve.limits import Allowance
from openautoglm.serve.outcome import log_request
from openautoglm.serve.replies import OVERLOADED, SERVER_ERROR, ErrorReply, internal_reply, reply_for
from openautoglm.serve.trace_context import TraceContext, parse_traceparent
from openautoglm.serve.trace_parts import ended_request

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_DRAIN_RETRY_SECONDS = 10

_logger = get_logger(__name__)


class Edge:
    """Wraps the application: what `Access` does not let through never reaches a route."""

    def __init__(self, app: ASGIApp, context: ServeContext) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's event stream."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # No WebSocket route exists.
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name: value for name, value in reversed(scope["headers"])}  # noqa: C416  the first of equals wins
        scope["request_id"] = _request_id(headers.get(b"x-request-id"))
        scope["begin_seconds"] = time.monotonic()
        scope["trace"] = trace = parse_traceparent(headers.get(b"traceparent"))
        _set_ids(scope, trace)
        started = _Started(scope, send)
        refusal = self._admit(scope, _credentials(headers))
        if refusal is None and self._context.tracing is not None and role_of(scope["path"]) is Role.USER:
            scope["span"] = self._context.tracing.begin(trace, scope["begin_seconds"])
            scope["trace"] = trace = self._context.tracing.context_of(scope["span"])
            started.headers.append((b"traceparent", trace.header().encode("ascii")))
            _set_ids(scope, trace)
        try:
            if refusal is not None:
                await refusal.response(scope["path"], scope["request_id"])(scope, receive, started.send)
            else:
                await self._run(scope, receive, started)
        finally:
            self._account(scope, started.status, refusal)

    def _account(self, scope: Scope, status: int, refusal: ErrorReply | None) -> None:
        """Count and log a request that is over."""
        metrics = self._context.metrics
        metrics.http_request(_route(scope), status)
        generation, code = scope.get("generation"), ""
        if status >= 400:
            code = (scope.get("error_code") if refusal is None else refusal.code) or UNNAMED_CODE
            metrics.edge.error(status, code)
        elif isinstance(generation, Generation) and generation.error is not None:
            reply = reply_for(generation.error)
            code = (None if reply is None else reply.code) or "internal_error"
            metrics.edge.failed_stream(code)
        if self._context.tracing is not None and "span" in scope:
            self._context.tracing.end(scope["span"], ended_request(scope, _route(scope), status, code))
        if _logger.isEnabledFor(logging.INFO):
            log_request(scope, _route(scope), status)

    def _admit(self, scope: Scope, authorization: bytes | None) -> ErrorReply | None:
        """Find the request's caller and its allowance, and count it in there; return why it goes no further."""
        path = scope["path"]
        caller = self._context.access.decide(path, authorization)
        scope["allowance"] = None
        if isinstance(caller, ErrorReply):
            return caller
        scope["caller"] = caller
        refusal = self._refusal(path)
        if refusal is not None or role_of(path) is not Role.USER:
            return refusal
        allowance = scope["allowance"] = self._context.limits.of(caller)
        return None if allowance is None else allowance.enter()

    async def _run(self, scope: Scope, receive: Receive, started: _Started) -> None:
        started.entered = True
        counted = role_of(scope["path"]) in (Role.USER, Role.ADMIN)
        if counted:
            self._context.drain.enter()
        try:
            await self._app(scope, receive, started.send)
        except ClientGoneError:
            started.status = 499
        except Exception:
            # The application's own handler has answered, unless the answer had begun: then it ends here, cut short.
            _logger.exception("request %s failed", scope["request_id"])
            if started.status == 0:
                reply = internal_reply(scope["request_id"])
                await reply.response(scope["path"], scope["request_id"])(scope, receive, started.send)
        finally:
            if counted:
                self._context.drain.leave()
            started.leave()

    def _refusal(self, path: str) -> ErrorReply | None:
        """Return why the server takes nothing now; operators and probes are answered all the same."""
        if role_of(path) is not Role.USER:
            return None
        if self._context.drain.draining:
            return ErrorReply(
                status=503,
                message="the server is stopping: try again later, or another server",
                type=SERVER_ERROR,
                code="draining",
                headers=(("Retry-After", str(_DRAIN_RETRY_SECONDS)),),
            )
        if self._context.drain.num_active >= self._context.settings.max_requests:
            return ErrorReply(
                status=429,
                message=f"{self._context.settings.max_requests} requests are under way, which is the limit: try again "
                "later",
                type=OVERLOADED,
                code="overloaded",
                headers=(("Retry-After", "1"),),
            )
        return None


class _Started:
    """Adds the request id and what the caller has left to the response, and knows whether one has begun."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.status = 0
        self.entered = False
        self.headers: list[tuple[bytes, bytes]] = []

    def leave(self) -> None:
        """Count the request out of its caller's allowance; safe to call twice."""
        allowance: Allowance | None = self._scope["allowance"]
        if allowance is not None and self.entered:
            self.entered = False
            allowance.leave()

    async def send(self, message: Message) -> None:
        """Send a message of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            allowance: Allowance | None = self._scope["allowance"]
            told = [] if allowance is None else allowance.headers()
            request_id = (b"x-request-id", self._scope["request_id"].encode("ascii"))
            message = {**message, "headers": [*message.get("headers", ()), request_id, *told, *self.headers]}
        elif not message.get("more_body", False):
            # Before the client sees the end, and sends the next one.
            self.leave()
        await self._send(message)


def _credentials(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the authorization; Anthropic's clients send the key alone, in a field of its own."""
    key = headers.get(b"x-api-key")
    return headers.get(b"authorization", None if key is None else b"Bearer " + key)


def _set_ids(scope: Scope, trace: TraceContext | None) -> None:
    ids = {"request_id": scope["request_id"]}
    if trace is not None:
        ids |= {"trace_id": trace.trace_id, "span_id": trace.span_id}
    request_ids.set(ids)


def _request_id(given: bytes | None) -> str:
    """Return the client's id where it is one, else a new one: what is logged must not be free text."""
    text = "" if given is None else given.decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """Return the path of the route that answered; a path that is none would be the client's free text."""
    return str(getattr(scope.get("route"), "path", "none"))
