"""From a request's fields to `SamplingParams`.

Where a request is silent, the model's generation_config.json decides (temperature, top_p, top_k, min_p, repetition
penalty), and where that is silent too, the defaults of `SamplingParams` do. A chat without max_tokens may fill the
context; a plain completion gets 16 tokens, as at OpenAI.
"""

from __future__ import annotations

import math
from dataclasses import replace

from openautoglm.errors import InvalidRequestError
from openautoglm.serve.constraints import constraint_of
from openautoglm.serve.deadline import Deadline
from openautoglm.serve.schemas import ChatBody, CompletionBody, EmbeddingsBody, SamplingBody
from openautoglm.spec.sampling import MAX_LOGIT_BIASES, MAX_STOP_STRINGS, MAX_TOP_LOGPROBS, SamplingParams

DEFAULT_COMPLETION_TOKENS = 16
_SAME_NAME = (
    "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty",
    "presence_penalty", "seed", "n", "ignore_eos", "skip_special_tokens",
)  # fmt: skip


def chat_sampling(body: ChatBody, defaults: SamplingParams) -> SamplingParams:
    """Return the parameters of a chat; raise `InvalidRequestError` naming a field that is out of range."""
    limits = {value for value in (body.max_tokens, body.max_completion_tokens) if value is not None}
    if len(limits) > 1:
        raise InvalidRequestError(
            "max_tokens and max_completion_tokens differ: send one of them", param="max_completion_tokens"
        )
    if not 0 <= (body.top_logprobs or 0) <= MAX_TOP_LOGPROBS:
        raise InvalidRequestError(
            f"top_logprobs must be an integer in [0, {MAX_TOP_LOGPROBS}], got {body.top_logprobs}", param="top_logprobs"
        )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _sampling(body, defaults, max_tokens=next(iter(limits), None), logprobs=logprobs)


def completion_sampling(body: CompletionBody, defaults: SamplingParams) -> SamplingParams:
    """Return the parameters of a plain completion; raise `InvalidRequestError` naming a field that is out of range."""
    max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    return _sampling(body, defaults, max_tokens=max_tokens, logprobs=body.logprobs)


def deadline_of(body: SamplingBody | EmbeddingsBody, begin_seconds: float) -> Deadline:
    """Return the deadline of a request of `begin_seconds`; raise `InvalidRequestError` if its two names differ."""
    if body.deadline_seconds is not None and body.timeout not in (None, body.deadline_seconds):
        raise InvalidRequestError("deadline_seconds and timeout differ: send one of them", param="timeout")
    seconds = body.timeout if body.deadline_seconds is None else body.deadline_seconds
    return Deadline(seconds=seconds, begin_seconds=begin_seconds)


def _sampling(
    body: SamplingBody, defaults: SamplingParams, *, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    given = {name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0  # vLLM writes "off" so
    return replace(
        defaults,
        **given,
        max_tokens=max_tokens,
        logprobs=logprobs,
        logit_bias=_logit_bias(body.logit_bias),
        stop=_stop(body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop=bool(body.include_stop_str_in_output),
        constraint=constraint_of(body),
    )


def _stop(stop: object) -> tuple[str, ...]:
    if stop is None or stop == "":
        return ()
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, list) or len(stop) > MAX_STOP_STRINGS or not all(isinstance(text, str) for text in stop):
        raise InvalidRequestError(f"stop must be a string or a list of at most {MAX_STOP_STRINGS}", param="stop")
    return tuple(stop)


def _logit_bias(biases: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    if not biases:
        return ()
    if len(biases) > MAX_LOGIT_BIASES:
        raise InvalidRequestError(f"logit_bias takes at most {MAX_LOGIT_BIASES} entries", param="logit_bias")
    for token, bias in biases.items():
        if not (token.isascii() and token.isdecimal() and len(token) < 10) or not math.isfinite(bias):
            raise InvalidRequestError(
                f"logit_bias maps token ids to numbers in [-100, 100], got {token[:40]!r}: {bias}", param="logit_bias"
            )
    return tuple((int(token), bias) for token, bias in biases.items())
