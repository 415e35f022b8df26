"""Bodies of /v1/messages, and how they are written as chat completions: from there on there is one way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from openautoglm.errors import InvalidRequestError
from openautoglm.serve.parsing import parse
from openautoglm.serve.schemas import Body, ChatBody, StopAtFirst
from openautoglm.spec.sampling import MAX_STOP_STRINGS

# Field -> (types of its value that ask for nothing, why it cannot be honoured).
_REFUSED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "mcp_servers": ((), "this server calls no other"),
    "container": ((), "no code is run here"),
    "context_management": (
        (),
        'messages are never dropped in silence: send truncate "head" or "middle" to have them cut',
    ),
    "output_format": ((), "structured output belongs to /v1/chat/completions"),
    "output_config": ((), "structured output belongs to /v1/chat/completions, and there are no levels of effort"),
    "n": ((), "there is one answer"),
    "logprobs": ((), "logprobs belong to /v1/chat/completions"),
    "top_logprobs": ((), "logprobs belong to /v1/chat/completions"),
    "response_format": ((), "it belongs to /v1/chat/completions"),
    "stop": ((), "use stop_sequences"),
    "max_completion_tokens": ((), "use max_tokens"),
    "stream_options": ((), "usage is always told"),
}


class InputMessage(Body):
    """One message: its content is text, or a list of blocks."""

    role: Literal["user", "assistant"]
    content: str | list[dict[str, Any]]


class CountBody(Body):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: Annotated[list[InputMessage], StopAtFirst()] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesBody(CountBody):
    """POST /v1/messages. The fields of chat completions that Anthropic's API has no name for are taken too."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: Annotated[list[str], StopAtFirst()] | None = Field(default=None, max_length=MAX_STOP_STRINGS)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


def chat_body(body: CountBody) -> ChatBody:
    """Return the conversation as a body of chat completions.

    Raises `InvalidRequestError` naming the first field or block that cannot be honoured.
    """
    extra = dict(body.model_extra or {})
    for name, (neutral, reason) in _REFUSED.items():
        value = extra.pop(name, None)
        if value not in (None, [], {}) and not (isinstance(value, dict) and value.get("type") in neutral):
            raise InvalidRequestError(f"{name} cannot be honoured: {reason}", param=name)
    if extra.get("service_tier") == "standard_only":
        del extra["service_tier"]  # there is one tier
    fields: dict[str, Any] = {"model": body.model, "messages": _messages(body)}
    if body.chat_template_kwargs is not None:
        fields["chat_template_kwargs"] = body.chat_template_kwargs
    fields |= _tool_fields(body) | _thinking_fields(extra.pop("thinking", None))
    if isinstance(body, MessagesBody):
        fields |= {name: getattr(body, name) for name in ("max_tokens", "stream", "temperature", "top_p", "top_k")}
        fields["stop"] = body.stop_sequences
    return parse(ChatBody, extra | fields)


def _tool_fields(body: CountBody) -> dict[str, Any]:
    """Return tools and the choice among them as chat completions name them; tools of Anthropic's own are tolerated."""
    fields: dict[str, Any] = {}
    if body.tools:
        fields["tools"] = [
            {"type": "function", "function": {"name": tool.get("name"), "parameters": tool.get("input_schema"), **told}}
            if tool.get("type") in (None, "custom")
            else {"type": tool["type"]}
            for tool in body.tools
            for told in [{"description": tool["description"]} if "description" in tool else {}]
        ]
    choice = body.tool_choice
    if choice is not None:
        kind = choice.get("type")
        if kind == "tool":
            fields["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
        elif kind in ("auto", "any", "none"):
            fields["tool_choice"] = "required" if kind == "any" else kind
        else:
            raise InvalidRequestError("tool_choice.type must be auto, any, tool or none", param="tool_choice")
        if choice.get("disable_parallel_tool_use"):
            fields["parallel_tool_calls"] = False
    return fields


def _thinking_fields(thinking: object) -> dict[str, Any]:
    """Return the switch of the model's template; how much it thinks is the model's."""
    if thinking is None:
        return {}
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    if kind not in ("enabled", "adaptive", "disabled"):
        raise InvalidRequestError("thinking.type must be enabled, adaptive or disabled", param="thinking")
    return {"enable_thinking": True} if kind == "enabled" else {}


def _messages(body: CountBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _text(body.system, "system")})
    for index, message in enumerate(body.messages):
        where = f"messages[{index}].content"
        if isinstance(message.content, str):
            messages.append({"role": message.role, "content": message.content})
        elif message.role == "user":
            messages.extend(_user_messages(message.content, where))
        else:
            messages.append(_assistant_message(message.content, where))
    return messages


def _user_messages(blocks: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """Return the results of tools as messages of their own, and the text behind them."""
    messages: list[dict[str, Any]] = []
    texts: list[str] = []
    for index, block in enumerate(blocks):
        if block.get("type") != "tool_result":
            texts.append(_block_text(block, f"{where}[{index}]"))
            continue
        call, content = block.get("tool_use_id"), block.get("content")
        if not isinstance(call, str) or not (content is None or isinstance(content, str | list)):
            raise InvalidRequestError(
                f"{where}[{index}] needs a tool_use_id, and content as text or blocks", param=f"{where}[{index}]"
            )
        text = _text(content or "", f"{where}[{index}].content")
        messages.append({"role": "tool", "tool_call_id": call, "content": text})
    if texts or not messages:
        messages.append({"role": "user", "content": "\n".join(texts)})
    return messages


def _assistant_message(blocks: list[dict[str, Any]], where: str) -> dict[str, Any]:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        kind = block.get("type")
        if kind in ("thinking", "redacted_thinking"):
            continue  # models are not shown what they thought in earlier turns
        if kind != "tool_use":
            texts.append(_block_text(block, f"{where}[{index}]"))
            continue
        call, name, given = block.get("id"), block.get("name"), block.get("input")
        if not isinstance(call, str) or not isinstance(name, str) or not isinstance(given, dict):
            raise InvalidRequestError(
                f"{where}[{index}] needs an id, a name, and an object as input", param=f"{where}[{index}]"
            )
        calls.append({"id": call, "type": "function", "function": {"name": name, "arguments": given}})
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    return message | {"tool_calls": calls} if calls else message


def _text(content: str | list[Any], where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_block_text(block, f"{where}[{index}]") for index, block in enumerate(content))


def _block_text(block: object, where: str) -> str:
    if isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in ("image", "document", "file"):
        raise InvalidRequestError(f"{where} is {kind}, but this server reads text only: send text blocks", param=where)
    raise InvalidRequestError(f'{where} must be {{"type": "text", "text": "…"}}', param=where)
