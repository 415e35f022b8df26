"""POST /v1/embeddings: texts or tokens as vectors of length 1, pooled from the model's final hidden states."""

from __future__ import annotations

import base64

import msgspec
import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from openautoglm.engine.client import Pooling
from openautoglm.errors import InvalidRequestError
from openautoglm.serve.answer import Answer
from openautoglm.serve.answering import new_answer, tell_changes
from openautoglm.serve.body import body_bytes, read_json
from openautoglm.serve.collect import CollectedList
from openautoglm.serve.connection import WholeAnswer, unless_gone
from openautoglm.serve.context import ServeContext
from openautoglm.serve.generation import Generation, start
from openautoglm.serve.intake import AnswerCharge, BodyCharge
from openautoglm.serve.metrics import RequestMeter
from openautoglm.serve.openapi import body_of
from openautoglm.serve.parsing import parse
from openautoglm.serve.priority import wanted_priority
from openautoglm.serve.prompts import completion_prompts
from openautoglm.serve.replies import ReplyError, failed_reply
from openautoglm.serve.sampling import deadline_of
from openautoglm.serve.schemas import EmbeddingsBody
from openautoglm.spec.sampling import SamplingParams

# The engine draws a token at the end of each prompt, as for a completion; nobody reads it.
_SAMPLING = SamplingParams(temperature=0.0, max_tokens=1)


def embeddings_routes(context: ServeContext) -> APIRouter:
    """Return the router of this route."""
    router = APIRouter()

    @router.post("/v1/embeddings", openapi_extra=body_of(EmbeddingsBody))
    async def embeddings(request: Request) -> Response:
        """Turn texts or tokens into vectors."""
        meter = context.metrics.meter()
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = parse(EmbeddingsBody, await read_json(request, context.settings, charge))
            return await unless_gone(request.receive, _embed(context, request, body, charge, meter))

    return router


async def _embed(
    context: ServeContext, request: Request, body: EmbeddingsBody, charge: BodyCharge, meter: RequestMeter
) -> Response:
    answer = request.scope["answer"] = new_answer(context, body.model, "embd-")
    answer.extension.ignored_fields(body, ())
    special = body.add_special_tokens is not False
    deadline = deadline_of(body, request.scope["begin_seconds"])
    prompts = await completion_prompts(
        context, body.input, add_special_tokens=special, param="input", deadline=deadline
    )
    tell_changes(answer, prompts)
    body.input = None
    generation = start(
        context,
        prompts,
        _SAMPLING,
        completion_id=answer.id,
        priority=wanted_priority(body.priority, None),
        deadline=deadline,
        caller=request.scope["caller"],
        allowance=request.scope["allowance"],
        meter=meter,
        on_accepted=charge.release,
        pooling=Pooling(body.pooling or "last"),
    )
    request.scope["generation"] = generation
    answer_charge = context.intake.answer()
    try:
        vectors = await _vectors(generation, answer_charge)
        data = _data(vectors, body, answer_charge)
        return WholeAnswer(_whole(answer, generation, data), answer_charge.release)
    except BaseException:
        answer_charge.release()
        raise
    finally:
        await generation.close()


async def _vectors(generation: Generation, charge: AnswerCharge) -> list[bytes]:
    """Wait for the vectors of all prompts and return them in order, as little-endian float32."""
    found: dict[int, bytes] = {}
    async for prompt, event in generation.events():
        if event.finish_reason is None:
            continue
        if not event.embedding:
            raise ReplyError(failed_reply("the model's hidden states are no vector of numbers (NaN, or all zero)"))
        charge.add(len(event.embedding))
        found[prompt] = event.embedding
    return [found[index] for index in range(len(found))]


def _data(vectors: list[bytes], body: EmbeddingsBody, charge: AnswerCharge) -> CollectedList:
    data = CollectedList()
    for index, vector in enumerate(vectors):
        numbers = _shortened(np.frombuffer(vector, dtype="<f4"), body.dimensions)
        if body.encoding_format == "base64":
            written: object = base64.b64encode(numbers.tobytes()).decode("ascii")
        else:
            written = numbers.tolist()
        data.add([{"object": "embedding", "index": index, "embedding": written}], charge)
    return data


def _shortened(
    vector: np.ndarray[tuple[int], np.dtype[np.float32]], dimensions: int | None
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the first numbers, made a vector of length 1 again: for models that were trained to be cut so."""
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise InvalidRequestError(
            f"dimensions must be at most {len(vector)}, which is what the model has, got {dimensions}",
            param="dimensions",
        )
    first = vector[:dimensions].astype(np.float64)
    length = float(np.linalg.norm(first))
    return (first / length if length else first).astype("<f4")


def _whole(answer: Answer, generation: Generation, data: CollectedList) -> bytes:
    usage = generation.usage
    return msgspec.json.encode(
        {
            "object": "list",
            "id": answer.id,
            "model": answer.model,
            "data": data.raw(),
            "usage": {
                "prompt_tokens": usage.num_prompt_tokens,
                "total_tokens": usage.num_prompt_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
            },
            **answer.told(),
        }
    )
