"""Traces: when requests arrive, how long they are, and by when they must have ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request. `max_tokens` is all that a server knows of the answer, `answer_tokens` is where it ends."""

    index: int
    seconds: float
    prompt_tokens: int
    max_tokens: int
    answer_tokens: int
    deadline_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceShape:
    """Poisson arrivals. Lengths are drawn log-uniformly; a deadline is the time that the request would take alone, on
    a server that is busy but does not wait, times a factor between `slack`.

    `busy_seconds_per_token` and `prompt_seconds_per_token` price that time.
    """

    num_requests: int
    requests_per_second: float
    prompt_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]
    max_tokens: int
    slack: tuple[float, float]
    busy_seconds_per_token: float
    prompt_seconds_per_token: float
    seed: int


def make_trace(shape: TraceShape) -> tuple[Arrival, ...]:
    """Return the requests in the order of their arrival; equal shapes give equal traces."""
    random = np.random.default_rng(shape.seed)
    gaps = random.exponential(1 / shape.requests_per_second, shape.num_requests)
    prompts = _log_uniform(random, shape.prompt_tokens, shape.num_requests)
    answers = _log_uniform(random, shape.answer_tokens, shape.num_requests)
    slack = random.uniform(*shape.slack, shape.num_requests)
    work = answers * shape.busy_seconds_per_token + prompts * shape.prompt_seconds_per_token
    return tuple(
        Arrival(
            index=index,
            seconds=float(seconds),
            prompt_tokens=int(prompts[index]),
            max_tokens=shape.max_tokens,
            answer_tokens=int(answers[index]),
            deadline_seconds=float(slack[index] * work[index]),
        )
        for index, seconds in enumerate(np.cumsum(gaps))
    )


def _log_uniform(random: np.random.Generator, bounds: tuple[int, int], count: int) -> np.ndarray:
    low, high = bounds
    drawn = np.exp(random.uniform(np.log(low), np.log(high + 1), count)).astype(int)
    return np.clip(drawn, low, high)
