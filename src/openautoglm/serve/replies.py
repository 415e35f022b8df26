"""Errors as clients expect them, whatever went wrong.

OpenAI's are {"error": {"message", "type", "param", "code"}}; below /v1/messages they are Anthropic's,
{"type": "error", "error": {"type", "message"}, "request_id"}, with `param` and `code` as above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from openautoglm.errors import (
    DeadlineError,
    EngineError,
    MemoryPressureError,
    OverloadedError,
    RequestError,
    TemplateError,
)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
OVERLOADED = "overloaded_error"
_ENGINE_RETRY_SECONDS = 5

MESSAGES_PATH = "/v1/messages"
# HTTP status -> type of an error there; others are requests that are wrong, or faults of the server.
_MESSAGES_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReply:
    """One error: HTTP status, and the fields that clients read. `code` is text or None, never the HTTP number."""

    status: int
    message: str
    type: str = INVALID_REQUEST
    param: str | None = None
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def body(self) -> dict[str, object]:
        """Return the JSON object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body_for(self, path: str, request_id: str) -> dict[str, object]:
        """Return the JSON object as clients of a path read it; `path` is the one that routes match."""
        if path != MESSAGES_PATH and not path.startswith(f"{MESSAGES_PATH}/"):
            return self.body()
        kind = _MESSAGES_TYPES.get(self.status, INVALID_REQUEST if self.status < 500 else "api_error")
        error = {"type": kind, "message": self.message, "param": self.param, "code": self.code}
        return {"type": "error", "error": error, "request_id": request_id}

    def response(self, path: str, request_id: str) -> Response:
        """Return the HTTP response to a request for a path."""
        return json_response(self.body_for(path, request_id), status=self.status, headers=dict(self.headers))


class ReplyError(Exception):
    """Ends the handling of a request with this reply."""

    def __init__(self, reply: ErrorReply) -> None:
        super().__init__(reply.message)
        self.reply = reply


# What `reply_for` knows.
KNOWN_ERRORS = (
    ReplyError, RequestError, TemplateError, OverloadedError, DeadlineError, EngineError, HTTPException,
)  # fmt: skip


def json_response(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(msgspec.json.encode(value), status_code=status, headers=headers, media_type="application/json")


def reply_for(error: Exception) -> ErrorReply | None:
    """Return what a client is told of an error, None for one that is a fault of this server.

    Messages of the exception tree's request side are written for the client; whatever else happened stays in the log.
    """
    if isinstance(error, ReplyError):
        return error.reply
    if isinstance(error, RequestError):
        return ErrorReply(status=error.http_status, message=str(error), param=error.param, code=error.code)
    if isinstance(error, TemplateError):
        return ErrorReply(status=400, message=str(error), param="messages", code="chat_template_error")
    if isinstance(error, OverloadedError):
        seconds = max(1, math.ceil(error.retry_after_seconds))
        return ErrorReply(
            status=error.http_status,
            message=str(error),
            type=OVERLOADED,
            code="memory_pressure" if isinstance(error, MemoryPressureError) else "overloaded",
            headers=(("Retry-After", str(seconds)),),
        )
    if isinstance(error, DeadlineError):
        return ErrorReply(
            status=error.http_status,
            message=str(error),
            type="timeout_error",
            param="deadline_seconds",
            code="deadline_missed",
        )
    if isinstance(error, EngineError):
        # What it says is for the operator (paths, exit codes): the log has it.
        return ErrorReply(
            status=error.http_status,
            message="the engine is not available now: it may be starting again, so try again in a moment",
            type=SERVER_ERROR,
            code="engine_unavailable",
            headers=(("Retry-After", str(_ENGINE_RETRY_SECONDS)),),
        )
    if isinstance(error, HTTPException):
        return _reply_for_http(error)
    return None


def failed_reply(message: str) -> ErrorReply:
    """Return what a client is told of its own request failing in the engine; the message was written for it."""
    return ErrorReply(status=503, message=message, type=SERVER_ERROR, code="generation_failed")


def internal_reply(request_id: str) -> ErrorReply:
    """Return what a client is told of a fault of this server: where to find it in the log, nothing else."""
    return ErrorReply(
        status=500,
        message=f"internal error; the server's log has it under request {request_id}",
        type=SERVER_ERROR,
        code="internal_error",
    )


def _reply_for_http(error: HTTPException) -> ErrorReply:
    headers = tuple((error.headers or {}).items())
    known = {
        404: ("there is no such path on this server", "not_found"),
        405: ("this path does not take that method", "method_not_allowed"),
    }
    message, code = known.get(error.status_code, (str(error.detail), None))
    return ErrorReply(status=error.status_code, message=message, code=code, headers=headers)
