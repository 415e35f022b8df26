"""The items of a response (reasoning, messages, calls of functions) while they grow, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from openautoglm.engine.client import GenerationEvent
from openautoglm.serve.collect import CollectedList, CollectedText
from openautoglm.serve.connection import named_event_bytes
from openautoglm.serve.intake import AnswerCharge
from openautoglm.serve.parts import Parts
from openautoglm.text.answer_parts import ContentPart, ReasoningPart, ToolCallPart

# Kind of an open item -> the beginning of its id, and the name of its text in parts and events.
_TEXTS = {"message": ("msg", "output_text"), "reasoning": ("rs", "reasoning_text")}


class ResponseItems:
    """Makes items of an answer's parts. Events have a number each."""

    def __init__(self, parts: Parts, identity: str) -> None:
        self._parts = parts
        self._identity = identity
        self._items = CollectedList()
        self._calls = CollectedList()
        self._said = CollectedText()
        self._text = CollectedText()
        self._open = ""
        self._num_items = self._num_events = self._num_calls = 0
        self.status = "completed"

    def event(self, kind: str, **fields: object) -> bytes:
        """Return an event with the next number."""
        number, self._num_events = self._num_events, self._num_events + 1
        return named_event_bytes({"type": kind, "sequence_number": number, **fields})

    def take(self, event: GenerationEvent, charge: AnswerCharge) -> Iterable[bytes]:
        """Keep what an event brings, and yield the events that tell of it. An answer without any text is a message."""
        for part in self._parts.of(event):
            if isinstance(part, ToolCallPart):
                yield from self._end(charge)
                yield from self._call(part, charge)
                continue
            yield from self._add(part, charge)
        if event.finish_reason is not None:
            if event.finish_reason == "length":
                self.status = "incomplete"
            if not self._open and not self._num_items:
                yield from self._begin("message")
            yield from self._end(charge)

    def output(self) -> msgspec.Raw:
        """Return the finished items."""
        return self._items.raw()

    def message(self) -> dict[str, object]:
        """Return the answer as a message of a chat."""
        message: dict[str, object] = {"role": "assistant", "content": self._said.text()}
        return message | {"tool_calls": self._calls.raw()} if self._num_calls else message

    def _add(self, part: ContentPart | ReasoningPart, charge: AnswerCharge) -> Iterable[bytes]:
        kind = "message" if isinstance(part, ContentPart) else "reasoning"
        if kind != self._open:
            yield from self._end(charge)
            yield from self._begin(kind)
        self._text.add(part.text, charge)
        if kind == "message":
            self._said.add(part.text, charge)
        yield self._text_event("delta", delta=part.text)

    def _begin(self, kind: str) -> Iterable[bytes]:
        self._open = kind
        yield self._item_event("added", self._item("in_progress", []))
        yield self._part_event("added", "")

    def _end(self, charge: AnswerCharge) -> Iterable[bytes]:
        if not self._open:
            return
        text = self._text.text()
        yield self._text_event("done", text=text)
        yield self._part_event("done", text)
        item = self._item(self.status, [_part(self._open, text)])
        yield self._item_event("done", item)
        self._items.add([item], charge)
        self._num_items += 1
        self._text, self._open = CollectedText(), ""

    def _call(self, part: ToolCallPart, charge: AnswerCharge) -> Iterable[bytes]:
        item: dict[str, object] = {
            "type": "function_call",
            "id": self._id("fc"),
            "call_id": part.id,
            "name": part.name,
            "arguments": part.arguments,
            "status": "completed",
        }
        where: dict[str, object] = {"item_id": item["id"], "output_index": self._num_items}
        yield self._item_event("added", item | {"arguments": "", "status": "in_progress"})
        yield self.event("response.function_call_arguments.delta", **where, delta=part.arguments)
        done = {"arguments": part.arguments, "name": part.name}
        yield self.event("response.function_call_arguments.done", **where, **done)
        yield self._item_event("done", item)
        self._items.add([item], charge)
        function = {"name": part.name, "arguments": part.arguments}
        self._calls.add([{"id": part.id, "type": "function", "function": function}], charge)
        self._num_items += 1
        self._num_calls += 1

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._identity}" + (f"_{self._num_items}" if self._num_items else "")

    def _item(self, status: str, content: list[dict[str, object]]) -> dict[str, object]:
        item_id = self._id(_TEXTS[self._open][0])
        if self._open == "reasoning":
            return {"type": "reasoning", "id": item_id, "status": status, "summary": [], "content": content}
        return {"type": "message", "id": item_id, "status": status, "role": "assistant", "content": content}

    def _item_event(self, kind: str, item: dict[str, object]) -> bytes:
        return self.event(f"response.output_item.{kind}", output_index=self._num_items, item=item)

    def _part_event(self, kind: str, text: str) -> bytes:
        return self.event(f"response.content_part.{kind}", **self._where(), part=_part(self._open, text))

    def _text_event(self, kind: str, **fields: object) -> bytes:
        name = _TEXTS[self._open][1]
        logprobs: dict[str, object] = {"logprobs": []} if self._open == "message" else {}
        return self.event(f"response.{name}.{kind}", **self._where(), **fields, **logprobs)

    def _where(self) -> dict[str, object]:
        item_id = self._id(_TEXTS[self._open][0])
        return {"item_id": item_id, "output_index": self._num_items, "content_index": 0}


def _part(kind: str, text: str) -> dict[str, object]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
