"""Asking a running server over HTTP: one bounded answer, and errors that say what to do."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping

import click

MAX_ANSWER_BYTES = 4 << 20


def ask_server(
    url: str, path: str, api_key: str | None, *, body: Mapping[str, object] | None = None, timeout_seconds: float = 30.0
) -> bytes:
    """Return the body of `url` + `path`, which gets `body` as JSON if there is one.

    Raises `click.ClickException` for whatever else comes back, or nothing.
    """
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"--url must begin with http:// or https://, got {url!r}")
    address = url.rstrip("/") + path
    data = None if body is None else json.dumps(body).encode()
    headers = {} if data is None else {"Content-Type": "application/json"}
    headers |= {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        request = urllib.request.Request(address, data=data, headers=headers)  # noqa: S310 - the scheme was checked
        with urllib.request.urlopen(request, timeout=timeout_seconds) as reply:  # noqa: S310
            answer: bytes = reply.read(MAX_ANSWER_BYTES)
    except urllib.error.HTTPError as error:
        raise click.ClickException(_message(error.read(MAX_ANSWER_BYTES)) or f"{address}: {error}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise click.ClickException(f"{url} does not answer as a server of this package: {reason}") from None
    return answer


def _message(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None
