"""News of a choice, from its state: one event for each token, and one for each choice that is ended without a token."""

from __future__ import annotations

from openautoglm.engine.client import GenerationEvent
from openautoglm.engine.logprobs import Logprobs
from openautoglm.engine.record import RequestRecord
from openautoglm.engine.request import Request, Sequence
from openautoglm.errors import ConstraintError, ConstraintLimitError

_OF_CONSTRAINT = (ConstraintError.__name__, ConstraintLimitError.__name__)


def token_event(
    sequence: Sequence,
    text: str,
    token: int,
    logprobs: Logprobs,
    finish_reason: str | None,
    stop_reason: str | int | None,
    record: RequestRecord | None,
) -> GenerationEvent:
    """Return the news of a generated token; `text` is what became final with it."""
    request = sequence.request
    return GenerationEvent(
        request_id=request.request_id,
        choice=sequence.choice,
        text=text,
        tokens=(token,),
        logprobs=logprobs,
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        prompt_tokens=request.num_prompt_tokens,
        cached_tokens=request.num_cached_tokens,
        completion_tokens=sequence.num_generated,
        queue_seconds=request.queue_seconds,
        prefill_seconds=request.prefill_seconds,
        record=record,
        embedding=b"" if finish_reason is None or request.pooled is None else request.pooled.embedding(),
    )


def end_event(
    sequence: Sequence, finish_reason: str, record: RequestRecord | None, *, error_kind: str | None
) -> GenerationEvent:
    """Return the last news of a choice that is ended from outside, with the text that was held back."""
    request = sequence.request
    return GenerationEvent(
        request_id=request.request_id,
        choice=sequence.choice,
        text=sequence.text.finish(),
        finish_reason=finish_reason,
        error=request.error,
        error_kind=error_kind,
        error_param=_param_of(request, error_kind),
        prompt_tokens=request.num_prompt_tokens,
        cached_tokens=request.num_cached_tokens,
        completion_tokens=sequence.num_generated,
        record=record,
    )


def _param_of(request: Request, error_kind: str | None) -> str | None:
    constraint = request.sampling.constraint
    return None if constraint is None or error_kind not in _OF_CONSTRAINT else constraint.param
