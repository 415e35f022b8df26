"""The options of HTTPS: a certificate and its key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import click

_FILE = click.Path(path_type=Path, dir_okay=False)
_OPTIONS = (
    click.option("--tls-cert", type=_FILE, metavar="FILE", help="Certificate chain in PEM: serve HTTPS."),
    click.option("--tls-key", type=_FILE, metavar="FILE", help="Its key in PEM, if it is not in the same file."),
)


def tls_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command and pass them to it as one `tls: Tls | None`."""

    @functools.wraps(command)
    def with_tls(*args: object, tls_cert: Path | None, tls_key: Path | None, **kwargs: object) -> object:
        from openautoglm.serve.web import Tls

        if tls_key is not None and tls_cert is None:
            raise click.UsageError("--tls-key needs --tls-cert")
        return command(*args, tls=None if tls_cert is None else Tls(certificate=tls_cert, key=tls_key), **kwargs)

    for option in reversed(_OPTIONS):
        with_tls = option(with_tls)
    return with_tls
