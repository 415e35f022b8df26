"""`openautoglm keys`: make, list and revoke API keys of a file that servers follow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from openautoglm.serve.keys import KeyRecord

_SECONDS_PER_DAY = 24 * 3600
_ROLES = ("user", "admin", "metrics")


@click.group("keys")
def keys_command() -> None:
    """Make, list and revoke API keys. The file holds digests; a server started with --keys-file follows it."""


def _file_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--keys-file",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        callback=_file_or_setting,
        help="File of the keys; without it the setting keys_file (OPENAUTOGLM_KEYS_FILE) says which.",
    )(command)


def _file_or_setting(context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path:
    from openautoglm.settings import resolve_settings

    if value is None:
        setting = next(setting.value for setting in resolve_settings() if setting.name == "keys_file")
        if setting is None:
            raise click.UsageError("which file? give --keys-file, or set OPENAUTOGLM_KEYS_FILE", context)
        value = Path(str(setting))
    return value


@keys_command.command("create")
@click.argument("name")
@_file_option
@click.option(
    "--role",
    "roles",
    type=click.Choice(_ROLES),
    multiple=True,
    default=("user",),
    show_default=True,
    help="What it opens; may be given several times.",
)
@click.option(
    "--expires-days", type=click.FloatRange(min=0, min_open=True, max=36500), metavar="N", help="Days it is good for."
)
@click.option("--tenant", metavar="NAME", help="Whose it is: keys of one tenant share cached prefixes.")
def create_command(
    name: str, file: Path, roles: tuple[str, ...], expires_days: float | None, tenant: str | None
) -> None:
    """Make a key called NAME and print it: it is kept nowhere, and shown only now."""
    from openautoglm.errors import ConfigError
    from openautoglm.serve.keys import KeyRecord, Role, change_keys, key_digest, new_key

    key, now = new_key(), int(time.time())
    record = KeyRecord(
        name=name,
        roles=tuple(Role(role) for role in dict.fromkeys(roles)),
        sha256=key_digest(key).hex(),
        created=now,
        expires=None if expires_days is None else now + int(expires_days * _SECONDS_PER_DAY),
        tenant=tenant,
    )

    def add(keys: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        if any(known.name == name for known in keys):
            raise ConfigError(f"{file} has a key called {name} already: choose another name, or revoke that one first")
        return (*keys, record)

    change_keys(file, add)
    click.echo(key)
    click.echo(f"{name} may be used now; the key is shown only once", err=True)


@keys_command.command("list")
@_file_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(file: Path, as_json: bool) -> None:
    """List names, roles and times; never keys."""
    import msgspec

    from openautoglm.serve.keys import read_keys

    keys = read_keys(file)
    if as_json:
        listed = [{name: value for name, value in msgspec.to_builtins(key).items() if name != "sha256"} for key in keys]
        click.echo(json.dumps({"schema_version": 1, "keys": listed}, indent=2))
        return
    rows = [("NAME", "ROLES", "TENANT", "CREATED", "EXPIRES")]
    rows += [(key.name, ",".join(key.roles), key.owner, _day(key.created), _day(key.expires)) for key in keys]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys_command.command("revoke")
@click.argument("name")
@_file_option
def revoke_command(name: str, file: Path) -> None:
    """Remove the key called NAME. Running servers refuse it within two seconds; its requests under way go on."""
    from openautoglm.errors import ConfigError
    from openautoglm.serve.keys import change_keys, read_keys

    def remove(keys: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        rest = tuple(key for key in keys if key.name != name)
        if len(rest) == len(keys):
            raise ConfigError(f"{file} has no key called {name}: see `openautoglm keys list`")
        return rest

    # A file that is not there is no reason to make one.
    read_keys(file)
    change_keys(file, remove)
    click.echo(f"{name} is revoked", err=True)


def _day(seconds: int | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")
