"""How a request went, from what the application left in its scope: numbers, and names of this server's own."""

from __future__ import annotations

import logging
import time

from starlette.types import Scope

from openautoglm.log import get_logger
from openautoglm.serve.access import Caller
from openautoglm.serve.answer import Answer
from openautoglm.serve.edge_metrics import UNNAMED_CODE
from openautoglm.serve.generation import Generation

KNOWN_METHODS = ("GET", "POST", "HEAD")

_logger = get_logger(__name__)


def outcome(scope: Scope) -> dict[str, str | int | bool]:
    """Return the error's code if it failed, and the answer's id and tokens if it generated."""
    found: dict[str, str | int | bool] = {}
    if "error_code" in scope:
        found["error"] = scope["error_code"] or UNNAMED_CODE
    answer, generation = scope.get("answer"), scope.get("generation")
    if isinstance(answer, Answer) and isinstance(generation, Generation):
        found |= {
            "answer_id": answer.id,
            "prompt_tokens": generation.usage.num_prompt_tokens,
            "completion_tokens": generation.usage.num_completion_tokens,
            "finished": generation.finished,
        }
    return found


def method_of(scope: Scope) -> str:
    """Return the method; one that is made up would be the client's free text."""
    return scope["method"] if scope["method"] in KNOWN_METHODS else "other"


def log_request(scope: Scope, route: str, status: int) -> None:
    """Write the line of a request that is over; its numbers are fields of a line of JSON."""
    seconds = time.monotonic() - scope["begin_seconds"]
    caller, generation = scope.get("caller"), scope.get("generation")
    fields: dict[str, object] = {
        "method": method_of(scope),
        "route": route,
        "status": status,
        "seconds": round(seconds, 6),
        "caller": caller.name if isinstance(caller, Caller) else None,
    }
    fields |= outcome(scope)
    if isinstance(generation, Generation):
        fields |= {name: round(value, 6) for name, value in generation.meter.seconds().items()}
    message = "request %s: %s %s answered %d in %.3f s"
    arguments = (scope["request_id"], fields["method"], route, status, seconds)
    _logger.log(logging.INFO, message, *arguments, extra={"fields": fields})
