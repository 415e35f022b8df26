"""Keys and addresses: everything but /health needs the key, and nobody listens outside without one."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from openautoglm.errors import ConfigError
from openautoglm.serve.access import Access, AccessOptions, Caller
from openautoglm.serve.keys import KeyRecord, Role, change_keys
from openautoglm.serve.middleware import Edge
from openautoglm.serve.replies import ErrorReply
from openautoglm.serve.settings import check_bind, is_loopback
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server

KEY = "sk-correct-horse"


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "INVENTED")
USER, ADMIN, METRICS, NOBODY, EVERYBODY = "user", "admin", "metrics", "nobody", "everybody"
# Every path that the server answers, and some that it must not, with who may use it. A new route belongs in here.
PATHS = {
    "/v1/chat/completions": USER,
    "/v1/completions": USER,
    "/v1/embeddings": USER,
    "/v1/messages": USER,
    "/v1/messages/count_tokens": USER,
    "/v1/responses": USER,
    "/v1/responses/input_tokens": USER,
    "/v1/responses/{response_id}": USER,
    "/v1/models": USER,
    "/v1/split": USER,
    "/v1/models/{model}": USER,
    "/v1/requests/{request_id}/explain": USER,
    "/tokenize": USER,
    "/detokenize": USER,
    "/openapi.json": USER,
    "/metrics": METRICS,
    "/admin/memory": ADMIN,
    "/admin/memory/report": ADMIN,
    "/admin/profile": ADMIN,
    "/admin": ADMIN,
    "/admin/nothing": ADMIN,
    "/health": EVERYBODY,
    "/nothing": NOBODY,
    "/": NOBODY,
    "/docs": NOBODY,
    "/redoc": NOBODY,
    "/v1": NOBODY,
    "//v1/models": NOBODY,
    "/V1/models": NOBODY,
    "/x/../v1/models": NOBODY,
    "/admin%2fmemory": ADMIN,
    "/administrator": NOBODY,
    "/Admin/memory": NOBODY,
    "//admin/memory": NOBODY,
    "/v1/../admin/memory": USER,
    "/v1/..%2fadmin/memory": USER,
    "/v1/models/..%2f..%2fadmin%2fmemory": USER,
    "/metrics/": NOBODY,
    "/metricsx": NOBODY,
    "/health/": NOBODY,
    "/health;x": NOBODY,
    "//health": NOBODY,
    "/health/../v1/models": NOBODY,
    "/%2e%2e/v1/models": NOBODY,
    "/v1/models?/health": USER,
    "/tokenize/": NOBODY,
}
# Name of a key -> what it opens. `dead` has expired, `gone` was never there.
HOLDERS = {USER: {USER}, ADMIN: {ADMIN}, METRICS: {METRICS}, "both": {USER, METRICS}, "dead": set(), "gone": set()}


@pytest.fixture(scope="module")
def guarded(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer, access=AccessOptions(api_key=KEY)) as live:
        yield live


def write_keys(file: Path, *names: str) -> Path:
    """Write a file of keys that are called what they are."""

    def records(_: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        return tuple(
            KeyRecord(
                name=name,
                roles=tuple(Role(role) for role in HOLDERS.get(name) or {USER, ADMIN, METRICS}),
                sha256=hashlib.sha256(name.encode()).hexdigest(),
                created=0,
                expires=1 if name == "dead" else None,
            )
            for name in names
        )

    change_keys(file, records)
    return file


@pytest.fixture(scope="module")
def keyed(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    file = write_keys(tmp_path_factory.mktemp("keys") / "keys.json", USER, ADMIN, METRICS, "both", "dead")
    with live_server(tokenizer, access=AccessOptions(keys_file=file)) as live:
        yield live


def status_of(server: Live, method: str, path: str, header: bytes | None) -> tuple[int, str | None]:
    """Send a request as it stands, its path not tidied by a client; return the status and the error's code."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        if header is not None:
            connection.putheader("Authorization", header)
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        if answer.status in (401, 403) and method != "HEAD":
            assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
        if answer.status == 401:
            assert answer.getheader("WWW-Authenticate") == "Bearer"
        told = body.startswith((b'{"error"', b'{"type":"error"'))
        return answer.status, json.loads(body)["error"]["code"] if told else None
    finally:
        connection.close()


def test_the_table_names_every_route(keyed: Live) -> None:
    described = keyed.get("/openapi.json", headers={"Authorization": f"Bearer {USER}"}).json()["paths"]
    assert set(described) | {"/openapi.json"} <= set(PATHS)
    assert {PATHS[path] for path in described} == {USER, ADMIN, METRICS, EVERYBODY}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_role_opens_its_paths_and_no_other(keyed: Live, path: str, holder: str) -> None:
    needed = PATHS[path]
    for method in METHODS:
        status, code = status_of(keyed, method, path, f"Bearer {holder}".encode())
        if needed == EVERYBODY:
            assert status == (200 if method in ("GET", "HEAD") else 405)
        elif not HOLDERS[holder]:
            assert status == 401
        elif needed == NOBODY:
            assert status == 404
        elif needed in HOLDERS[holder]:
            assert status not in (401, 403), (method, code)
            assert status < 500
        else:
            assert status == 403
            assert code == (None if method == "HEAD" else "missing_role")
    assert keyed.engine.budgets == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {USER}", USER, "Bearer", "Bearer ", "Bearer \xff"])
def test_nothing_answers_without_a_key(keyed: Live, path: str, header: str | None) -> None:
    for method in METHODS:
        status, _ = status_of(keyed, method, path, None if header is None else header.encode("latin-1"))
        assert status == 401 or (PATHS[path] == EVERYBODY and status in (200, 405))


def test_a_route_that_nobody_listed_is_closed(tokenizer: Tokenizer) -> None:
    """Deny by default: forgetting to decide about a route must not open it."""
    with live_server(tokenizer) as server:
        edge = server.app
        assert isinstance(edge, Edge)
        edge._app.add_api_route("/debug/dump", lambda: {"all": "secrets"})  # type: ignore[attr-defined]
        assert server.get("/debug/dump").status_code == 404
        edge._app.add_api_route("/v1/dump", lambda: {"all": "well"})  # type: ignore[attr-defined]
        assert server.get("/v1/dump").status_code == 200


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
        check_bind(host, guarded=False)
    check_bind(host, guarded=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, guarded=False)


def test_the_keys_themselves_are_not_kept(tmp_path: Path) -> None:
    options = AccessOptions(api_key=KEY, admin_key="adm-4711", metrics_key="met-4711")
    assert KEY not in repr(options)
    held = told_by(Access(options))
    assert not any(key.encode() in held for key in (KEY, "adm-4711", "met-4711"))


def told_by(access: Access) -> bytes:
    return repr([vars(access), access.decide("/v1/models", f"Bearer {KEY}".encode())]).encode()


def test_single_keys_open_what_they_are_for(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, access=AccessOptions(api_key="a", admin_key="b", metrics_key="c")) as server:
        opened = {
            key: [
                path
                for path in ("/v1/models", "/metrics", "/admin/memory")
                if server.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200
            ]
            for key in "abcd"
        }
    assert opened == {"a": ["/v1/models", "/metrics"], "b": ["/admin/memory"], "c": ["/metrics"], "d": []}


def test_one_key_may_be_given_for_everything() -> None:
    access = Access(AccessOptions(api_key="a", admin_key="a", metrics_key="a"))
    assert [decided(access, "a", path) for path in ("/v1/models", "/metrics", "/admin/memory")] == [200] * 3
    assert decided(access, "b") == 401


def test_a_metrics_key_alone_closes_only_metrics(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, access=AccessOptions(metrics_key="c")) as server:
        assert server.get("/v1/models").status_code == 200
        assert server.get("/metrics").status_code == 401
        assert server.get("/metrics", headers={"Authorization": "Bearer c"}).status_code == 200


def decided(access: Access, key: str, path: str = "/v1/models") -> int:
    answer = access.decide(path, f"Bearer {key}".encode())
    return answer.status if isinstance(answer, ErrorReply) else 200


def test_a_changed_file_is_followed_and_a_bad_one_is_not(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys.json", USER)
    access = Access(AccessOptions(keys_file=file))
    assert (decided(access, USER), decided(access, "both")) == (200, 401)
    assert not access.reload_if_changed()
    write_keys(file, "both")
    assert (decided(access, USER), decided(access, "both")) == (200, 401)
    assert access.reload_if_changed()
    assert (decided(access, USER), decided(access, "both")) == (401, 200)
    good = file.read_bytes()
    for bad in (b"", b"{", good[:-20], good.replace(b"sha256", b"sha512"), b"[" * 100_000):
        file.write_bytes(bad)
        assert not access.reload_if_changed()
        assert decided(access, "both") == 200
    file.unlink()
    assert not access.reload_if_changed()
    assert decided(access, "both") == 200
    # That the last key is revoked closes the server; it does not open it.
    write_keys(file)
    assert access.reload_if_changed()
    assert (decided(access, "both"), decided(access, "", "/metrics")) == (401, 401)


def test_a_key_ends_at_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def records(_: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        digest = hashlib.sha256(b"short").hexdigest()
        return (KeyRecord(name="short", roles=(Role.USER,), sha256=digest, created=0, expires=int(time.time()) + 600),)

    change_keys(tmp_path / "keys.json", records)
    access = Access(AccessOptions(keys_file=tmp_path / "keys.json"))
    assert decided(access, "short") == 200
    later = time.time() + 601
    monkeypatch.setattr("openautoglm.serve.access.time.time", lambda: later)
    assert decided(access, "short") == 401


@pytest.mark.parametrize("key", [USER, KEY])
def test_tenants_do_not_share_prefixes(tokenizer: Tokenizer, tmp_path: Path, key: str) -> None:
    """The engine gets a namespace for each tenant that clients can neither choose nor guess."""
    file = write_keys(tmp_path / "keys.json", USER, "both")
    with live_server(tokenizer, access=AccessOptions(keys_file=file, api_key=KEY)) as server:
        for one in (key, "both", key):
            body = {"prompt": "x", "cache_salt": None, "namespace": "both", "user": "both"}
            assert server.post("/v1/completions", body, headers={"Authorization": f"Bearer {one}"}).status_code == 200
        first, other, again = [request.namespace for request in server.engine.requests]
    assert first == again != other
    assert len(first) == len(other) == 64


def test_keys_of_one_tenant_share_prefixes(tmp_path: Path) -> None:
    def records(_: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        return tuple(
            KeyRecord(
                name=name,
                roles=(Role.USER,),
                sha256=hashlib.sha256(name.encode()).hexdigest(),
                created=0,
                tenant=tenant,
            )
            for name, tenant in (("old", "team"), ("new", "team"), ("team", None), ("other", "api-key"))
        )

    change_keys(tmp_path / "keys.json", records)
    access = Access(AccessOptions(keys_file=tmp_path / "keys.json", api_key=KEY))
    spaces = []
    for key in ("old", "new", "team", "other", KEY):
        caller = access.decide("/v1/models", f"Bearer {key}".encode())
        assert isinstance(caller, Caller)
        spaces.append(caller.namespace)
    old, new, team, other, single = spaces
    assert old == new == team
    assert len({old, other, single}) == 3


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
