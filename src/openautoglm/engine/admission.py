"""From a `GenerationRequest` to a `Request`, or a typed refusal. Nothing is allocated before every check has passed."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np

from openautoglm.engine.client import GenerationRequest, Pooling
from openautoglm.engine.output import ChoiceText
from openautoglm.engine.pooled import Pooled
from openautoglm.engine.prefix import root_key, session_key
from openautoglm.engine.request import Request, Sequence
from openautoglm.errors import ContextOverflowError, EngineError, InvalidRequestError
from openautoglm.executor.protocol import Executor
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.scheduling import AGING_SECONDS
from openautoglm.text.detokenize import TokenSource

SEED_MASK = (1 << 64) - 1
MAX_DEADLINE_SECONDS = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """What a request is checked against; `context_tokens` is what a sequence can hold in this engine's pool.

    A step has up to `step_tokens` tokens, whose hidden states have `hidden_size` numbers; 0: they cannot be had.
    """

    context_tokens: int
    block_tokens: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    fingerprint: str
    keeps_sessions: bool = False
    hidden_size: int = 0
    step_tokens: int = 0
    aging_seconds: float = AGING_SECONDS

    @classmethod
    def of(
        cls,
        executor: Executor,
        context_tokens: int,
        *,
        eos_token_ids: tuple[int, ...],
        keeps_sessions: bool,
        aging_seconds: float,
    ) -> AdmissionLimits:
        """Return what an executor's cache and its steps allow of contexts of `context_tokens`.

        Raises `EngineError` where its cache groups have blocks of different sizes.
        """
        layout = executor.layout()
        block_tokens = layout.groups[0].block_tokens
        if any(group.block_tokens != block_tokens for group in layout.groups):
            sizes = sorted({group.block_tokens for group in layout.groups})
            raise EngineError(f"the cache groups must share one block size, got {sizes} tokens")
        return cls(
            context_tokens=min(context_tokens, layout.num_blocks * block_tokens),
            block_tokens=block_tokens,
            vocab_size=layout.vocab_size,
            eos_token_ids=frozenset(eos_token_ids),
            fingerprint=executor.determinism(),
            keeps_sessions=keeps_sessions,
            hidden_size=layout.hidden_size,
            step_tokens=layout.max_step_tokens,
            aging_seconds=aging_seconds,
        )


def make_request(
    generation: GenerationRequest, limits: AdmissionLimits, tokenizer: TokenSource, *, arrival: int, now_seconds: float
) -> Request:
    """Check a request and return its state with `n` sequences; an absent seed is drawn here.

    `now_seconds` is its arrival on the engine's clock. Raises `InvalidRequestError` for values that cannot be honoured
    and `ContextOverflowError` when prompt and output do not fit the context.
    """
    sampling = generation.sampling
    prompt = _check_prompt(generation.prompt_tokens, limits)
    if generation.session_id is not None and not limits.keeps_sessions:
        raise InvalidRequestError("session_id: no sessions are kept here, leave it out", param="session_id")
    max_new_tokens = _max_new_tokens(len(prompt), sampling, limits)
    # Nothing can follow the end of a text that matches its constraint.
    ignores = sampling.ignore_eos and sampling.constraint is None
    eos_tokens = frozenset() if ignores else limits.eos_token_ids
    _check_tokens("stop_token_ids", sampling.stop_token_ids, limits)
    _check_tokens("logit_bias", [token for token, _ in sampling.logit_bias], limits)
    biases = dict(sampling.logit_bias)
    banned = dict.fromkeys(sorted(eos_tokens.union(sampling.stop_token_ids)), -math.inf)
    root = root_key(limits.fingerprint, _cache_namespace(generation))
    request = Request(
        request_id=generation.request_id,
        prompt=prompt,
        sampling=sampling,
        seed=(secrets.randbits(64) if sampling.seed is None else sampling.seed) & SEED_MASK,
        priority=generation.priority,
        arrival=arrival,
        root_key=root,
        max_new_tokens=max_new_tokens,
        eos_tokens=eos_tokens,
        stop_tokens=frozenset(sampling.stop_token_ids),
        biases=tuple(biases.items()),
        early_biases=tuple((biases | banned).items()),
        arrival_seconds=now_seconds,
        deadline_seconds=_check_deadline(generation.deadline_seconds),
        session=None if generation.session_id is None else session_key(root, generation.session_id),
        pooled=_pooled(generation, limits),
        aging_seconds=limits.aging_seconds,
    )
    max_blocks = -(-(len(prompt) + max_new_tokens) // limits.block_tokens)
    request.sequences.extend(
        Sequence(request, choice, max_blocks=max_blocks, text=ChoiceText(tokenizer, sampling))
        for choice in range(sampling.n)
    )
    return request


def _check_prompt(tokens: tuple[int, ...], limits: AdmissionLimits) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    if not tokens:
        raise InvalidRequestError("the prompt is empty: send at least one token", param="prompt")
    if len(tokens) >= limits.context_tokens:
        raise ContextOverflowError(
            f"the prompt has {len(tokens)} tokens and the context holds {limits.context_tokens}, of which at least one "
            "is for the answer: shorten the prompt, or plan a larger --context",
            param="prompt",
        )
    _check_tokens("prompt", tokens, limits)
    return np.array(tokens, dtype=np.int32)


def _cache_namespace(generation: GenerationRequest) -> str:
    """Return where the prompt's blocks are looked for: a mean over all positions needs all of them computed."""
    if generation.pooling is Pooling.MEAN:
        return f"{generation.namespace}\0{generation.request_id}"
    return generation.namespace


def _pooled(generation: GenerationRequest, limits: AdmissionLimits) -> Pooled | None:
    if generation.pooling is None:
        return None
    if not limits.hidden_size:
        raise InvalidRequestError("this engine gives no hidden states, so it makes no embeddings", param="model")
    if generation.sampling.n != 1 or generation.sampling.max_tokens != 1:
        raise InvalidRequestError("a request for an embedding has one choice and max_tokens 1", param="max_tokens")
    return Pooled(generation.pooling)


def _check_deadline(seconds: float | None) -> float | None:
    if seconds is not None and not 0 < seconds <= MAX_DEADLINE_SECONDS:
        raise InvalidRequestError(
            f"deadline_seconds must be above 0 and at most {MAX_DEADLINE_SECONDS:g}, got {seconds}",
            param="deadline_seconds",
        )
    return seconds


def _check_tokens(param: str, tokens: tuple[int, ...] | list[int], limits: AdmissionLimits) -> None:
    if tokens and not (min(tokens) >= 0 and max(tokens) < limits.vocab_size):
        wrong = next(token for token in tokens if not 0 <= token < limits.vocab_size)
        raise InvalidRequestError(
            f"{param} names token {wrong}: this model has tokens 0 to {limits.vocab_size - 1}", param=param
        )


def _max_new_tokens(num_prompt_tokens: int, sampling: SamplingParams, limits: AdmissionLimits) -> int:
    room = limits.context_tokens - num_prompt_tokens
    if sampling.max_tokens is None:
        if sampling.min_tokens > room:
            raise ContextOverflowError(
                f"min_tokens {sampling.min_tokens} and a prompt of {num_prompt_tokens} tokens do not fit the context "
                f"of {limits.context_tokens}: lower min_tokens, or shorten the prompt",
                param="min_tokens",
            )
        return room
    if sampling.max_tokens > room:
        raise ContextOverflowError(
            f"max_tokens {sampling.max_tokens} and a prompt of {num_prompt_tokens} tokens do not fit the context of "
            f"{limits.context_tokens}: lower max_tokens to {room}, or shorten the prompt",
            param="max_tokens",
        )
    return sampling.max_tokens
