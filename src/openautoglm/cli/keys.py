"""`openautoglm keys`: make, list and revoke API keys of a file that servers follow."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from openautoglm.serve.keys import KeyLimits, KeyRecord

_SECONDS_PER_DAY = 24 * 3600
_MOST = 1 << 60
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


def _limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of limits, which the command gets as one `limits`."""

    @functools.wraps(command)
    def with_limits(
        *args: object,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        max_requests: int | None,
        kv_memory: str | None,
        **kwargs: object,
    ) -> None:
        from openautoglm.errors import ConfigError
        from openautoglm.serve.keys import KeyLimits
        from openautoglm.units import parse_bytes

        try:
            kv_bytes = None if kv_memory is None else parse_bytes(kv_memory)
        except ConfigError as error:
            raise click.BadParameter(str(error), param_hint="--kv-memory") from None
        if kv_bytes is not None and not 0 < kv_bytes <= _MOST:
            raise click.BadParameter("must be above 0", param_hint="--kv-memory")
        limits = KeyLimits(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            max_requests=max_requests,
            kv_bytes=kv_bytes,
        )
        command(*args, limits=limits, **kwargs)

    number = click.IntRange(1, _MOST)
    for option in (
        click.option(
            "--kv-memory", metavar="SIZE", help="KV cache that its requests may come to hold, such as 512MiB."
        ),
        click.option("--max-requests", type=number, metavar="N", help="Its requests under way at once."),
        click.option("--tokens-per-minute", type=number, metavar="N", help="Tokens of its prompts and answers."),
        click.option("--requests-per-minute", type=number, metavar="N", help="Its requests."),
    ):
        with_limits = option(with_limits)
    return with_limits


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
@_limit_options
@click.option(
    "--queue",
    type=click.Choice(("high", "normal", "batch")),
    default="normal",
    show_default=True,
    help="The best queue that its requests may ask for.",
)
@click.option("--tenant", metavar="NAME", help="Whose it is: keys of one tenant share cached prefixes.")
def create_command(
    name: str,
    file: Path,
    roles: tuple[str, ...],
    expires_days: float | None,
    tenant: str | None,
    limits: KeyLimits,
    queue: Literal["high", "normal", "batch"],
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
        limits=limits,
        queue=queue,
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
    """List names, roles, times and limits; never keys."""
    import msgspec

    from openautoglm.serve.keys import read_keys

    keys = read_keys(file)
    if as_json:
        listed = [{name: value for name, value in msgspec.to_builtins(key).items() if name != "sha256"} for key in keys]
        click.echo(json.dumps({"schema_version": 1, "keys": listed}, indent=2))
        return
    rows = [("NAME", "ROLES", "TENANT", "CREATED", "EXPIRES", "QUEUE", "LIMITS")]
    rows += [
        (key.name, ",".join(key.roles), key.owner, _day(key.created), _day(key.expires), key.queue, _limits(key.limits))
        for key in keys
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
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

    read_keys(file)  # tells that there is no file, where that is what is wrong
    change_keys(file, remove)
    click.echo(f"{name} is revoked", err=True)


def _limits(limits: KeyLimits) -> str:
    from openautoglm.units import format_bytes

    told = [
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.max_requests, "at once"),
    ]
    texts = [f"{number} {what}" for number, what in told if number is not None]
    if limits.kv_bytes is not None:
        texts.append(f"{format_bytes(limits.kv_bytes)} KV")
    return ", ".join(texts) or "-"


def _day(seconds: int | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")
