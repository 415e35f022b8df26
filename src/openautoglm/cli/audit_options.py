"""The options of `serve` that say where each request is written down."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import click

from openautoglm.settings import AUDIT_WHEN_FULL

KEY_VARIABLE = "OPENAUTOGLM_AUDIT_KEY"
_OPTIONS = (
    click.option(
        "--audit-log",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write who asked what kind of thing, when, and how it ended, never a text; sealed line by line.",
    ),
    click.option(
        "--audit-key",
        envvar=KEY_VARIABLE,
        metavar="KEY",
        help=f"Key that seals the audit log; better in {KEY_VARIABLE}, which other users do not see.",
    ),
    click.option(
        "--audit-when-full",
        type=click.Choice(AUDIT_WHEN_FULL),
        default=AUDIT_WHEN_FULL[0],
        show_default=True,
        help="While the log cannot be written: refuse requests, or go on and count what is missing.",
    ),
)


def audit_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command, which gets them as one `audit`."""

    @functools.wraps(command)
    def with_audit(
        *args: object, audit_log: Path | None, audit_key: str | None, audit_when_full: str, **kwargs: object
    ) -> object:
        from openautoglm.serve.audit import AuditOptions, WhenFull, check_key

        audit = None
        if audit_log is not None:
            audit = AuditOptions(file=audit_log, key=check_key(audit_key), when_full=WhenFull(audit_when_full))
        return command(*args, audit=audit, **kwargs)

    for option in reversed(_OPTIONS):
        with_audit = option(with_audit)
    return with_audit
