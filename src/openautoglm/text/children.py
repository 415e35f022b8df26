"""How this package's helper processes are started: alone in their environment, from a file that imports little."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

# What an interpreter needs to start as this one did; keys and tokens of the parent stay with the parent.
_KEPT_VARIABLES = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


def child_command(program: str) -> list[str]:
    """Return the command line that runs a file of this package as a program, without importing the package.

    -P keeps this directory off the module search path, where its files could shadow others.
    """
    return [sys.executable, "-P", str(Path(__file__).with_name(program))]


def child_environment() -> dict[str, str]:
    """Return the environment of a helper process."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {"PYTHONIOENCODING": "utf-8", "RUST_BACKTRACE": "0"}


def describe_exit(return_code: int) -> str:
    """Return how a process ended, in words."""
    if return_code >= 0:
        return f"exit code {return_code}"
    try:
        return f"signal {signal.Signals(-return_code).name}"
    except ValueError:
        return f"signal {-return_code}"
