"""`openautoglm explain`: where the time of a request went, asked of a running server."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request

import click

MAX_ANSWER_BYTES = 1 << 20


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

    answer = _ask(f"{url.rstrip('/')}/v1/requests/{urllib.parse.quote(request_id, safe='')}/explain", api_key)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    try:
        records = msgspec.convert(answer.get("requests"), list[RequestRecord])
    except msgspec.ValidationError as error:
        raise click.ClickException(f"{url} gave no explanation: {error}: is it a server of this version?") from None
    click.echo("\n".join(explain_text(record) for record in records))


def _ask(url: str, api_key: str | None) -> dict[str, object]:
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"--url must begin with http:// or https://, got {url!r}")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as reply:  # noqa: S310
            answer = json.loads(reply.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        raise click.ClickException(_message(error.read(MAX_ANSWER_BYTES)) or f"{url}: {error}") from None
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{url} does not answer as a server of this package: {error}") from None
    return answer if isinstance(answer, dict) else {}


def _message(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None
