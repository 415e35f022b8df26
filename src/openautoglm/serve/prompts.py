"""From messages or prompts to tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import msgspec

from openautoglm.errors import ContextOverflowError, InvalidRequestError
from openautoglm.serve.body import check_structure
from openautoglm.serve.context import ServeContext
from openautoglm.serve.deadline import NO_DEADLINE, Deadline
from openautoglm.serve.privacy import MAX_MATCHES, redact_value
from openautoglm.serve.schemas import ChatMessage
from openautoglm.serve.truncation import Cut, cut_prompt, prompt_room
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.reasoning import opens_reasoning
from openautoglm.text.template import ChatTemplate
from openautoglm.text.tokenizer import Tokenizer
from openautoglm.text.tool_messages import adapt_history, mentions, tools_as_text
from openautoglm.text.tools import Tool

T = TypeVar("T")
# A prompt may be this many times as long as the context before it is cut: what is longer costs more memory to read
# than it is worth, and is refused.
LONGEST_CONTEXTS = 4
# Arguments of tool calls are JSON inside the body's JSON, whose own depth says nothing of theirs.
_MAX_ARGUMENTS_DEPTH = 64
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS = {
    "image_url": "images",
    "image": "images",
    "input_image": "images",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "video",
    "video": "video",
    "file": "files",
    "input_file": "files",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt: its tokens, its text where it must be echoed, what was cut out of it to make it fit, and how often
    private data was replaced in it, by kind; whether it ends inside reasoning, which the answer goes on with."""

    tokens: tuple[int, ...]
    text: str = ""
    cut: Cut | None = None
    redacted: Mapping[str, int] = field(default_factory=dict)
    opens_reasoning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a prompt may be cut, and to how many tokens."""

    side: str
    room: int


def fit_of(side: str | None, sampling: SamplingParams, context: ServeContext) -> Fit | None:
    """Return how prompts are made to fit; None unless the request asks for it: then one that overflows is refused."""
    return None if side is None else Fit(side=side, room=prompt_room(sampling, context.description.context_tokens))


async def chat_prompt(
    context: ServeContext,
    messages: list[ChatMessage],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
    fit: Fit | None = None,
    tools: Sequence[Tool] = (),
    counted: bool = False,
    deadline: Deadline = NO_DEADLINE,
) -> Prompt:
    """Render messages with the model's template, which writes its special tokens itself; `fit` allows to cut them.

    The template gets `tools`, or the system message tells of them. Tokens that are only `counted` may be more than the
    context holds. Raises `DeadlineError` where other prompts took too long.
    """
    plain = [plain_message(message, index) for index, message in enumerate(messages)]

    def work() -> Prompt:
        counts: Counter[str] = Counter()
        messages, given = _redacted(context, plain, counts), _redacted(context, variables, counts)
        shown = _redacted(context, [tool.as_openai() for tool in tools], counts)
        text = _render(context.template, messages, shown, add_generation_prompt, given)
        tokens = _encode(context, text, add_special_tokens=False, param="messages")
        prompt = Prompt(tokens=tuple(tokens)) if counted else _fitted(context, tokens, fit, "messages")
        return replace(prompt, redacted=counts, opens_reasoning=opens_reasoning(text))

    return await context.in_text_thread(work, deadline)


async def completion_prompts(
    context: ServeContext,
    prompt: object,
    *,
    add_special_tokens: bool = True,
    echo: bool = False,
    fit: Fit | None = None,
    param: str = "prompt",
    deadline: Deadline = NO_DEADLINE,
) -> list[Prompt]:
    """Return the prompts of the field `param`: text, texts, token ids, or lists of token ids; `fit` allows to cut."""
    given = _split_prompts(prompt, context.settings.max_prompts, param)

    def work() -> list[Prompt]:
        prompts: list[Prompt] = []
        for original in given:
            counts: Counter[str] = Counter()
            one = _redacted_prompt(context, original, counts, param)
            if isinstance(one, str):
                tokens = _encode(context, one, add_special_tokens=add_special_tokens, param=param)
            else:
                tokens = one
                _check_length(len(tokens), context, param)
                check_token_ids(one, context.description.vocab_size, param)
            fitted = replace(_fitted(context, tokens, fit, param), redacted=counts)
            if echo:
                whole = isinstance(one, str) and fitted.cut is None
                fitted = replace(fitted, text=str(one) if whole else context.tokenizer.decode(fitted.tokens))
            prompts.append(fitted)
        return prompts

    return await context.in_text_thread(work, deadline)


def check_token_ids(tokens: list[int], vocab_size: int, param: str) -> None:
    """Raise `InvalidRequestError` for what is no token id of the model."""
    for token in tokens:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise InvalidRequestError(
                f"{param} holds {str(token)[:40]!r}: token ids of this model are 0 to {vocab_size - 1}",
                param=param,
            )


def plain_message(message: ChatMessage, index: int) -> dict[str, object]:
    """Return a message as templates expect it: content as text, arguments of tool calls as objects."""
    fields: dict[str, object] = {**(message.model_extra or {})}
    # OpenAI's newer name for the same role, which the templates of open models do not know.
    fields["role"] = "system" if message.role == "developer" else message.role
    where = f"messages[{index}]"
    if message.tool_calls:
        fields["tool_calls"] = [_plain_tool_call(call, f"{where}.tool_calls") for call in message.tool_calls]
    elif message.content is None:
        raise InvalidRequestError(f"{where}.content is missing: send text", param=f"{where}.content")
    if message.content is not None:
        fields["content"] = _plain_content(message.content, f"{where}.content")
    return fields


def _plain_content(content: str | list[dict[str, Any]], where: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        kind = part.get("type")
        text = part.get("text")
        if kind in _TEXT_PARTS and isinstance(text, str):
            texts.append(text)
        elif isinstance(kind, str) and kind in _MEDIA_PARTS:
            raise InvalidRequestError(
                f"{where}[{index}] is {kind}, but this server does not read {_MEDIA_PARTS[kind]} yet: send text parts",
                param=f"{where}[{index}]",
            )
        else:
            raise InvalidRequestError(
                f'{where}[{index}] must be {{"type": "text", "text": "…"}}', param=f"{where}[{index}]"
            )
    return "\n".join(texts)


def _plain_tool_call(call: Mapping[str, Any], where: str) -> dict[str, object]:
    """Return a tool call of an earlier turn, its arguments parsed: OpenAI sends them as JSON in a string."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(f"{where} needs a function with a name", param=where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        check_structure(arguments.encode(), _MAX_ARGUMENTS_DEPTH, f"the JSON of {where}")
        try:
            arguments = msgspec.json.decode(arguments or "{}")
        except msgspec.DecodeError as error:
            raise InvalidRequestError(f"{where}: arguments are not JSON: {error}", param=where) from None
    return {**call, "function": {**function, "arguments": arguments}}


def _split_prompts(prompt: object, max_prompts: int, param: str) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise InvalidRequestError(
            f"{param} must be text, a list of texts, a list of token ids, or a list of such lists", param=param
        )
    if isinstance(prompt[0], int):
        return [prompt]
    if len(prompt) > max_prompts:
        raise InvalidRequestError(f"{param} holds {len(prompt)} prompts, at most {max_prompts}", param=param)
    kind = type(prompt[0])
    if kind not in (str, list) or not all(type(one) is kind for one in prompt):
        raise InvalidRequestError(f"{param} must not mix texts, numbers and lists", param=param)
    return prompt


def _redacted(context: ServeContext, value: T, counts: Counter[str]) -> T:
    """Return messages or variables of a template as they may go to the model."""
    redactor = context.privacy.redactor
    return value if redactor is None else cast("T", redact_value(value, redactor, counts))


def _redacted_prompt(
    context: ServeContext, prompt: str | list[int], counts: Counter[str], param: str
) -> str | list[int]:
    """Return a prompt as it may go to the model; token ids are looked at as the text that they are."""
    if context.privacy.redactor is None:
        return prompt
    if isinstance(prompt, str):
        return context.privacy.redactor.redact(prompt, counts, max_matches=MAX_MATCHES)
    _check_length(len(prompt), context, param)
    check_token_ids(prompt, context.description.vocab_size, param)
    text = context.tokenizer.decode(prompt, skip_special_tokens=False)
    text = context.privacy.redactor.redact(text, counts, max_matches=MAX_MATCHES)
    return context.tokenizer.encode(text) if counts else prompt


def _render(
    template: ChatTemplate,
    messages: list[dict[str, object]],
    tools: list[dict[str, object]],
    add_generation_prompt: bool,
    variables: Mapping[str, Any] | None,
) -> str:
    source = template.source(with_tools=bool(tools))
    messages = adapt_history(messages, source)
    if tools and not mentions(source, "tools"):
        messages, tools = tools_as_text(messages, tools), []
    return template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables)


def _encode(context: ServeContext, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
    """Return the tokens of a text, of which there are at most LONGEST_CONTEXTS contexts; raise for a longer one."""
    tokenizer: Tokenizer = context.tokenizer
    most_tokens = LONGEST_CONTEXTS * context.description.context_tokens
    tokens = tokenizer.encode_at_most(text, most_tokens, add_special_tokens=add_special_tokens)
    if tokens is None:
        raise ContextOverflowError(
            f"the prompt has {len(text)} characters, which are more than {most_tokens} tokens, and the context holds "
            f"{context.description.context_tokens}: shorten it; nothing that long is cut to fit",
            param=param,
        )
    return tokens


def _fitted(context: ServeContext, tokens: Sequence[int], fit: Fit | None, param: str) -> Prompt:
    """Return the prompt, cut if that is allowed and needed; raise `ContextOverflowError` for one that is too long."""
    cut = None
    if fit is not None:
        tokens, cut = cut_prompt(tokens, side=fit.side, room=fit.room, marks=context.tokenizer.opening_token_ids)
    context_tokens = context.description.context_tokens
    if len(tokens) >= context_tokens:
        raise ContextOverflowError(
            f"the prompt has {len(tokens)} tokens and the context holds {context_tokens}, of which at least one is for "
            'the answer: shorten the prompt, or send truncate "head" or "middle" to have it cut',
            param=param,
        )
    return Prompt(tokens=tuple(tokens), cut=cut)


def _check_length(num_tokens: int, context: ServeContext, param: str) -> None:
    context_tokens = context.description.context_tokens
    if num_tokens > LONGEST_CONTEXTS * context_tokens:
        raise ContextOverflowError(
            f"the prompt has {num_tokens} tokens and the context holds {context_tokens}: shorten the prompt; nothing "
            "that long is cut to fit",
            param=param,
        )
