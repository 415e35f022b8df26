"""The options of `serve` that say who may use the server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import click

_OPTIONS = (
    click.option(
        "--api-key",
        envvar="OPENAUTOGLM_API_KEY",
        metavar="KEY",
        help="Key that clients must send; better in OPENAUTOGLM_API_KEY, which other users do not see.",
    ),
    click.option(
        "--admin-key",
        envvar="OPENAUTOGLM_ADMIN_KEY",
        metavar="KEY",
        help="Key for /admin, which is refused without one; better in OPENAUTOGLM_ADMIN_KEY.",
    ),
    click.option(
        "--metrics-key",
        envvar="OPENAUTOGLM_METRICS_KEY",
        metavar="KEY",
        help="Key for /metrics alone; better in OPENAUTOGLM_METRICS_KEY.",
    ),
    click.option(
        "--keys-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="File of many keys, made by `openautoglm keys`; followed while the server runs.",
    ),
)


def access_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command, which gets them as one `access`."""

    @functools.wraps(command)
    def with_access(
        *args: object,
        api_key: str | None,
        admin_key: str | None,
        metrics_key: str | None,
        keys_file: Path | None,
        **kwargs: object,
    ) -> object:
        from openautoglm.serve.access import AccessOptions

        access = AccessOptions(
            api_key=api_key or None,
            admin_key=admin_key or None,
            metrics_key=metrics_key or None,
            keys_file=keys_file,
        )
        return command(*args, access=access, **kwargs)

    for option in reversed(_OPTIONS):
        with_access = option(with_access)
    return with_access
