"""Fields of other servers' APIs that this one knows of and cannot honour: refused by name, never ignored in silence.

A value that asks for nothing (null, an empty list, the default) is no reason to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openautoglm.errors import InvalidRequestError
from openautoglm.serve.schemas import ChatBody, CompletionBody, SamplingBody

_ONE_BACKEND = "every constraint is followed in one way here"
_TOOLS = "it is the former name: send tools and tool_choice"
_CHAT_ONLY_TEXT = "only text is generated here"

# Field -> (values that ask for nothing, why it cannot be honoured). None always asks for nothing.
_COMMON: Mapping[str, tuple[tuple[object, ...], str]] = {
    "guided_decoding_backend": ((), _ONE_BACKEND),
    "guided_whitespace_pattern": ((), _ONE_BACKEND),
    "prompt_logprobs": ((), "logprobs of the prompt are not computed"),
    "truncate_prompt_tokens": (
        (),
        'prompts are never shortened in silence: send truncate "head" or "middle" to have it cut to fit',
    ),
    "use_beam_search": ((False,), "there is no beam search: use n"),
    "length_penalty": ((1, 1.0), "it belongs to beam search, which is not available"),
    "best_of": ((), "it is only possible where it equals n: use n"),
    "bad_words": (([],), "words cannot be banned: use logit_bias for tokens"),
    "allowed_token_ids": ((), "use logit_bias to prefer tokens"),
    "logits_processors": (([],), "code from a request is never run"),
    "spaces_between_special_tokens": ((True,), "special tokens are written as they are"),
    "return_tokens_as_token_ids": ((False,), "tokens are returned as text"),
    "cache_salt": ((), "prefix caches are separated by the server"),
    "prompt_embeds": ((), "embeddings are not accepted as a prompt: send text or token ids"),
    "kv_transfer_params": ((), "caches are not moved between servers"),
}
_CHAT: Mapping[str, tuple[tuple[object, ...], str]] = {
    "functions": (([],), _TOOLS),
    "function_call": (("none",), _TOOLS),
    "audio": ((), _CHAT_ONLY_TEXT),
    "modalities": ((["text"],), _CHAT_ONLY_TEXT),
    "prediction": ((), "predicted outputs are not available"),
    "verbosity": (("medium",), "say in the prompt how long the answer should be"),
    "web_search_options": ((), "this server does not search the web"),
    "store": ((False,), "answers are not stored"),
    "chat_template": ((), "templates are not taken from requests: the model's own is used"),
    "continue_final_message": ((False,), "use /v1/completions to continue a text"),
    "documents": (([],), "put documents into the messages"),
    "mm_processor_kwargs": ((), _CHAT_ONLY_TEXT),
    "echo": ((False,), "it belongs to /v1/completions"),
}
_COMPLETION: Mapping[str, tuple[tuple[object, ...], str]] = {
    "suffix": (("",), "text can be continued, not filled in"),
    "tools": (([],), "tools belong to /v1/chat/completions"),
    "messages": ((), "messages belong to /v1/chat/completions"),
    "max_completion_tokens": ((), "use max_tokens"),
    "top_logprobs": ((), "use logprobs"),
}


def refuse_chat_fields(body: ChatBody) -> None:
    """Raise `InvalidRequestError` naming the first field that cannot be honoured."""
    _refuse(body, body.model_extra or {}, _CHAT)
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true", param="top_logprobs")


def refuse_completion_fields(body: CompletionBody) -> None:
    """Raise `InvalidRequestError` naming the first field that cannot be honoured."""
    _refuse(body, body.model_extra or {}, _COMPLETION)
    if body.echo and body.logprobs is not None:
        raise InvalidRequestError(
            "echo with logprobs needs logprobs of the prompt, which are not computed: send one of them", param="echo"
        )


# Of these every value that is not refused asks for nothing.
CHAT_FIELDS = frozenset({*_COMMON, *_CHAT})
COMPLETION_FIELDS = frozenset({*_COMMON, *_COMPLETION, "tool_choice"})


def _refuse(
    body: SamplingBody, extra: Mapping[str, Any], specific: Mapping[str, tuple[tuple[object, ...], str]]
) -> None:
    for name, value in extra.items():
        neutral, reason = specific.get(name) or _COMMON.get(name) or (None, "")
        if neutral is None or value is None or any(_same(value, other) for other in neutral):
            continue
        if name == "best_of" and _same(value, body.n or 1):
            continue
        raise InvalidRequestError(f"{name} cannot be honoured: {reason}", param=name)
    if body.stream_options is not None:
        if not body.stream:
            raise InvalidRequestError("stream_options needs stream: true", param="stream_options")
        if (body.stream_options.model_extra or {}).get("continuous_usage_stats"):
            raise InvalidRequestError(
                "stream_options.continuous_usage_stats cannot be honoured: usage comes in the last chunk",
                param="stream_options",
            )


def _same(value: object, other: object) -> bool:
    # 1 and True, or 0 and False, are not the same wish.
    return value == other and isinstance(value, bool) == isinstance(other, bool)
