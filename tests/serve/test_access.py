"""Keys and addresses: everything but /health needs the key, and nobody listens outside without one."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from openautoglm.errors import ConfigError
from openautoglm.serve.settings import EdgeSettings, check_bind, is_loopback, key_digest
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server

KEY = "sk-correct-horse"


@pytest.fixture(scope="module")
def guarded(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer, api_key_digest=key_digest(KEY)) as live:
        yield live


ROUTES = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/small"),
    ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/docs"),
    ("GET", "/nothing"), ("GET", "/health/"), ("GET", "//health"), ("GET", "/health/../v1/models"), ("GET", "/"),
    ("GET", "/%2e%2e/v1/models"), ("GET", "/v1/models?/health"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", KEY, "Bearer", "Bearer \xff"])
def test_nothing_answers_without_the_key(guarded: Live, method: str, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    response = guarded.http.request(method, guarded.url + path, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


def test_the_key_opens(guarded: Live) -> None:
    assert guarded.client(KEY).models.list().data[0].id == "small"
    assert guarded.get("/metrics", headers={"Authorization": f"bearer {KEY}"}).status_code == 200


def test_health_is_open(guarded: Live) -> None:
    assert guarded.get("/health").status_code == 200
    assert httpx.head(f"{guarded.url}/health").status_code == 200


def test_without_a_key_any_bearer_is_fine(server: Live) -> None:
    assert server.get("/v1/models", headers={"Authorization": "Bearer EMPTY"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "", "localhost.evil.com", "127.0.0.1.x"]
)
def test_an_open_address_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="no API key is set"):
        check_bind(host, None)
    check_bind(host, KEY)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, None)


def test_the_key_itself_is_not_kept() -> None:
    settings = EdgeSettings(model_names=("m",), api_key_digest=key_digest(KEY))
    assert KEY not in repr(settings)
    assert settings.accepts_key(KEY)
    assert not settings.accepts_key(None)
    assert not settings.accepts_key("")


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-1.2_3", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("é", False)]
)
def test_request_ids_are_echoed_only_when_harmless(server: Live, sent: str, kept: bool) -> None:
    returned = server.get("/v1/models", headers={"X-Request-ID": sent.encode("latin-1")}).headers["x-request-id"]
    assert (returned == sent) is kept
    assert returned


def test_no_page_of_another_origin_is_let_in(server: Live) -> None:
    response = httpx.options(
        f"{server.url}/v1/chat/completions",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert response.status_code == 405
    assert not any(name.startswith("access-control") for name in response.headers)
