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
        listed = [{**asdict(model), "path": str(model.path)} for model in models]
        click.echo(json.dumps({"schema_version": 1, "models": listed}, indent=2))
        return
    click.echo(_table(models))
    packed = _packed_cache()
    if packed:
        click.echo(f"\n{packed}")


def _packed_cache() -> str:
    """Return one line about the packed weights of earlier loads; empty if there are none."""
    from openautoglm.checkpoint.packed import open_cache
    from openautoglm.settings import resolve_settings
    from openautoglm.units import format_bytes

    value = next(setting.value for setting in resolve_settings() if setting.name == "cache")
    cache = open_cache(None if value is None else str(value))
    num_files, num_bytes = (0, 0) if cache is None else cache.usage()
    if cache is None or num_files == 0:
        return ""
    loads = "load" if num_files == 1 else "loads"
    return f"packed weights of {num_files} {loads}: {format_bytes(num_bytes)} in {cache.directory}, safe to delete"


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
