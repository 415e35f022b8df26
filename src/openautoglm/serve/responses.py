"""/v1/responses: OpenAI's newer API. Kept only for who asks, and for its own tenant."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from openautoglm.engine.client import GenerationEvent
from openautoglm.serve.access import Caller
from openautoglm.serve.answer import Writer
from openautoglm.serve.answering import Asked, ChatProtocol, answer_chat
from openautoglm.serve.body import body_bytes, read_json
from openautoglm.serve.connection import unless_gone
from openautoglm.serve.context import ServeContext
from openautoglm.serve.generation import Usage
from openautoglm.serve.intake import AnswerCharge
from openautoglm.serve.messages import count_chat
from openautoglm.serve.openapi import body_of
from openautoglm.serve.parsing import parse
from openautoglm.serve.replies import ErrorReply, ReplyError, json_response
from openautoglm.serve.response_items import ResponseItems
from openautoglm.serve.response_store import Draft, ResponseStore, StoredResponse
from openautoglm.serve.responses_body import ResponsesBody, ResponsesCountBody, chat_body, input_messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a response repeats of its request, and where it goes: `draft` and `messages` only where it is stored."""

    told: dict[str, object]
    tenant: str
    draft: Draft | None = None
    messages: bytes = b""


def responses_routes(context: ServeContext) -> APIRouter:
    """Return the router of these routes."""
    router = APIRouter()
    settings = context.settings
    store = ResponseStore(
        context.intake.answers, max_responses=settings.max_stored_responses, seconds=settings.stored_seconds
    )

    @router.post("/v1/responses", openapi_extra=body_of(ResponsesBody))
    async def responses(request: Request) -> Response:
        """Answer input, behind that of a stored response where one is named."""
        meter = context.metrics.meter()
        async with context.intake.body(body_bytes(request, settings)) as charge:
            body = parse(ResponsesBody, await read_json(request, settings, charge))
            caller: Caller = request.scope["caller"]
            earlier = _earlier(store, caller, body)
            charge.add_objects(len(earlier))
            chat = chat_body(body, earlier)
            wish = _wish(store, caller, body, earlier)
            del body, earlier
            protocol = ChatProtocol(prefix="resp_", writer=lambda asked: ResponsesWriter(asked, wish))
            try:
                return await unless_gone(request.receive, answer_chat(context, request, chat, charge, meter, protocol))
            except BaseException:
                if wish.draft is not None:
                    wish.draft.close()
                raise

    @router.post("/v1/responses/input_tokens", openapi_extra=body_of(ResponsesCountBody))
    async def input_tokens(request: Request) -> Response:
        """Return how many tokens a response's input has, also one that is longer than the context."""
        async with context.intake.body(body_bytes(request, settings)) as charge:
            body = parse(ResponsesCountBody, await read_json(request, settings, charge))
            chat = chat_body(body, _earlier(store, request.scope["caller"], body))
            return json_response({"object": "response.input_tokens", "input_tokens": await count_chat(context, chat)})

    @router.get("/v1/responses/{response_id}")
    async def show(request: Request, response_id: str) -> Response:
        """Return a stored response."""
        stored = _find(store, request.scope["caller"], response_id)
        return Response(stored.response, media_type="application/json")

    @router.delete("/v1/responses/{response_id}")
    async def delete(request: Request, response_id: str) -> Response:
        """Forget a stored response."""
        if not store.delete(request.scope["caller"].namespace, response_id):
            raise _unknown(response_id, "response_id")
        return json_response({"id": response_id, "object": "response", "deleted": True})

    return router


def _find(store: ResponseStore, caller: Caller, response_id: str, param: str = "response_id") -> StoredResponse:
    stored = store.find(caller.namespace, response_id)
    if stored is None:
        raise _unknown(response_id, param)
    return stored


def _unknown(response_id: str, param: str) -> ReplyError:
    message = (
        f"no response {response_id[:128]!r} is kept here: only those that were asked for with store true are, for a "
        "while, until the server ends"
    )
    return ReplyError(ErrorReply(status=404, message=message, param=param, code="response_not_found"))


def _earlier(store: ResponseStore, caller: Caller, body: ResponsesCountBody) -> list[dict[str, Any]]:
    """Return the conversation that the input goes on; instructions do not go along, as at OpenAI."""
    if body.previous_response_id is None:
        return []
    stored = _find(store, caller, body.previous_response_id, "previous_response_id")
    messages: list[dict[str, Any]] = msgspec.json.decode(stored.messages)
    return messages


def _wish(store: ResponseStore, caller: Caller, body: ResponsesBody, earlier: list[dict[str, Any]]) -> Wish:
    told: dict[str, object] = {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "previous_response_id": body.previous_response_id,
        "reasoning": body.reasoning or {"effort": None, "summary": None},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "parallel_tool_calls": (body.model_extra or {}).get("parallel_tool_calls") is not False,
        "store": bool(body.store),
        "text": body.text or {"format": {"type": "text"}},
        "truncation": body.truncation or "disabled",
    }
    if not body.store:
        return Wish(told=told, tenant=caller.namespace)
    messages = msgspec.json.encode([*earlier, *input_messages(body)])
    draft = store.begin(len(messages) + len(msgspec.json.encode(told)))
    return Wish(told=told, tenant=caller.namespace, draft=draft, messages=messages)


class ResponsesWriter(Writer):
    """A response of items, or the events that it is made of."""

    def __init__(self, asked: Asked, wish: Wish) -> None:
        self._answer = asked.answer
        self._wish = wish
        self._sampling = asked.sampling
        self._intake = asked.context.intake
        self._charge: AnswerCharge | None = None
        self._items = ResponseItems(asked.parts, asked.answer.identity)

    def opening(self, usage: Usage) -> Iterable[bytes]:
        """Yield the response without its output."""
        response = self._response(None, []) | self._answer.told()
        yield self._items.event("response.created", response=response)
        yield self._items.event("response.in_progress", response=response)

    def event(self, prompt: int, event: GenerationEvent, *, news: bool) -> Iterable[bytes]:
        """Yield what an event adds to items; the stream's last events repeat all of it, so it is kept."""
        if self._charge is None:
            self._charge = self._intake.answer()
        return self._items.take(event, self._charge)

    def closing(self, usage: Usage) -> Iterable[bytes]:
        """Yield the whole response."""
        yield self._items.event(f"response.{self._items.status}", response=self.whole(usage))

    def failed(self, reply: ErrorReply, request_id: str) -> bytes:
        """Return the error as an event; clients look for `error`, whatever the event's type."""
        return self._items.event("error", message=reply.message, code=reply.code, param=reply.param, **reply.body())

    def take(self, prompt: int, event: GenerationEvent, charge: AnswerCharge) -> None:
        """Keep an event."""
        for _ in self._items.take(event, charge):
            pass  # nobody streams

    def whole(self, usage: Usage) -> dict[str, object]:
        """Return the finished response, which is stored if that was asked for."""
        response = self._response(usage, self._items.output()) | self._answer.told()
        if self._wish.draft is not None:
            # The conversation is a JSON list.
            begin = self._wish.messages[:-1] + (b"," if len(self._wish.messages) > 2 else b"")
            messages = begin + msgspec.json.encode(self._items.message()) + b"]"
            stored = StoredResponse(response=msgspec.json.encode(response), messages=messages)
            self._wish.draft.finish(self._wish.tenant, self._answer.id, stored)
        return response

    def close(self) -> None:
        """Give back the room for the text and for what was to be stored."""
        if self._charge is not None:
            self._charge.release()
        if self._wish.draft is not None:
            self._wish.draft.close()

    def _response(self, usage: Usage | None, output: object) -> dict[str, object]:
        """Return the response, in progress without `usage`."""
        status = "in_progress" if usage is None else self._items.status
        return {
            "id": self._answer.id,
            "object": "response",
            "created_at": self._answer.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._answer.model,
            "output": output,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "usage": None if usage is None else _usage(usage),
            **self._wish.told,
        }


def _usage(usage: Usage) -> dict[str, object]:
    prompt_tokens, completion_tokens = usage.num_prompt_tokens, usage.num_completion_tokens
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
        "total_tokens": prompt_tokens + completion_tokens,
    }
