"""`openautoglm profile`: which functions a running server spends its time in."""

from __future__ import annotations

import json
from pathlib import Path

import click

from openautoglm.cli.server import ask_server

_SPARE_SECONDS = 30.0


@click.command("profile")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Address of the server.")
@click.option(
    "--admin-key",
    envvar="OPENAUTOGLM_ADMIN_KEY",
    metavar="KEY",
    help="A key of the server with the role admin; better in OPENAUTOGLM_ADMIN_KEY.",
)
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=10.0, show_default=True, help="How long to sample.")
@click.option("--rate", type=click.IntRange(1, 200), default=100, show_default=True, help="Samples per second.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["collapsed", "speedscope"]),
    default="collapsed",
    show_default=True,
    help="Lines for flame graph tools, or a file for speedscope.app.",
)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Where to write, instead of here."
)
def profile_command(
    url: str, admin_key: str | None, seconds: float, rate: int, file_format: str, output: Path | None
) -> None:
    """Sample the Python stacks of both processes of a running server.

    Names of functions are told, never values. Native code shows as the function that called it.
    """
    import msgspec

    from openautoglm.probe.stacks import StackProfile, collapsed_text, speedscope

    body = {"seconds": seconds, "rate_hz": rate}
    answer = ask_server(url, "/admin/profile", admin_key, body=body, timeout_seconds=seconds + _SPARE_SECONDS)
    try:
        profiles = msgspec.convert(json.loads(answer).get("profiles"), list[StackProfile])
    except (ValueError, AttributeError) as error:
        raise click.ClickException(f"{url} gave no profile: {error}: is it a server of this version?") from None
    text = collapsed_text(profiles) if file_format == "collapsed" else json.dumps(speedscope(profiles)) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
