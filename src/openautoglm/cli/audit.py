"""`openautoglm audit`: whether the audit log of a server is whole."""

from __future__ import annotations

from pathlib import Path

import click

from openautoglm.cli.audit_options import KEY_VARIABLE


@click.group("audit")
def audit_command() -> None:
    """Check the audit log of a server."""


@audit_command.command("verify")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--audit-key", envvar=KEY_VARIABLE, metavar="KEY", help=f"Key of the log; better in {KEY_VARIABLE}.")
@click.option(
    "--at-least",
    type=click.IntRange(min=0),
    default=0,
    metavar="LINES",
    help="How many lines there were when you last looked: fewer mean that log and head were put back together.",
)
def verify_command(file: Path, audit_key: str | None, at_least: int) -> None:
    """Check every line of FILE and its end; exit code 1 if anything was edited, deleted, reordered or cut off."""
    from openautoglm.serve.audit import check_key, verify

    verdict = verify(file, check_key(audit_key))
    faults = list(verdict.faults)
    if verdict.num_lines < at_least:
        faults.append(f"{verdict.num_lines} lines are sealed, and there were {at_least}")
    for fault in faults:
        click.echo(f"{file}: {fault}", err=True)
    click.echo(f"{verdict.num_lines} lines are as they were written; {verdict.gaps} entries are known to be missing")
    if faults:
        raise click.exceptions.Exit(1)
