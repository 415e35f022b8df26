"""What a trace tells of a request that is over, from what the application left in its scope: never what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Scope

from openautoglm.serve.answer import Answer
from openautoglm.serve.generation import Generation
from openautoglm.serve.outcome import method_of

# Route -> its name in the conventions for spans; the others are conversations.
_OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}

Attribute = str | int | float | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a request's time, in seconds of the monotonic clock."""

    name: str
    begin: float
    end: float
    attributes: dict[str, Attribute]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A request that is over: name and attributes of its span, and the phases that the edge saw.

    `prompts` are the ids of its prompts in the engine, which got them at `submitted` (monotonic); `guessed` is what the
    edge makes of their times, should the engine not tell. `error` is a code, or empty.
    """

    name: str
    attributes: dict[str, Attribute]
    phases: Sequence[Phase] = ()
    prompts: Sequence[str] = ()
    submitted: float = 0.0
    guessed: Sequence[Phase] = ()
    error: str = ""


def ended_request(scope: Scope, route: str, status: int, error: str) -> Ended:
    """Return what is told of a request that was answered with `status`."""
    attributes: dict[str, Attribute] = {
        "http.request.method": method_of(scope),
        "http.route": route,
        "http.response.status_code": status,
        "openautoglm.request_id": scope["request_id"],
    }
    name = f"{method_of(scope)} {route}"
    answer, generation = scope.get("answer"), scope.get("generation")
    if not isinstance(generation, Generation):
        return Ended(name=name, attributes=attributes, error=error)
    attributes |= {
        "gen_ai.operation.name": _OPERATIONS.get(route, "chat"),
        "gen_ai.usage.input_tokens": generation.usage.num_prompt_tokens,
        "gen_ai.usage.output_tokens": generation.usage.num_completion_tokens,
    }
    if isinstance(answer, Answer):
        attributes |= {"gen_ai.response.id": answer.id, "gen_ai.response.model": answer.model}
    meter, submitted = generation.meter, generation.submitted_seconds
    preparing = Phase(name="prepare", begin=scope["begin_seconds"], end=submitted, attributes={})
    return Ended(
        name=name,
        attributes=attributes,
        phases=(
            preparing,
            *(Phase(name=part, begin=begin, end=end, attributes={}) for part, begin, end in meter.parts),
        ),
        prompts=generation.request_ids,
        submitted=submitted,
        guessed=_guessed(generation),
        error=error,
    )


def _guessed(generation: Generation) -> tuple[Phase, ...]:
    """Return the phases of the prompt that started first, as its first and last tokens tell."""
    meter, submitted = generation.meter, generation.submitted_seconds
    if meter.first is None:
        return ()
    started = min(submitted + meter.queue_seconds, meter.first)
    bounds = {"queue": (submitted, started), "prefill": (started, meter.first)}
    bounds["decode"] = (meter.first, max(meter.last.values()))
    return tuple(Phase(name=name, begin=begin, end=end, attributes={}) for name, (begin, end) in bounds.items())
