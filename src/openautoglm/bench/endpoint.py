"""`Endpoint`: a server that speaks OpenAI's API, and how requests to it are written."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

from openautoglm.errors import ConfigError
from openautoglm.spec.trace import TraceRequest

# Common words, so that most tokenizers need about one token each.
_WORDS = (
    "the", "a", "time", "person", "year", "way", "day", "thing", "man", "world", "life", "hand", "part", "child", "eye",
    "woman", "place", "work", "week", "case", "point", "company", "number", "group", "problem", "fact", "be", "have",
    "do", "say", "get", "make", "go", "know", "take", "see", "come", "think", "look", "want", "give", "use", "find",
    "tell", "ask", "seem", "feel", "try", "leave", "call", "good", "new", "first", "last", "long", "great", "little",
    "own", "other", "old", "right", "big", "high", "small",
)  # fmt: skip


class Api(Enum):
    """Which route is asked."""

    COMPLETIONS = "completions"
    CHAT = "chat"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSize:
    """How many tokens a prompt of w words has: `base_tokens` + w * `tokens_per_word`."""

    base_tokens: float = 0.0
    tokens_per_word: float = 1.0

    def words(self, num_tokens: int) -> int:
        """Return how many words have about `num_tokens` tokens; at least one."""
        return max(1, round((num_tokens - self.base_tokens) / self.tokens_per_word))


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """`url` ends with the version, as in http://127.0.0.1:8000/v1. `extra` is added to every body and wins."""

    url: str
    model: str
    api: Api = Api.COMPLETIONS
    api_key: str | None = field(default=None, repr=False)
    ignore_eos: bool = True
    send_deadline: bool = False
    size: PromptSize = PromptSize()
    extra: tuple[tuple[str, object], ...] = ()

    @property
    def address(self) -> str:
        """Where requests go."""
        return f"{self.url}/{'chat/' if self.api is Api.CHAT else ''}completions"

    def headers(self) -> dict[str, str]:
        """Return what is sent with every request."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def body(self, request: TraceRequest, prompt: str) -> dict[str, object]:
        """Return the body of a streamed request with this prompt."""
        body: dict[str, object] = {
            "model": self.model,
            "max_tokens": request.limit_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.api is Api.CHAT:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.send_deadline and request.deadline_seconds is not None:
            body["deadline_seconds"] = request.deadline_seconds
        if request.priority:
            body["priority"] = request.priority
        return body | dict(self.extra)


def api_url(text: str) -> str:
    """Return the address of the API below what a user wrote: "/v1" is added where it is missing.

    Raises `ConfigError` for what is no address of a server.
    """
    try:
        parts = urlsplit(text.strip())
        hostname, _port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{text!r} is no address of a server: {error}") from error
    if parts.scheme not in ("http", "https") or not hostname or parts.query or parts.fragment:
        raise ConfigError(f"{text!r} is no address of a server: write one such as http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("the address holds a name or a password, which would end up in reports: use --api-key")
    url = text.strip().rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


def random_prompt(num_words: int, *, seed: int) -> str:
    """Return words that hardly share a beginning with those of another seed, so that no prefix is cached."""
    draw = random.Random(seed)  # noqa: S311 - a test's text, not a secret
    return " ".join(draw.choices(_WORDS, k=num_words))
