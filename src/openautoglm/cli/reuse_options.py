"""The options about what is computed once and used again, and about the first seconds of a server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import click

from openautoglm.spec.reuse import ReuseOptions, SessionLimits, Speculation
from openautoglm.units import parse_bytes

_OPTIONS = (
    click.option(
        "--pin-prompt",
        "pin_prompts",
        type=click.Path(path_type=Path, dir_okay=False),
        multiple=True,
        metavar="FILE",
        help="System prompt (or in .json first messages) that stays in the prefix cache, for everybody; repeatable.",
    ),
    click.option(
        "--slow-start",
        type=click.FloatRange(min=0),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="After a start, how long the weight in /health and /metrics rises.",
    ),
    click.option(
        "--session-seconds",
        type=click.FloatRange(min=0),
        default=600.0,
        show_default=True,
        metavar="SECONDS",
        help="How long the KV cache of a session_id is kept after its last use; 0: no sessions.",
    ),
    click.option(
        "--session-bytes",
        metavar="SIZE",
        help="KV cache that all sessions may keep, in the pool and in the tiers (half of the pool, and the tiers).",
    ),
)


def speculation_option(command: Callable[..., object]) -> Callable[..., object]:
    """Add the option to a command, which gets it as one `speculation: Speculation`."""

    @functools.wraps(command)
    def with_speculation(*args: object, speculation: str, **kwargs: object) -> object:
        return command(*args, speculation=Speculation(speculation), **kwargs)

    return click.option(
        "--speculation",
        type=click.Choice([mode.value for mode in Speculation]),
        default=Speculation.AUTO.value,
        show_default=True,
        help="Draft next tokens from what a text has said before, several in one pass: auto: while it pays; "
        "prompt-lookup: wherever it can be; off: never. Answers are the same.",
    )(with_speculation)


def reuse_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options, that of speculation too, to a command and pass them to it as one `reuse: ReuseOptions`."""

    @functools.wraps(command)
    def with_reuse(
        *args: object,
        pin_prompts: tuple[Path, ...],
        slow_start: float,
        session_seconds: float,
        session_bytes: str | None,
        speculation: Speculation,
        **kwargs: object,
    ) -> object:
        max_bytes = None if session_bytes is None else parse_bytes(session_bytes)
        reuse = ReuseOptions(
            pin_prompts=tuple(map(str, pin_prompts)),
            slow_start_seconds=slow_start,
            sessions=SessionLimits(seconds=session_seconds, max_bytes=max_bytes),
            speculation=speculation,
        )
        return command(*args, reuse=reuse, **kwargs)

    for option in reversed(_OPTIONS):
        with_reuse = option(with_reuse)
    return speculation_option(with_reuse)
