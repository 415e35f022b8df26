"""Traffic that is drawn: when requests arrive, and how long prompts and answers are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from openautoglm.errors import ConfigError
from openautoglm.spec.trace import TraceRequest

_LENGTHS = re.compile(r"(?:(log):)?([1-9][0-9]{0,7})(?:-([1-9][0-9]{0,7}))?")


class Arrivals(Enum):
    """POISSON: gaps are exponential, as of many independent users; FIXED: all gaps are the same."""

    POISSON = "poisson"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Numbers of tokens from `low` to `high`: each as likely, or with `logarithmic` each order of magnitude."""

    low: int
    high: int
    logarithmic: bool = False

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Return `count` lengths, int64 [count]."""
        if not self.logarithmic:
            return random.integers(self.low, self.high + 1, count)
        drawn = np.exp(random.uniform(np.log(self.low), np.log(self.high + 1), count)).astype(np.int64)
        return np.clip(drawn, self.low, self.high)


def parse_lengths(text: str) -> Lengths:
    """Parse "128", "16-384" (uniform) or "log:16-384" (log-uniform) tokens; raise `ConfigError` otherwise."""
    match = _LENGTHS.fullmatch(text.strip())
    low = int(match.group(2)) if match else 0
    high = int(match.group(3) or low) if match else 0
    if match is None or high < low:
        raise ConfigError(f"{text!r} is no number of tokens: write 128, 16-384 (uniform) or log:16-384 (log-uniform)")
    return Lengths(low=low, high=high, logarithmic=match.group(1) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficShape:
    """What is drawn. Without `requests_per_second` all requests are there from the beginning, for clients that ask one
    after the other.
    """

    num_requests: int
    requests_per_second: float | None
    arrivals: Arrivals
    prompt_tokens: Lengths
    output_tokens: Lengths
    deadline_seconds: float | None
    seed: int


def draw_traffic(shape: TrafficShape) -> tuple[TraceRequest, ...]:
    """Return the requests in the order of their arrival; equal shapes give equal traffic."""
    random = np.random.default_rng(shape.seed)
    prompts = shape.prompt_tokens.draw(random, shape.num_requests)
    outputs = shape.output_tokens.draw(random, shape.num_requests)
    seconds = np.zeros(shape.num_requests)
    if shape.requests_per_second is not None:
        gap = 1 / shape.requests_per_second
        poisson = shape.arrivals is Arrivals.POISSON
        gaps = random.exponential(gap, shape.num_requests) if poisson else np.full(shape.num_requests, gap)
        seconds = np.cumsum(gaps) - gaps[0]
    return tuple(
        TraceRequest(
            arrival_seconds=float(seconds[index]),
            prompt_tokens=int(prompts[index]),
            output_tokens=int(outputs[index]),
            deadline_seconds=shape.deadline_seconds,
        )
        for index in range(shape.num_requests)
    )
