"""The option of run and serve that writes the receipt for programs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def receipt_option(command: F) -> F:
    """Add `--receipt FILE` to a command and pass it as `receipt: Path | None`; a load never ends at a bad path."""
    return click.option(
        "--receipt",
        type=click.Path(dir_okay=False, writable=True, path_type=Path),
        callback=_checked,
        metavar="FILE",
        help="Write planned and measured bytes of each component as JSON once the model is loaded.",
    )(command)


def _checked(_context: click.Context, _parameter: click.Parameter, file: Path | None) -> Path | None:
    if file is not None and not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
        raise click.BadParameter(f"{file.parent} is no directory that can be written: make it first")
    return file
