"""`Outcome`: what came of one request of a load test."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from openautoglm.spec.trace import TraceRequest


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Times are seconds since the run began. `due_seconds` is when the request was to be sent, which counts: a client
    that is held up must not make a server look faster.

    `piece_seconds` are the times at which text came. Numbers of tokens are the server's own, None where it tells none.
    `error` is a short name of what went wrong, None for a whole answer.
    """

    index: int
    request: TraceRequest
    due_seconds: float
    sent_seconds: float
    end_seconds: float = 0.0
    piece_seconds: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    message: str = ""
    retry_after_seconds: float | None = None
    request_id: str | None = None

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the answer; pieces of text where the server told none."""
        return len(self.piece_seconds) if self.output_tokens is None else self.output_tokens

    @property
    def first_token_seconds(self) -> float | None:
        """Time to the first text, or to the end of an answer without any; None for one that failed before."""
        if self.piece_seconds:
            return self.piece_seconds[0] - self.due_seconds
        return None if self.error is not None else self.whole_seconds

    @property
    def whole_seconds(self) -> float:
        """Time to the end."""
        return self.end_seconds - self.due_seconds

    @property
    def gap_seconds(self) -> tuple[float, ...]:
        """Times between pieces of text."""
        return tuple(later - earlier for earlier, later in pairwise(self.piece_seconds))

    @property
    def token_gap_seconds(self) -> float | None:
        """Mean time between two tokens after the first text; None for fewer than two."""
        if len(self.piece_seconds) < 2 or self.num_output_tokens < 2:
            return None
        return (self.piece_seconds[-1] - self.piece_seconds[0]) / (self.num_output_tokens - 1)
