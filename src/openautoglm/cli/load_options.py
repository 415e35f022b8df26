"""The options that run and serve share: where packed weights are kept, and whether fallbacks are errors."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

_OFF = "off"
_OPTIONS = (
    click.option(
        "--cache",
        metavar="DIR",
        help='Where packed weights are kept for the next start (~/.cache/openautoglm/packed); "off": nowhere.',
    ),
    click.option("--no-cache", is_flag=True, help="Neither use nor keep packed weights; the same as --cache off."),
    click.option(
        "--strict",
        is_flag=True,
        help="Refuse, instead of telling, whatever would be done differently than asked: fallbacks, downgrades.",
    ),
)


def load_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command: one `cache` (a directory, "off", or None for the default), and `strict`."""

    @functools.wraps(command)
    def with_cache(*args: object, cache: str | None, no_cache: bool, **kwargs: object) -> object:
        return command(*args, cache=_OFF if no_cache else cache, **kwargs)

    for option in reversed(_OPTIONS):
        with_cache = option(with_cache)
    return with_cache
