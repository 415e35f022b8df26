"""`openautoglm ls`: the models on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from openautoglm.checkpoint.hub import CachedModel


@click.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def ls_command(as_json: bool) -> None:
    """List the embedded model and those in the Hugging Face cache, with sizes and revisions."""
    from openautoglm.checkpoint.hub import list_cached

    models = list_cached()
    if as_json:
        click.echo(json.dumps([{**asdict(model), "path": str(model.path)} for model in models], indent=2))
        return
    click.echo(_table(models))


def _table(models: list[CachedModel]) -> str:
    from openautoglm.units import format_bytes

    rows = [("MODEL", "REVISION", "SIZE", "STATE", "PATH")]
    for model in models:
        revision = ", ".join(model.revisions) or model.commit[:12] or "embedded"
        state = "complete" if model.complete else "incomplete"
        rows.append((model.name, revision, format_bytes(model.size_bytes), state, str(model.path)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]]) for row in rows
    )
