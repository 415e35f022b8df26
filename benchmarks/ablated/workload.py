"""Requests of mixed lengths, the same ones for every variant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadShape:
    """Lengths are drawn log-uniformly between two bounds, both included; every prompt begins with the shared tokens.

    `max_tokens` is what each request asks for at most, and all that an engine knows when it admits it. The answer ends
    earlier, after `answer_tokens`, as one that reaches its end-of-sequence token does.
    """

    num_requests: int
    shared_tokens: int
    own_prompt_tokens: tuple[int, int]
    max_tokens: int
    answer_tokens: tuple[int, int]
    seed: int

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for low, high in (self.own_prompt_tokens, self.answer_tokens):
            if not 1 <= low <= high:
                raise ValueError(f"lengths must lie between 1 and more, the lower bound first: got {low} to {high}")
        if self.answer_tokens[1] > self.max_tokens:
            raise ValueError(
                f"answers of {self.answer_tokens[1]} tokens are longer than the {self.max_tokens} asked for"
            )
        if self.num_requests < 1 or self.shared_tokens < 0:
            raise ValueError("a workload needs at least one request, and no fewer than 0 shared tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request: `max_tokens` is declared, `answer_tokens` is where the answer ends."""

    prompt: tuple[int, ...]
    max_tokens: int
    answer_tokens: int


def make_workload(shape: WorkloadShape, vocab_size: int) -> tuple[Ask, ...]:
    """Return the requests in the order in which they arrive; equal arguments give equal requests."""
    random = np.random.default_rng(shape.seed)
    shared = random.integers(0, vocab_size, shape.shared_tokens).tolist()
    prompts = _log_uniform(random, shape.own_prompt_tokens, shape.num_requests)
    answers = _log_uniform(random, shape.answer_tokens, shape.num_requests)
    return tuple(
        Ask(
            prompt=(*shared, *random.integers(0, vocab_size, own).tolist()),
            max_tokens=shape.max_tokens,
            answer_tokens=answer,
        )
        for own, answer in zip(prompts, answers, strict=True)
    )


def _log_uniform(random: np.random.Generator, bounds: tuple[int, int], count: int) -> list[int]:
    # Up to high + 1 and rounded down, so that both ends are as likely as their neighbours.
    low, high = bounds
    drawn = np.exp(random.uniform(np.log(low), np.log(high + 1), count)).astype(int)
    return [int(value) for value in np.clip(drawn, low, high)]
