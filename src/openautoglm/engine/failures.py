"""What went wrong with a request, from its last event to an error of this package."""

from __future__ import annotations

from openautoglm.engine.client import GenerationEvent
from openautoglm.engine.request import Request
from openautoglm.errors import (
    ConstraintError,
    ConstraintLimitError,
    DeadlineError,
    EngineError,
    OpenAutoGLMError,
    OverloadedError,
)

_RETRY_SECONDS = 1.0


def without_token(request: Request) -> OpenAutoGLMError:
    """Return why a request ends for which no token could be drawn."""
    constraint = request.sampling.constraint
    if constraint is None:
        return EngineError("the model's output is not a number (NaN)")
    message = (
        f"no token is allowed by {constraint.param} and the other settings together, such as min_tokens with "
        "stop_token_ids: ask for less at once"
    )
    return ConstraintError(message, param=constraint.param)


def event_error(event: GenerationEvent) -> OpenAutoGLMError:
    """Return the error that an event with `finish_reason` "error" tells of; one without a kind is an `EngineError`."""
    message = event.error or "the request failed"
    match event.error_kind:
        case DeadlineError.__name__:
            return DeadlineError(message)
        case ConstraintLimitError.__name__:
            return ConstraintLimitError(message, param=event.error_param)
        case ConstraintError.__name__:
            return ConstraintError(message, param=event.error_param)
        case OverloadedError.__name__:
            return OverloadedError(message, retry_after_seconds=_RETRY_SECONDS)
    return EngineError(message)
