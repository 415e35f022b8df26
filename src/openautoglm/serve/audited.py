"""Writes each request that was let in to the audit log: a line before it runs, and one when it has ended."""

from __future__ import annotations

import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openautoglm.log import get_logger
from openautoglm.serve.access import Caller, role_of
from openautoglm.serve.answer import Answer
from openautoglm.serve.audit import AuditLog, Value, WhenFull
from openautoglm.serve.generation import Generation
from openautoglm.serve.keys import Role
from openautoglm.serve.metrics import Metrics
from openautoglm.serve.outcome import method_of, outcome
from openautoglm.serve.replies import SERVER_ERROR, ErrorReply

_RETRY_SECONDS = 5
_logger = get_logger(__name__)


class Audited:
    """Wraps the application, inside of what refuses strangers: they could fill the log."""

    def __init__(self, app: ASGIApp, audit: AuditLog, metrics: Metrics, paths: Iterable[str]) -> None:
        self._app = app
        self._audit = audit
        self._metrics = metrics
        # A path with a name in it is free text of the client.
        self._paths = frozenset(path for path in paths if "{" not in path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if role_of(scope["path"]) not in (Role.USER, Role.ADMIN):
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        caller = scope["caller"]
        entry: dict[str, Value] = {
            "request_id": scope["request_id"],
            "caller": caller.name if isinstance(caller, Caller) else "",
            "method": method_of(scope),
            "path": path,
        }
        if not self._append("request", entry) and self._audit.when_full is WhenFull.BLOCK:
            await _REFUSAL.response(scope["path"], scope["request_id"])(scope, receive, send)
            return
        begin = time.monotonic()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            ended: dict[str, Value] = {
                "request_id": scope["request_id"],
                "status": status,
                "seconds": round(time.monotonic() - begin, 3),
            }
            self._append("end", ended | outcome(scope) | _redactions(scope))

    def _append(self, event: str, entry: dict[str, Value]) -> bool:
        missed = self._audit.num_missed
        written = self._audit.append(event, entry)
        if not written and missed == 0:
            _logger.error("the audit log cannot be written: its disk may be full")
        elif written and missed:
            _logger.warning("the audit log can be written again; %d entries are missing", missed)
        self._metrics.audit_missed(self._audit.num_missed)
        return written


def _redactions(scope: Scope) -> dict[str, Value]:
    found: dict[str, Value] = {}
    answer, generation = scope.get("answer"), scope.get("generation")
    if isinstance(answer, Answer):
        for where, counts in answer.extension.redactions.items():
            found[f"redacted_{where}"] = dict(counts)
    if isinstance(generation, Generation) and generation.redacted:
        found["redacted_answer"] = dict(generation.redacted)  # also of an answer that was cut off
    return found


_REFUSAL = ErrorReply(
    status=503,
    message="this server writes down every request, and cannot now: try again later",
    type=SERVER_ERROR,
    code="audit_unavailable",
    headers=(("Retry-After", str(_RETRY_SECONDS)),),
)
