"""`openautoglm explain`: where the time of a request went, asked of a running server."""

from __future__ import annotations

import json
import urllib.parse

import click

from openautoglm.cli.server import ask_server


@click.command("explain")
@click.argument("request_id")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Address of the server.")
@click.option("--api-key", envvar="OPENAUTOGLM_API_KEY", metavar="KEY", help="The server's key, if it has one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain_command(request_id: str, url: str, api_key: str | None, as_json: bool) -> None:
    """Tell where the time of the request with REQUEST_ID (the id of its answer) went, and which rungs it met."""
    import msgspec

    from openautoglm.engine.explain import explain_text
    from openautoglm.engine.record import RequestRecord

    answer = _ask(url, request_id, api_key)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    try:
        records = msgspec.convert(answer.get("requests"), list[RequestRecord])
    except msgspec.ValidationError as error:
        raise click.ClickException(f"{url} gave no explanation: {error}: is it a server of this version?") from None
    click.echo("\n".join(explain_text(record) for record in records))


def _ask(url: str, request_id: str, api_key: str | None) -> dict[str, object]:
    path = f"/v1/requests/{urllib.parse.quote(request_id, safe='')}/explain"
    try:
        answer = json.loads(ask_server(url, path, api_key))
    except ValueError as error:
        raise click.ClickException(f"{url} does not answer as a server of this package: {error}") from None
    return answer if isinstance(answer, dict) else {}
