"""`openautoglm config show`: every setting, its value and where it comes from."""

from __future__ import annotations

import json
import os

import click

from openautoglm.settings import SETTINGS, resolve_settings, user_file


@click.group("config")
def config_command() -> None:
    """Show settings. Flags win over OPENAUTOGLM_* variables, these over ./openautoglm.toml and the user's file."""


@config_command.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(as_json: bool) -> None:
    """Show every setting, its value and its source; secrets are hidden."""
    settings = resolve_settings()
    if as_json:
        values = {setting.name: {"value": setting.shown, "source": setting.source} for setting in settings}
        click.echo(json.dumps({"schema_version": 1, "settings": values}, indent=2))
        return
    rows = [("setting", "value", "source", "meaning")]
    for setting, spec in zip(settings, SETTINGS, strict=True):
        rows.append((setting.name, "-" if setting.value is None else str(setting.shown), setting.source, spec.help))
    widths = [max(len(row[index]) for row in rows) for index in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[3]]).rstrip())
    click.echo(f"\nthe user's file is {user_file(os.environ)}, the project's is openautoglm.toml in this directory")
