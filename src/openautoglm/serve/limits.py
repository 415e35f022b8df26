"""What each key may use: requests and tokens per minute, requests at once, and bytes of KV cache. One event loop's.

Rates are buckets that fill steadily: a whole minute's worth may come at once after a quiet minute. How long an answer
will be is not known before, so its tokens are taken as they come, on credit if need be, and the next request waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openautoglm.errors import InvalidRequestError
from openautoglm.serve.access import Caller
from openautoglm.serve.keys import KeyLimits
from openautoglm.serve.replies import ErrorReply, ReplyError
from openautoglm.spec.plan import BLOCK_TOKENS
from openautoglm.units import format_bytes

_BUSY_RETRY_SECONDS = 1.0
# Callers whose use is remembered; those at rest are forgotten beyond.
_MAX_ALLOWANCES = 4096


class Bucket:
    """An amount per minute that fills steadily up to a minute's worth, and may be overdrawn."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._seen = clock()

    @property
    def level(self) -> float:
        """What is in it now; below zero what is owed."""
        now = self._clock()
        self._level = min(float(self.per_minute), self._level + (now - self._seen) * self.per_minute / 60.0)
        self._seen = now
        return self._level

    def take(self, amount: float) -> None:
        """Take so much, whether it is there or not; a negative amount is given back."""
        self._level = min(float(self.per_minute), self.level - amount)

    def seconds_until(self, amount: float) -> float:
        """Return how long it takes until so much is in it."""
        return max(0.0, (amount - self.level) * 60.0 / self.per_minute)


class Limits:
    """The allowance of each caller that has limits."""

    def __init__(self, *, kv_block_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._kv_block_bytes = kv_block_bytes
        self._clock = clock
        self._allowances: dict[str, Allowance] = {}

    def of(self, caller: Caller) -> Allowance | None:
        """Return what a caller may use; None for one without limits."""
        if caller.limits == KeyLimits():
            return None
        allowance = self._allowances.get(caller.name)
        if allowance is None or allowance.limits != caller.limits:
            # What runs under the old limits goes on to be counted there, and ends.
            allowance = Allowance(caller.limits, self._kv_block_bytes, self._clock)
            self._allowances[caller.name] = allowance
            if len(self._allowances) > _MAX_ALLOWANCES:
                self._allowances = {name: one for name, one in self._allowances.items() if not one.at_rest}
        return allowance


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request to generate asks for: tokens of each prompt, choices for each, and tokens that each may get."""

    prompt_tokens: Sequence[int]
    num_choices: int
    max_tokens: int | None
    context_tokens: int

    def kv_blocks(self) -> int:
        """Return the most blocks that it can come to hold; whole blocks of a prompt are shared by its choices."""
        blocks = 0
        for num_tokens in self.prompt_tokens:
            longest = min(self.context_tokens, num_tokens + (self.max_tokens or self.context_tokens))
            shared = num_tokens // BLOCK_TOKENS
            blocks += shared + self.num_choices * (math.ceil(longest / BLOCK_TOKENS) - shared)
        return blocks


class Allowance:
    """What one caller may still use."""

    def __init__(self, limits: KeyLimits, kv_block_bytes: int, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._kv_block_bytes = kv_block_bytes
        per_minute = limits.requests_per_minute
        self._requests = None if per_minute is None else Bucket(per_minute, clock)
        per_minute = limits.tokens_per_minute
        self._tokens = None if per_minute is None else Bucket(per_minute, clock)
        self._num_requests = 0
        self._kv_bytes = 0

    @property
    def at_rest(self) -> bool:
        """Whether nothing runs and all buckets are full: a new allowance would be the same."""
        buckets = (bucket for bucket in (self._requests, self._tokens) if bucket is not None)
        return not self._num_requests and all(bucket.level >= bucket.per_minute for bucket in buckets)

    def enter(self) -> ErrorReply | None:
        """Count a request in, which `leave` must follow; return why not."""
        most = self.limits.max_requests
        if most is not None and self._num_requests >= most:
            return _refusal(
                f"{most} requests of this key are under way, which is its limit", "requests", _BUSY_RETRY_SECONDS
            )
        if self._requests is not None:
            if self._requests.level < 1:
                message = f"this key may send {self._requests.per_minute} requests per minute"
                return _refusal(message, "requests", self._requests.seconds_until(1))
            self._requests.take(1)
        self._num_requests += 1
        return None

    def leave(self) -> None:
        """Count a request out."""
        self._num_requests -= 1

    def begin(self, wish: Wish) -> Use:
        """Take what a request to generate needs at first.

        Raises `ReplyError` (429) where that is not there now, and `InvalidRequestError` where it never will be.
        """
        kv_bytes = wish.kv_blocks() * self._kv_block_bytes
        most = self.limits.kv_bytes
        if most is not None and kv_bytes > most:
            raise InvalidRequestError(
                f"the request may come to hold {format_bytes(kv_bytes)} of KV cache, and this key may have "
                f"{format_bytes(most)}: send a smaller max_tokens, a shorter prompt or fewer choices",
                param="max_tokens",
            )
        if most is not None and self._kv_bytes + kv_bytes > most:
            message = (
                f"requests of this key may come to hold {format_bytes(self._kv_bytes)} of KV cache, this one "
                f"{format_bytes(kv_bytes)}, and {format_bytes(most)} is its limit"
            )
            raise ReplyError(_refusal(message, "kv_bytes", _BUSY_RETRY_SECONDS))
        num_tokens = sum(wish.prompt_tokens)
        if self._tokens is not None:
            # A prompt of more than a minute's worth waits for a full bucket, or it would wait for ever.
            needed = min(num_tokens, self._tokens.per_minute)
            if self._tokens.level < needed:
                message = (
                    f"this key may use {self._tokens.per_minute} tokens per minute, and the prompt has {num_tokens}"
                )
                raise ReplyError(_refusal(message, "tokens", self._tokens.seconds_until(needed)))
        self._kv_bytes += kv_bytes
        self.take_tokens(num_tokens)
        return Use(self, num_tokens, kv_bytes)

    def take_tokens(self, num_tokens: int) -> None:
        """Take tokens, or give them back where negative."""
        if self._tokens is not None:
            self._tokens.take(num_tokens)

    def give_kv(self, num_bytes: int) -> None:
        """Give KV cache back."""
        self._kv_bytes -= num_bytes

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the fields that tell clients what they have left."""
        told = []
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                left = max(0, math.floor(bucket.level))
                for name, value in (
                    ("limit", str(bucket.per_minute)),
                    ("remaining", str(left)),
                    ("reset", _duration(bucket.seconds_until(bucket.per_minute))),
                ):
                    told.append((f"x-ratelimit-{name}-{kind}".encode(), value.encode()))
        return told


class Use:
    """What one request to generate uses of its caller's allowance; `close` must be called."""

    def __init__(self, allowance: Allowance, prompt_tokens: int, kv_bytes: int) -> None:
        self._allowance = allowance
        self._prompt_tokens = prompt_tokens
        self._kv_bytes = kv_bytes

    def generated(self, num_tokens: int) -> None:
        """Take tokens of the answer."""
        self._allowance.take_tokens(num_tokens)

    def close(self, *, taken: bool) -> None:
        """Give KV cache back, and the prompt's tokens where the engine has not `taken` it."""
        self._allowance.give_kv(self._kv_bytes)
        if not taken:
            self._allowance.take_tokens(-self._prompt_tokens)


def _refusal(message: str, kind: str, retry_seconds: float) -> ErrorReply:
    seconds = max(1, math.ceil(retry_seconds))
    return ErrorReply(
        status=429,
        message=f"{message}: try again in {seconds} s",
        type=kind,
        code="rate_limit_exceeded",
        headers=(("Retry-After", str(seconds)),),
    )


def _duration(seconds: float) -> str:
    """Return a time as OpenAI's fields have it: 250ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, tenths = divmod(math.ceil(seconds * 10), 600)
    text = f"{tenths / 10:g}s"
    return f"{minutes}m{text}" if minutes else text
