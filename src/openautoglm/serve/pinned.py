"""Prompt templates that `serve --pin-prompt` keeps in the prefix cache: from files to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from openautoglm.engine.assemble import Prepared, prepare
from openautoglm.errors import ConfigError, OpenAutoGLMError
from openautoglm.serve.prompts import plain_message
from openautoglm.serve.schemas import ChatMessage
from openautoglm.spec.plan import BLOCK_TOKENS
from openautoglm.text.template import ChatTemplate
from openautoglm.text.tokenizer import Tokenizer
from openautoglm.units import MIB

_MAX_FILE_BYTES = MIB
# What users say first differs in the first letter: the tokens before it are what conversations share.
_FIRST_WORDS = ("A", "the")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conversation:
    messages: list[dict[str, object]]
    tools: list[dict[str, Any]] | None = None
    variables: dict[str, Any] | None = None


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def pin_prompts(
    prepared: Prepared, names: Sequence[str | Path], tokenizer: Tokenizer, template: ChatTemplate
) -> Prepared:
    """Return the model planned again with room for the prompts of files in its KV pool.

    A .json file holds a conversation's first messages, as a list or as {"messages", "tools", "chat_template_kwargs"};
    any other is the text of a system message. Raises `ConfigError` for a file that cannot be used, and what `prepare`
    raises.
    """
    files = [Path(name) for name in names]
    prompts = tuple(_tokens(file, _read(file), tokenizer, template) for file in files)
    num_blocks = sum(len(prompt) // BLOCK_TOKENS for prompt in prompts)
    goal = replace(prepared.options.goal, pinned_blocks=num_blocks)
    planned = prepare(replace(prepared.options, goal=goal, pinned_prompts=prompts), to_run=True)
    for file, prompt in zip(files, prompts, strict=True):
        if len(prompt) >= planned.plan.context_tokens:
            raise ConfigError(
                f"--pin-prompt {file} comes to {len(prompt)} tokens, more than the context of "
                f"{planned.plan.context_tokens} can begin with: shorten it, or ask for a larger --context"
            )
    return planned


def _read(file: Path) -> _Conversation:
    try:
        with file.open("rb") as source:
            data = source.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"--pin-prompt {file}: {error.strerror or error}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"--pin-prompt {file} is larger than {_MAX_FILE_BYTES} bytes: that is no prompt")
    try:
        if file.suffix != ".json":
            return _Conversation(messages=[{"role": "system", "content": data.decode().strip()}])
        given = msgspec.json.decode(data, type=_File | list[dict[str, Any]])
        content = _File(messages=given) if isinstance(given, list) else given
        messages = [plain_message(ChatMessage.model_validate(one), index) for index, one in enumerate(content.messages)]
    except (UnicodeDecodeError, msgspec.DecodeError, ValidationError, OpenAutoGLMError) as error:
        raise ConfigError(f"--pin-prompt {file} is malformed: {error}") from error
    return _Conversation(messages=messages, tools=content.tools, variables=content.chat_template_kwargs)


def _tokens(file: Path, given: _Conversation, tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """Return the tokens that every conversation with this beginning starts with, whatever its user says next."""
    rendered = []
    for words in _FIRST_WORDS:
        first: dict[str, object] = {"role": "user", "content": words}
        try:
            text = template.render([*given.messages, first], tools=given.tools, variables=given.variables)
        except (OpenAutoGLMError, AttributeError, TypeError) as error:
            raise ConfigError(f"--pin-prompt {file} cannot be rendered: {error}") from error
        rendered.append(tokenizer.encode(text, add_special_tokens=False))
    shared = tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*rendered, strict=False)))
    if len(shared) < BLOCK_TOKENS:
        raise ConfigError(
            f"--pin-prompt {file} comes to {len(shared)} tokens, less than the {BLOCK_TOKENS} of a block: it is too "
            "short to be kept"
        )
    return shared
