"""How tokens are chosen: the parameters of one request, validated on construction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from openautoglm.errors import InvalidRequestError
from openautoglm.spec.constraint import Constraint

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 1024
MAX_LOGIT_BIASES = 1024
# The sampler computes in float32: what is positive here must be so there, with room for a quotient of logits.
SMALLEST_POSITIVE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters; every value is checked, a bad one raises `InvalidRequestError` naming the field.

    `max_tokens` None means up to the context limit. `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 are off.
    `logprobs` None is off, k >= 0 returns the chosen token's logprob and the k best (log-softmax of the model's raw
    logits, before penalties and temperature). `seed` None is drawn at admission. Penalties: repetition over prompt
    and output, frequency and presence over the output only. `constraint` says what the whole text must look like; every
    token is drawn from those that it allows.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_lengths()
        self._number("temperature", 0.0, 100.0)
        self._number("top_p", SMALLEST_POSITIVE, 1.0)
        self._number("min_p", 0.0, 1.0)
        self._number("repetition_penalty", SMALLEST_POSITIVE, 100.0)
        self._number("frequency_penalty", -2.0, 2.0)
        self._number("presence_penalty", -2.0, 2.0)
        self._integer("top_k", 0, 1 << 30)
        self._integer("n", 1, MAX_CHOICES)
        if self.seed is not None:
            self._integer("seed", -(1 << 63), (1 << 64) - 1)
        if self.logprobs is not None:
            self._integer("logprobs", 0, MAX_TOP_LOGPROBS)
        self._check_stops()
        self._check_biases()
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise InvalidRequestError(
                f"constraint must be a Constraint, got {type(self.constraint).__name__}", param="constraint"
            )

    def _check_lengths(self) -> None:
        self._integer("min_tokens", 0, 1 << 30)
        if self.max_tokens is None:
            return
        self._integer("max_tokens", 1, 1 << 30)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}: lower one or raise the other",
                param="min_tokens",
            )

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"stop has {len(self.stop)} strings, at most {MAX_STOP_STRINGS}", param="stop")
        for text in self.stop:
            size = len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0
            if not 0 < size <= MAX_STOP_BYTES:
                raise InvalidRequestError(
                    f"stop strings need 1 to {MAX_STOP_BYTES} bytes of text, got {size}", param="stop"
                )
        if len(self.stop_token_ids) > MAX_STOP_STRINGS * 4:
            raise InvalidRequestError(
                f"stop_token_ids takes at most {MAX_STOP_STRINGS * 4} ids", param="stop_token_ids"
            )

    def _check_biases(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise InvalidRequestError(f"logit_bias takes at most {MAX_LOGIT_BIASES} entries", param="logit_bias")
        for _, bias in self.logit_bias:
            if not -100.0 <= bias <= 100.0:
                raise InvalidRequestError(f"logit_bias values lie in [-100, 100], got {bias}", param="logit_bias")

    def _number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not low <= value <= high:
            raise InvalidRequestError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}", param=name)

    def _integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidRequestError(f"{name} must be an integer in [{low}, {high}], got {value!r}", param=name)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0
