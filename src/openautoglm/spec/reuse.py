"""What is computed once and used again, and how a server begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from openautoglm.errors import ConfigError


class Speculation(StrEnum):
    """Whether tokens are drafted from what a text has said before: while it pays, wherever it can be, or never."""

    AUTO = "auto"
    PROMPT_LOOKUP = "prompt-lookup"
    OFF = "off"


def parse_speculation(text: str) -> Speculation:
    """Return the mode of that name; raise `ConfigError` for an unknown one."""
    try:
        return Speculation(text)
    except ValueError:
        raise ConfigError(f"speculation must be one of {', '.join(Speculation)}, got {text!r}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How long the KV cache of a session is kept after its last use, 0 for not at all, and how many bytes of it all
    sessions may have in pool and tiers (None: half of the pool, and the tiers).
    """

    seconds: float = 600.0
    max_bytes: int | None = None


NO_SESSIONS = SessionLimits(seconds=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseOptions:
    """`pin_prompts` are files of prompts that stay in the prefix cache; the weight that balancers are told rises within
    `slow_start_seconds`; `sessions` bounds what sessions keep.
    """

    pin_prompts: tuple[str, ...] = ()
    slow_start_seconds: float = 10.0
    speculation: Speculation = Speculation.AUTO
    sessions: SessionLimits = field(default_factory=SessionLimits)
