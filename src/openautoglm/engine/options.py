"""`EngineOptions`: everything that decides what an engine loads, as one value that crosses processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from openautoglm.spec.goal import Goal
from openautoglm.spec.reuse import NO_SESSIONS, SessionLimits, Speculation
from openautoglm.spec.scheduling import SchedulingOptions
from openautoglm.spec.watchdog import WatchdogOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """A model reference (`demo`, a directory, or `org/name[:quant][@revision]`), wishes, and the engine's limits.

    `max_running` bounds the sequences computed at once (None: what the plan's step has room for), `max_queued` the
    requests that wait beyond that. `server` plans for the HTTP process that stands beside the engine's. `cache` is the
    directory of packed weights of earlier loads, "off", or None for the user's default. `strict` makes every fallback
    and downgrade an error. `scheduling` orders requests and bounds steps. `watchdog` says which growth of memory is
    reported by itself: none in a library, whose process is the caller's. `pinned_prompts` are the tokens of prompts
    that stay in the prefix cache, for every tenant; `goal.pinned_blocks` is their price. `speculation` says when tokens
    are drafted from what a text has said before, `sessions` what is kept of conversations between requests.
    """

    model: str
    goal: Goal = field(default_factory=Goal)
    max_running: int | None = None
    max_queued: int = 256
    server: bool = False
    cache: str | None = None
    strict: bool = False
    speculation: Speculation = Speculation.AUTO
    sessions: SessionLimits = NO_SESSIONS
    pinned_prompts: tuple[tuple[int, ...], ...] = ()
    scheduling: SchedulingOptions = field(default_factory=SchedulingOptions)
    watchdog: WatchdogOptions = field(default_factory=lambda: WatchdogOptions(enabled=False))
