"""The MODEL argument, with completion of its names and directories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])


def model_argument(*, required: bool = True) -> Callable[[F], F]:
    """Add the argument `model` to a command."""
    return click.argument("model", required=required, shell_complete=_complete)


def _complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the models on this machine that begin so; directories where there are none."""
    from openautoglm.checkpoint.hub import list_cached

    names = sorted({model.name for model in list_cached()})
    known = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return known or [CompletionItem(incomplete, type="dir")]
