"""`openautoglm top`: the memory map, the ladder, requests and speed of a running server."""

from __future__ import annotations

import json
import shutil
import sys
import time

import click

from openautoglm.cli.server import ask_server

# A server that takes longer is not one to watch from second to second.
_ANSWER_SECONDS = 10.0


@click.command("top")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Address of the server.")
@click.option(
    "--api-key",
    envvar="OPENAUTOGLM_API_KEY",
    metavar="KEY",
    help="A key of the server that may read its metrics, if it has keys; better in OPENAUTOGLM_API_KEY.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@click.option("--once", is_flag=True, help="Print one screen and end, as is done where the output is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print one look as JSON and end.")
def top_command(url: str, api_key: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch a running server: what takes its memory, which rung of the ladder holds, what it does per second.

    q or Ctrl-C ends it. Speeds are those between two looks; a single one waits as long as --interval, and a second at
    most.
    """
    from openautoglm.cli.top_look import ServerLook, look_as_dict, rates, read_metrics
    from openautoglm.cli.top_view import top_lines

    def look() -> ServerLook:
        text = ask_server(url, "/metrics", api_key, timeout_seconds=_ANSWER_SECONDS)
        return read_metrics(text.decode("utf-8", "replace"), time.monotonic())

    before = look()
    if once or as_json or not sys.stdout.isatty():
        time.sleep(min(interval, 1.0))
        now = look()
        if as_json:
            click.echo(json.dumps(look_as_dict(url, now, rates(now, before)), indent=2))
        else:
            width = shutil.get_terminal_size(fallback=(120, 24)).columns
            click.echo("\n".join(top_lines(url, now, rates(now, before), width=width)))
        return
    from openautoglm.cli.screen import Screen

    try:
        with Screen() as screen:
            now = before
            while True:
                screen.paint(top_lines(url, now, rates(now, before), width=screen.width))
                if screen.wait(interval):
                    return
                before, now = now, look()
    except KeyboardInterrupt:
        return
