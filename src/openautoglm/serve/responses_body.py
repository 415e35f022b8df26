"""Bodies of /v1/responses, and how they are written as chat completions: from there on there is one way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from openautoglm.errors import InvalidRequestError
from openautoglm.serve.parsing import parse
from openautoglm.serve.schemas import Body, ChatBody, StopAtFirst

_CHAT = "it belongs to /v1/chat/completions"
# Field -> (values that ask for nothing, why it cannot be honoured).
_REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "background": ((False,), "responses are made while their client waits"),
    "conversation": ((), "conversations are not kept: use store and previous_response_id"),
    "prompt": ((), "this server keeps no prompts: send input"),
    "context_management": (([],), 'nothing is dropped in silence: send truncation "auto" to have the input cut'),
    "include": (([], ["reasoning.encrypted_content"]), "there is nothing of that kind in the answer"),
    "max_tool_calls": ((), "the client calls tools, and may stop"),
    "top_logprobs": ((0,), "logprobs belong to /v1/chat/completions"),
    "logprobs": ((False,), "logprobs belong to /v1/chat/completions"),
    "n": ((1,), "there is one answer"),
    "messages": ((), f"{_CHAT}: use input"),
    "max_tokens": ((), "use max_output_tokens"),
    "max_completion_tokens": ((), "use max_output_tokens"),
    "response_format": ((), f"{_CHAT}: use text.format"),
}
# They say how the stream is sent, or are known to ask for nothing here.
_DROPPED = ("stream_options", "prompt_cache_retention", "prompt_cache_options")


class InputItem(Body):
    """One item of the input: a message, a call, its result, or what a model thought."""

    type: str | None = None
    role: str | None = None
    content: str | list[dict[str, Any]] | None = None


class ResponsesCountBody(Body):
    """POST /v1/responses/input_tokens."""

    model: str | None = None
    input: str | Annotated[list[InputItem], StopAtFirst()] = ""
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ResponsesBody(ResponsesCountBody):
    """POST /v1/responses. The fields of chat completions that this API has no name for are taken too."""

    max_output_tokens: int | None = None
    stream: bool | None = None
    store: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None


def chat_body(body: ResponsesCountBody, earlier: list[dict[str, Any]]) -> ChatBody:
    """Return input and instructions behind the messages of `earlier` turns as a body of chat completions.

    Raises `InvalidRequestError` naming the first field or item that cannot be honoured.
    """
    extra = dict(body.model_extra or {})
    for name, (neutral, reason) in _REFUSED.items():
        value = extra.pop(name, None)
        if value is not None and value not in neutral:
            raise InvalidRequestError(f"{name} cannot be honoured: {reason}", param=name)
    for name in _DROPPED:
        extra.pop(name, None)
    messages = [*earlier, *input_messages(body)]
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    if not messages:
        raise InvalidRequestError("input is missing: send text, or a list of items", param="input")
    fields: dict[str, Any] = {"model": body.model, "messages": messages}
    if body.chat_template_kwargs is not None:
        fields["chat_template_kwargs"] = body.chat_template_kwargs
    if body.tools:
        fields["tools"] = [_tool(tool) for tool in body.tools]
    fields["tool_choice"] = _choice(body.tool_choice)
    if isinstance(body, ResponsesBody):
        fields |= {
            "max_tokens": body.max_output_tokens,
            "stream": body.stream,
            "temperature": body.temperature,
            "top_p": body.top_p,
        }
        if body.truncation == "auto":
            fields["truncate"] = "head"
        if body.text is not None:
            fields |= _text_fields(body.text)
        if body.reasoning is not None:
            fields["reasoning_effort"] = body.reasoning.get("effort")
    return parse(ChatBody, extra | fields)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool, or the choice of one, as chat completions nest it."""
    if tool.get("type") != "function":
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "allowed_tools":
        return _tool(choice)
    tools = choice.get("tools")
    nested = [_tool(tool) if isinstance(tool, dict) else tool for tool in tools] if isinstance(tools, list) else tools
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": nested}}


def input_messages(body: ResponsesCountBody) -> list[dict[str, Any]]:
    """Return the input as messages of a chat."""
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}] if body.input else []
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(body.input):
        message = _message(item, f"input[{index}]")
        if message is None:
            continue
        calls = message.get("tool_calls")
        if calls and messages and messages[-1].get("tool_calls"):
            messages[-1]["tool_calls"].extend(calls)  # parallel calls are one message's
        else:
            messages.append(message)
    return messages


def _message(item: InputItem, where: str) -> dict[str, Any] | None:
    """Return an item as a message; None for one that models are not shown."""
    extra: Mapping[str, Any] = item.model_extra or {}
    if item.type in (None, "message"):
        if item.role is None or item.content is None:
            raise InvalidRequestError(f"{where} needs a role and content", param=where)
        return {"role": item.role, "content": _content(item.content, f"{where}.content")}
    call, name, arguments = extra.get("call_id"), extra.get("name"), extra.get("arguments")
    if item.type == "function_call":
        if not (isinstance(call, str) and isinstance(name, str) and isinstance(arguments, str)):
            raise InvalidRequestError(f"{where} needs call_id, name, and arguments as text", param=where)
        function = {"name": name, "arguments": arguments}
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": call, "type": "function", "function": function}],
        }
    if item.type == "function_call_output":
        output = extra.get("output")
        if not isinstance(call, str) or not isinstance(output, str | list):
            raise InvalidRequestError(f"{where} needs a call_id, and output as text or parts", param=where)
        return {"role": "tool", "tool_call_id": call, "content": _content(output, f"{where}.output")}
    if item.type == "reasoning":
        return None
    raise InvalidRequestError(
        f"{where} has a type that is not known here: this server reads messages, calls of functions and their outputs",
        param=where,
    )


def _content(content: str | list[Any], where: str) -> str:
    """Return text, or the texts of parts in lines; a refusal is what the model said."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text", "refusal") and isinstance(text, str):
            texts.append(text)
            continue
        at = f"{where}[{index}]"
        if kind in ("input_image", "input_file", "input_audio"):
            raise InvalidRequestError(f"{at} is {kind}, but this server reads text only: send input_text", param=at)
        raise InvalidRequestError(f'{at} must be {{"type": "input_text", "text": "…"}}', param=at)
    return "\n".join(texts)


def _text_fields(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the format of the answer as chat completions name it."""
    fields: dict[str, Any] = {"verbosity": text.get("verbosity")}
    form = text.get("format")
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form is not None:
        fields["response_format"] = form
    return fields
