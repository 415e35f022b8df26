"""POST /v1/messages and /v1/messages/count_tokens: the server as Anthropic's clients know one."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from openautoglm.engine.client import GenerationEvent
from openautoglm.serve.answer import Writer
from openautoglm.serve.answering import Asked, ChatProtocol, answer_chat
from openautoglm.serve.body import body_bytes, read_json
from openautoglm.serve.collect import CollectedList, CollectedText
from openautoglm.serve.connection import named_event_bytes, unless_gone
from openautoglm.serve.context import ServeContext
from openautoglm.serve.extension import Extension
from openautoglm.serve.generation import Usage
from openautoglm.serve.information import check_model
from openautoglm.serve.intake import AnswerCharge
from openautoglm.serve.messages_body import CountBody, MessagesBody, chat_body
from openautoglm.serve.openapi import body_of
from openautoglm.serve.parsing import parse
from openautoglm.serve.prompts import chat_prompt
from openautoglm.serve.replies import MESSAGES_PATH, ErrorReply, json_response
from openautoglm.serve.schemas import ChatBody
from openautoglm.serve.tools import tooling_of
from openautoglm.text.answer_parts import ContentPart, ReasoningPart, ToolCallPart


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
    tooling = tooling_of(context, body, Extension())
    prompt = await chat_prompt(context, body.messages, variables=tooling.variables, tools=tooling.tools, counted=True)
    return len(prompt.tokens)


class MessagesWriter(Writer):
    """A message of blocks (text, thinking, uses of tools), or the events that it is made of."""

    def __init__(self, asked: Asked) -> None:
        self._answer = asked.answer
        self._num_prompt_tokens = asked.num_prompt_tokens
        self._parts = asked.parts
        self._content = CollectedList()
        self._text = CollectedText()
        # "text" or "thinking" while such a block is open.
        self._open = ""
        self._num_blocks = 0
        self._last: GenerationEvent | None = None
        self._news = False

    def opening(self, usage: Usage) -> Iterable[bytes]:
        """Yield the message without its content."""
        start = self._message([], usage) | self._answer.told()
        yield named_event_bytes({"type": "message_start", "message": start})

    def event(self, prompt: int, event: GenerationEvent, *, news: bool) -> Iterable[bytes]:
        """Yield what an event adds to blocks, and the ends and beginnings of these."""
        self._last = event
        for part in self._parts.of(event):
            if isinstance(part, ToolCallPart):
                yield from self._stop_block()
                use: dict[str, object] = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
                yield from self._start_block("tool_use", use)
                yield self._delta({"type": "input_json_delta", "partial_json": part.arguments})
                yield from self._stop_block()
                continue
            kind = _kind_of(part)
            if kind != self._open:
                yield from self._stop_block()
                yield from self._start_block(kind, _block(kind, ""))
            yield self._delta({"type": f"{kind}_delta", kind: part.text})
        self._news |= self._answer.extension.take_late() or news

    def closing(self, usage: Usage) -> Iterable[bytes]:
        """Yield the end of the last block, why the message ended, and its end."""
        yield from self._stop_block()
        delta = {"type": "message_delta", "delta": self._ending(), "usage": self._usage(usage)}
        yield named_event_bytes(delta | (self._answer.told() if self._news else {}))
        yield named_event_bytes({"type": "message_stop"})

    def failed(self, reply: ErrorReply, request_id: str) -> bytes:
        """Return the error as an event."""
        return named_event_bytes(reply.body_for(MESSAGES_PATH, request_id))

    def take(self, prompt: int, event: GenerationEvent, charge: AnswerCharge) -> None:
        """Keep an event for the whole message."""
        self._last = event
        for part in self._parts.of(event):
            if isinstance(part, ToolCallPart):
                self._end_block(charge)
                given = msgspec.Raw(part.arguments.encode())
                use = {"type": "tool_use", "id": part.id, "name": part.name, "input": given}
                self._content.add([use], charge)
                self._num_blocks += 1
                continue
            kind = _kind_of(part)
            if kind != self._open:
                self._end_block(charge)
                self._open = kind
            self._text.add(part.text, charge)
        if event.finish_reason is not None:
            self._end_block(charge)

    def whole(self, usage: Usage) -> dict[str, object]:
        """Return the finished message."""
        return self._message(self._content.raw(), usage) | self._answer.told()

    def _start_block(self, kind: str, block: dict[str, object]) -> Iterable[bytes]:
        self._open = kind
        yield named_event_bytes({"type": "content_block_start", "index": self._num_blocks, "content_block": block})

    def _stop_block(self) -> Iterable[bytes]:
        if self._open:
            yield named_event_bytes({"type": "content_block_stop", "index": self._num_blocks})
            self._open = ""
            self._num_blocks += 1

    def _delta(self, delta: dict[str, object]) -> bytes:
        return named_event_bytes({"type": "content_block_delta", "index": self._num_blocks, "delta": delta})

    def _end_block(self, charge: AnswerCharge) -> None:
        if self._open:
            self._content.add([_block(self._open, self._text.text())], charge)
            self._text, self._open = CollectedText(), ""

    def _message(self, content: object, usage: Usage) -> dict[str, object]:
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
        if self._parts.calls(event.choice):
            return {"stop_reason": "tool_use", "stop_sequence": None}
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


def _kind_of(part: ContentPart | ReasoningPart) -> str:
    return "text" if isinstance(part, ContentPart) else "thinking"


def _block(kind: str, text: str) -> dict[str, object]:
    # Clients send the signature back with the thinking; here nothing is signed.
    return {"type": kind, kind: text, **({"signature": ""} if kind == "thinking" else {})}


_MESSAGES = ChatProtocol(prefix="msg_", writer=MessagesWriter)
