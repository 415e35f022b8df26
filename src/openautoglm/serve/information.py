"""Routes about the server itself: models, tokens, health, metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from openautoglm.engine.client import EngineStatus
from openautoglm.errors import EngineError, InvalidRequestError
from openautoglm.serve.body import body_bytes, read_json
from openautoglm.serve.context import ServeContext
from openautoglm.serve.extension import Extension
from openautoglm.serve.openapi import body_of
from openautoglm.serve.parsing import parse
from openautoglm.serve.prompts import chat_prompt, check_token_ids, completion_prompts
from openautoglm.serve.replies import ErrorReply, ReplyError, json_response
from openautoglm.serve.schemas import DetokenizeBody, TokenizeBody
from openautoglm.serve.slow_start import WEIGHT_HEADER
from openautoglm.serve.tools import read_tools


def check_model(context: ServeContext, model: str | None) -> str:
    """Return the name to answer with; raise `ReplyError` (404) for a model that is not served here."""
    names = context.settings.model_names
    if model is None:
        return names[0]
    if model not in names:
        raise ReplyError(
            ErrorReply(
                status=404,
                message=f"the model {model[:200]!r} is not served here: this server has {', '.join(names)}",
                param="model",
                code="model_not_found",
            )
        )
    return model


@dataclass(slots=True)
class Heartbeat:
    """Whether the engine's counter still moves: an engine that hangs may well answer questions."""

    value: int | None = None
    changed: float = field(default_factory=time.monotonic)

    def alive(self, status: EngineStatus, stalled_seconds: float) -> bool:
        """Take note of a status; return whether the counter moved within `stalled_seconds`."""
        now = time.monotonic()
        if status.heartbeat != self.value:
            self.value, self.changed = status.heartbeat, now
        return now - self.changed < stalled_seconds


def information_routes(context: ServeContext) -> APIRouter:
    """Return the router of these routes."""
    router = APIRouter()
    _add_models(router, context)
    _add_tokens(router, context)
    _add_health(router, context)
    return router


def _add_models(router: APIRouter, context: ServeContext) -> None:
    def model_object(name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": context.created_seconds,
            "owned_by": "openautoglm",
            "root": context.description.model,
            "max_model_len": context.description.context_tokens,
        }

    @router.get("/v1/models")
    async def list_models() -> Response:
        """List the names of the served model."""
        return json_response({"object": "list", "data": [model_object(name) for name in context.settings.model_names]})

    @router.get("/v1/models/{model:path}")
    async def show_model(model: str) -> Response:
        """Describe one model; names with slashes are one name."""
        return json_response(model_object(check_model(context, model)))


def _add_tokens(router: APIRouter, context: ServeContext) -> None:
    tokenizer = context.tokenizer

    @router.post("/tokenize", openapi_extra=body_of(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        """Return the tokens of a prompt, or of messages rendered with the model's template."""
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            return await _tokenize(context, parse(TokenizeBody, await read_json(request, context.settings, charge)))

    @router.post("/detokenize", openapi_extra=body_of(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        """Return the text of tokens, special ones included."""
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = parse(DetokenizeBody, await read_json(request, context.settings, charge))
            check_model(context, body.model)

            def work() -> str:
                check_token_ids(body.tokens, context.description.vocab_size, "tokens")
                return tokenizer.decode(body.tokens, skip_special_tokens=False)

            return json_response({"prompt": await context.in_text_thread(work)})


async def _tokenize(context: ServeContext, body: TokenizeBody) -> Response:
    check_model(context, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("send either prompt or messages", param="prompt")
    if body.messages is not None:
        generates = body.add_generation_prompt is not False
        prompt = await chat_prompt(
            context,
            body.messages,
            add_generation_prompt=generates,
            variables=body.chat_template_kwargs,
            # There is no place for notices in this answer.
            tools=read_tools(body.tools or [], Extension(strict=True)),
        )
    else:
        special = body.add_special_tokens is not False
        prompt = (await completion_prompts(context, body.prompt, add_special_tokens=special))[0]
    texts = [context.tokenizer.token_text(token) for token in prompt.tokens] if body.return_token_strs else None
    return json_response(
        {
            "count": len(prompt.tokens),
            "max_model_len": context.description.context_tokens,
            "tokens": prompt.tokens,
            "token_strs": texts,
        }
    )


def _add_health(router: APIRouter, context: ServeContext) -> None:
    heartbeat = Heartbeat()

    async def status_or_none() -> EngineStatus | None:
        try:
            return await context.status()
        except EngineError:
            # "Does not answer" is what the callers report.
            return None

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> Response:
        """Say whether the engine lives (its heartbeat moves) and is ready; 200 only if it takes requests now."""
        status = await status_or_none()
        live = status is not None and heartbeat.alive(status, context.settings.stalled_seconds)
        ready = live and status is not None and status.ready and not context.drain.draining
        weight = round(context.slow_start.weight, 3) if ready else 0.0
        state = {
            "status": "ok" if ready else "draining" if context.drain.draining else "unavailable",
            "live": live,
            "ready": ready,
            "draining": context.drain.draining,
            "weight": weight,
        }
        return json_response(state, status=200 if ready else 503, headers={WEIGHT_HEADER: f"{weight:.3f}"})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        text = context.metrics.render(await status_or_none(), context.watchdog, weight=context.slow_start.weight)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})
