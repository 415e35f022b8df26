"""POST /v1/messages and /v1/messages/count_tokens: the server as Anthropic's clients know one."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, Request
from starlette.responses import Response

from openautoglm.engine.client import GenerationEvent
from openautoglm.serve.answer import Writer
from openautoglm.serve.answering import Asked, ChatProtocol, answer_chat
from openautoglm.serve.body import body_bytes, read_json
from openautoglm.serve.collect import CollectedText
from openautoglm.serve.connection import named_event_bytes, unless_gone
from openautoglm.serve.context import ServeContext
from openautoglm.serve.generation import Usage
from openautoglm.serve.information import check_model
from openautoglm.serve.intake import AnswerCharge
from openautoglm.serve.messages_body import CountBody, MessagesBody, chat_body
from openautoglm.serve.openapi import body_of
from openautoglm.serve.parsing import parse
from openautoglm.serve.prompts import chat_prompt
from openautoglm.serve.replies import MESSAGES_PATH, ErrorReply, json_response
from openautoglm.serve.schemas import ChatBody


def messages_routes(context: ServeContext) -> APIRouter:
    """Return the router of these routes."""
    router = APIRouter()

    @router.post(MESSAGES_PATH, openapi_extra=body_of(MessagesBody))
    async def messages(request: Request) -> Response:
        """Answer a conversation in Anthropic's form."""
        meter = context.metrics.meter()
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = chat_body(parse(MessagesBody, await read_json(request, context.settings, charge)))
            work = answer_chat(context, request, body, charge, meter, _MESSAGES)
            return await unless_gone(request.receive, work)

    @router.post(f"{MESSAGES_PATH}/count_tokens", openapi_extra=body_of(CountBody))
    async def count_tokens(request: Request) -> Response:
        """Return how many tokens a conversation has, also one that is longer than the context."""
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = chat_body(parse(CountBody, await read_json(request, context.settings, charge)))
            return json_response({"input_tokens": await count_chat(context, body)})

    return router


async def count_chat(context: ServeContext, body: ChatBody) -> int:
    """Return the tokens of a conversation as the model would read it, the beginning of its answer included."""
    check_model(context, body.model)
    prompt = await chat_prompt(context, body.messages, variables=body.chat_template_kwargs, counted=True)
    return len(prompt.tokens)


class MessagesWriter(Writer):
    """A message with one block of text, or the events that it is made of."""

    def __init__(self, asked: Asked) -> None:
        self._answer = asked.answer
        self._num_prompt_tokens = asked.num_prompt_tokens
        self._text = CollectedText()
        self._last: GenerationEvent | None = None
        self._news = False

    def opening(self, usage: Usage) -> Iterable[bytes]:
        """Yield the message without its text, and the beginning of its block."""
        start = self._message([], usage) | self._answer.told()
        yield named_event_bytes({"type": "message_start", "message": start})
        block = {"type": "text", "text": ""}
        yield named_event_bytes({"type": "content_block_start", "index": 0, "content_block": block})

    def event(self, prompt: int, event: GenerationEvent, *, news: bool) -> Iterable[bytes]:
        """Yield the text of an event."""
        self._last = event
        self._news |= news
        if event.text:
            delta = {"type": "text_delta", "text": event.text}
            yield named_event_bytes({"type": "content_block_delta", "index": 0, "delta": delta})

    def closing(self, usage: Usage) -> Iterable[bytes]:
        """Yield the end of the block, why it ended, and the end of the message."""
        yield named_event_bytes({"type": "content_block_stop", "index": 0})
        delta = {"type": "message_delta", "delta": self._ending(), "usage": self._usage(usage)}
        yield named_event_bytes(delta | (self._answer.told() if self._news else {}))
        yield named_event_bytes({"type": "message_stop"})

    def failed(self, reply: ErrorReply, request_id: str) -> bytes:
        """Return the error as an event."""
        return named_event_bytes(reply.body_for(MESSAGES_PATH, request_id))

    def take(self, prompt: int, event: GenerationEvent, charge: AnswerCharge) -> None:
        """Keep an event for the whole message."""
        self._text.add(event.text, charge)
        self._last = event

    def whole(self, usage: Usage) -> dict[str, object]:
        """Return the finished message."""
        return self._message([{"type": "text", "text": self._text.text()}], usage) | self._answer.told()

    def _message(self, content: list[dict[str, object]], usage: Usage) -> dict[str, object]:
        return {
            "id": self._answer.id,
            "type": "message",
            "role": "assistant",
            "model": self._answer.model,
            "content": content,
            **self._ending(),
            "usage": self._usage(usage),
        }

    def _ending(self) -> dict[str, object]:
        event = self._last
        if event is None or event.finish_reason is None:
            return {"stop_reason": None, "stop_sequence": None}
        if event.finish_reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if isinstance(event.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": event.stop_reason}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _usage(self, usage: Usage) -> dict[str, object]:
        # Here input_tokens are those that were not in the cache.
        return {
            "input_tokens": (usage.num_prompt_tokens or self._num_prompt_tokens) - usage.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.num_cached_tokens,
            "output_tokens": usage.num_completion_tokens,
        }


_MESSAGES = ChatProtocol(prefix="msg_", writer=MessagesWriter)
