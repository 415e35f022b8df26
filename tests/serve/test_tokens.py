"""Tokens of an identity provider: real keys, a real key server, and everything that must not be believed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from openautoglm.errors import ConfigError
from openautoglm.serve.access import Access, AccessOptions, Caller
from openautoglm.serve.keys import Role
from openautoglm.serve.replies import ErrorReply
from openautoglm.serve.settings import check_bind
from openautoglm.serve.token_keys import TokenKeys, parse_key_set
from openautoglm.serve.token_options import TokenOptions, parse_roles
from openautoglm.serve.tokens import TokenVerifier
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import live_server
from tests.serve.test_access import EVERYBODY, METHODS, NOBODY, PATHS, status_of

ISSUER, AUDIENCE = "https://login.example", "openautoglm"
RSA, OTHER_RSA, SMALL_RSA = (rsa.generate_private_key(65537, bits) for bits in (2048, 2048, 1024))
EC, EC_521, ED = (
    ec.generate_private_key(ec.SECP256R1()),
    ec.generate_private_key(ec.SECP521R1()),
    ed25519.Ed25519PrivateKey.generate(),
)
PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwk(private: Any, **fields: str) -> dict[str, Any]:
    kinds: dict[type, Any] = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    kind = next(kinds[each] for each in kinds if isinstance(private, each))
    return kind.to_jwk(private.public_key(), as_dict=True) | fields


KEY_SET = {
    "keys": [
        jwk(RSA, kid="r", alg="RS256", use="sig"),
        jwk(EC, kid="e"),
        jwk(EC_521, kid="e521"),
        jwk(ED, kid="ed"),
        jwk(OTHER_RSA, kid="encrypts", use="enc"),
        {"kty": "oct", "kid": "secret", "k": base64.urlsafe_b64encode(b"s" * 32).decode()},
    ]
}


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    told = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 60, "roles": ["user"]} | changes
    return {name: value for name, value in told.items() if value is not None}


def signed(private: Any = RSA, algorithm: str = "RS256", kid: Any = "r", head: Any = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), private, algorithm, headers={"kid": kid} | (head or {}))


def by_hand(head: Any, payload: Any, sign: Callable[[bytes], bytes] = lambda _: b"") -> str:
    """Make a token that the library would not."""

    def part(value: Any) -> bytes:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    body = part(head) + b"." + part(payload)
    return (body + b"." + part(sign(body))).decode()


def hmac_of(key: bytes) -> Callable[[bytes], bytes]:
    return lambda body: hmac.digest(key, body, "sha256")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TokenOptions:
    file = tmp_path_factory.mktemp("tokens") / "keys.json"
    file.write_text(json.dumps(KEY_SET))
    return TokenOptions(issuer=ISSUER, audience=AUDIENCE, keys=str(file))


@pytest.fixture(scope="module")
def verifier(options: TokenOptions) -> TokenVerifier:
    return TokenVerifier(options)


@pytest.mark.parametrize(
    ("private", "algorithm", "kid"),
    [(RSA, "RS256", "r"), (EC, "ES256", "e"), (EC_521, "ES512", "e521"), (ED, "EdDSA", "ed")],
)
def test_tokens_of_every_kind_of_key_are_believed(
    verifier: TokenVerifier, private: Any, algorithm: str, kid: str
) -> None:
    for changes in ({}, {"aud": ["other", AUDIENCE]}, {"nbf": int(time.time())}, {"exp": int(time.time()) - 5}):
        found = verifier.verify(signed(private, algorithm, kid, **changes))
        assert found is not None, changes
        assert (found.name, found.tenant, found.roles) == ("alice", "alice", {Role.USER})
    assert verifier.verify(signed(private, algorithm, kid, head={"typ": "at+jwt"})) is not None


HEAD = {"alg": "RS256", "typ": "JWT", "kid": "r"}
BAD: dict[str, Callable[[], str]] = {
    "no algorithm": lambda: by_hand(HEAD | {"alg": "none"}, claims()),
    "no algorithm, otherwise spelt": lambda: by_hand(HEAD | {"alg": "nOnE"}, claims()),
    "no algorithm, real signature": lambda: by_hand(HEAD | {"alg": "none"}, claims(), hmac_of(PEM)),
    "algorithm missing": lambda: by_hand({"typ": "JWT", "kid": "r"}, claims()),
    "algorithm is a list": lambda: by_hand(HEAD | {"alg": ["RS256"]}, claims()),
    "public key as a secret": lambda: by_hand(HEAD | {"alg": "HS256"}, claims(), hmac_of(PEM)),
    "public key as a secret, no last line": lambda: by_hand(HEAD | {"alg": "HS256"}, claims(), hmac_of(PEM.strip())),
    "public key as a secret, JSON": lambda: by_hand(
        HEAD | {"alg": "HS256"}, claims(), hmac_of(json.dumps(KEY_SET["keys"][0]).encode())
    ),
    "secret of the set": lambda: by_hand(HEAD | {"alg": "HS256", "kid": "secret"}, claims(), hmac_of(b"s" * 32)),
    "algorithm that the key is not for": lambda: signed(RSA, "RS512"),
    "padding that the key is not for": lambda: signed(RSA, "PS256"),
    "another key under this name": lambda: signed(OTHER_RSA),
    "another curve under this name": lambda: signed(EC_521, "ES512", "e"),
    "a key for encryption": lambda: signed(OTHER_RSA, kid="encrypts"),
    "unknown name": lambda: signed(kid="x"),
    "name missing": lambda: jwt.encode(claims(), RSA, "RS256"),
    "name is a path": lambda: signed(OTHER_RSA, kid="../../../../dev/null"),
    "name is a query": lambda: signed(OTHER_RSA, kid="' UNION SELECT 'x' --"),
    "name is a list": lambda: by_hand(HEAD | {"kid": ["r"]}, claims()),
    "name is a number": lambda: by_hand(HEAD | {"kid": 0}, claims()),
    "name of none": lambda: by_hand(HEAD | {"kid": None}, claims()),
    "key in the head": lambda: signed(OTHER_RSA, kid="r", head={"jwk": jwk(OTHER_RSA)}),
    "key elsewhere": lambda: signed(OTHER_RSA, kid="mine", head={"jku": "https://evil.example/keys"}),
    "certificate elsewhere": lambda: signed(OTHER_RSA, kid="r", head={"x5u": "https://evil.example/c"}),
    "unknown critical head": lambda: signed(head={"crit": ["exp"], "exp": 1}),
    "critical head that the library knows": lambda: signed(head={"crit": ["b64"], "b64": True}),
    "another type": lambda: signed(head={"typ": "logout+jwt"}),
    "expired": lambda: signed(exp=int(time.time()) - 31),
    "no end": lambda: signed(exp=None),
    "end is text": lambda: signed(exp=str(int(time.time()) + 60)),
    "end is no number": lambda: jwt.api_jws.encode(
        json.dumps(claims(exp=float("nan"))).encode(), RSA, "RS256", headers={"kid": "r"}
    ),
    "end beyond all": lambda: jwt.api_jws.encode(
        json.dumps(claims()).replace(str(claims()["exp"]), "1e999").encode(), RSA, "RS256", headers={"kid": "r"}
    ),
    "not yet": lambda: signed(nbf=int(time.time()) + 60),
    "made in the future": lambda: signed(iat=int(time.time()) + 600),
    "another issuer": lambda: signed(iss="https://evil.example"),
    "issuer with more behind": lambda: signed(iss=ISSUER + ".evil.example"),
    "no issuer": lambda: signed(iss=None),
    "another audience": lambda: signed(aud="other"),
    "no audience": lambda: signed(aud=None),
    "part of the audience": lambda: signed(aud="openauto"),
    "no subject": lambda: signed(sub=None),
    "empty subject": lambda: signed(sub=""),
    "changed claims": lambda: _changed(signed()),
    "no signature": lambda: signed().rpartition(".")[0] + ".",
    "two parts": lambda: signed().rpartition(".")[0],
    "four parts": lambda: signed() + ".x",
    "encrypted form": lambda: "a.b.c.d.e",
    "too long": lambda: signed(padding="x" * 9000),
    "deep": lambda: by_hand(b"[" * 3000, claims()),
    "claims are a list": lambda: jwt.api_jws.encode(b"[1]", RSA, "RS256", headers={"kid": "r"}),
    "deep claims": lambda: jwt.api_jws.encode(b'{"a":' * 900 + b"1" + b"}" * 900, RSA, "RS256", headers={"kid": "r"}),
    "junk": lambda: "..",
    "not ASCII": lambda: "é.é.é",
}  # fmt: skip


def _changed(token: str) -> str:
    head, _, signature = token.split(".")
    other = base64.urlsafe_b64encode(json.dumps(claims(roles=["admin"])).encode()).rstrip(b"=").decode()
    return f"{head}.{other}.{signature}"


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_not_believed(verifier: TokenVerifier, name: str) -> None:
    assert verifier.verify(BAD[name]()) is None


def test_every_single_character_counts(verifier: TokenVerifier) -> None:
    token = signed(EC, "ES256", "e")
    assert verifier.verify(token) is not None
    for place in range(0, len(token), 7):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        found = verifier.verify(changed)
        # The last character of a part has bits that mean nothing.
        assert found is None or place + 1 == len(token)


@pytest.mark.parametrize(
    ("settings", "told", "roles", "tenant"),
    [
        ({}, {"roles": ["user", "metrics", "root", 5]}, {Role.USER, Role.METRICS}, "alice"),
        ({}, {"roles": "admin"}, {Role.ADMIN}, "alice"),
        ({}, {"roles": None}, set(), "alice"),
        ({}, {"roles": {"admin": True}}, set(), "alice"),
        ({"role_claim": "scope"}, {"scope": "openid user"}, {Role.USER}, "alice"),
        ({"role_claim": "realm_access.roles"}, {"realm_access": {"roles": ["admin"]}}, {Role.ADMIN}, "alice"),
        ({"role_claim": "https://x.example/roles"}, {"https://x.example/roles": ["user"]}, {Role.USER}, "alice"),
        ({"roles": {"ops": Role.ADMIN}}, {"roles": ["ops", "user", "admin"]}, {Role.ADMIN}, "alice"),
        ({"tenant_claim": "org"}, {"org": "acme"}, {Role.USER}, "acme"),
    ],
)
def test_claims_become_roles_and_tenants(
    options: TokenOptions, settings: dict[str, Any], told: dict[str, Any], roles: set[Role], tenant: str
) -> None:
    fields = {"issuer": ISSUER, "audience": AUDIENCE, "keys": options.keys}
    found = TokenVerifier(TokenOptions(**fields | settings)).verify(signed(**told))
    assert found is not None
    assert (found.roles, found.tenant) == (roles, tenant)


@pytest.mark.parametrize("value", [None, "", 5, ["acme"]])
def test_a_token_without_a_tenant_is_not_believed(options: TokenOptions, value: object) -> None:
    fields = {"issuer": ISSUER, "audience": AUDIENCE, "keys": options.keys, "tenant_claim": "org"}
    assert TokenVerifier(TokenOptions(**fields)).verify(signed(org=value)) is None


def test_names_are_fit_for_logs(verifier: TokenVerifier) -> None:
    names = ["alice@example.org", "two words\n", "x" * 65, "邮件"]
    found = [verifier.verify(signed(sub=name)) for name in names]
    told = [None if each is None else each.name for each in found]
    assert told == [names[0], *("sha256-" + hashlib.sha256(name.encode()).hexdigest()[:32] for name in names[1:])]


def test_a_role_of_a_token_opens_its_paths_and_no_other(tokenizer: Tokenizer, options: TokenOptions) -> None:
    holders = {role.value: signed(roles=[role.value]) for role in Role} | {"nothing": signed(roles=[])}
    with live_server(tokenizer, access=AccessOptions(tokens=options)) as server:
        for path, needed in PATHS.items():
            for method in METHODS if needed != NOBODY else ("GET", "POST"):
                for role, token in holders.items():
                    status, code = status_of(server, method, path, f"Bearer {token}".encode())
                    if needed == EVERYBODY:
                        assert status in (200, 405)
                    elif needed == NOBODY:
                        assert status == 404
                    elif needed == role:
                        assert status not in (401, 403), (path, method, code)
                        assert status < 500
                    else:
                        assert (status, code in (None, "missing_role")) == (403, True), (path, method, role)
                if needed != EVERYBODY:
                    assert status_of(server, method, path, f"Bearer {BAD['expired']()}".encode())[0] == 401
        assert server.engine.budgets == []


def test_tenants_of_tokens_are_apart_from_those_of_keys(options: TokenOptions) -> None:
    access = Access(AccessOptions(tokens=options, api_key="sk-1"))
    spaces = []
    for key in (signed(), signed(sub="bob"), signed(), "sk-1", signed(sub="api-key")):
        caller = access.decide("/v1/models", f"Bearer {key}".encode())
        assert isinstance(caller, Caller)
        spaces.append(caller.namespace)
    assert spaces[0] == spaces[2]
    assert len(set(spaces)) == 4


def test_tokens_close_the_server_to_strangers(options: TokenOptions) -> None:
    access = Access(AccessOptions(tokens=options))
    for path in ("/v1/models", "/metrics", "/admin/memory"):
        answer = access.decide(path, None)
        assert isinstance(answer, ErrorReply)
        assert answer.status == 401
    check_bind("0.0.0.0", guarded=AccessOptions(tokens=options).guarded)


class KeyServer:
    """An issuer's key server: what it answers, and how often it was asked."""

    def __init__(self) -> None:
        self.answer, self.status, self.num_asked, self.url = json.dumps(KEY_SET).encode(), 200, 0, ""
        self.headers: dict[str, str] = {}


@contextmanager
def key_server() -> Iterator[KeyServer]:
    state = KeyServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.num_asked += 1
            self.send_response(state.status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(state.answer)))
            self.end_headers()
            self.wfile.write(state.answer)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_keys_are_followed_and_strangers_do_not_decide_how_often() -> None:
    now = 0.0
    with key_server() as state:
        keys = TokenKeys(state.url, clock=lambda: now)
        verifier = TokenVerifier(TokenOptions(issuer=ISSUER, audience=AUDIENCE, keys=state.url), keys)
        assert verifier.verify(signed()) is not None
        new = {"keys": [jwk(OTHER_RSA, kid="new"), jwk(EC, kid="e")]}
        state.answer = json.dumps(new).encode()
        for _ in range(500):
            assert verifier.verify(signed(OTHER_RSA, kid="new")) is None
            assert not keys.refresh()
            now += 0.05
        assert state.num_asked == 1
        now = 31.0
        assert keys.refresh()
        assert verifier.verify(signed(OTHER_RSA, kid="new")) is not None
        # The key that is gone is believed no more.
        assert verifier.verify(signed()) is None
        assert state.num_asked == 2
        # Failures leave the keys alone, of every kind.
        for status, answer, headers in (
            (500, b"", {}),
            (200, b"{", {}),
            (200, b"[" * 100_000, {}),
            (200, b'{"keys": []}', {}),
            (200, b" " * 300_000, {}),
            (302, b"", {"Location": state.url}),
        ):
            state.status, state.answer, state.headers = status, answer, headers
            asked = state.num_asked
            now += 301
            assert not keys.refresh()
            assert state.num_asked == asked + 1
            assert verifier.verify(signed(OTHER_RSA, kid="new")) is not None
        # But not for ever.
        now += 86_400
        assert verifier.verify(signed(OTHER_RSA, kid="new")) is None


def test_a_file_of_keys_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [jwk(RSA)]}))
    access = Access(AccessOptions(tokens=TokenOptions(issuer=ISSUER, audience=AUDIENCE, keys=str(file))))
    # The only key needs no name.
    header = f"Bearer {jwt.encode(claims(), RSA, 'RS256')}".encode()
    assert isinstance(access.decide("/v1/models", header), Caller)
    assert not access.refresh_tokens()
    file.write_text(json.dumps({"keys": [jwk(OTHER_RSA)]}))
    assert access.refresh_tokens()
    assert isinstance(access.decide("/v1/models", header), ErrorReply)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": [5]}', b"[" * 50_000, b'{"keys": []}',
        json.dumps({"keys": [KEY_SET["keys"][5]]}).encode(),
        json.dumps({"keys": [jwk(SMALL_RSA, kid="small")]}).encode(),
        json.dumps({"keys": [jwk(RSA, kid="a"), jwk(EC, kid="a")]}).encode(),
        json.dumps({"keys": [jwk(RSA) | {"kid": 5}]}).encode(),
        json.dumps({"keys": [{"kty": "RSA", "n": "!", "e": "AQAB"}]}).encode(),
        json.dumps({"keys": [{"kty": "RSA"}]}).encode(),
        json.dumps({"keys": [jwk(RSA, kid=str(index)) for index in range(65)]}).encode(),
        jwt.algorithms.RSAAlgorithm.to_jwk(RSA).join(['{"keys": [', "]}"]).encode(),
    ],
)  # fmt: skip
def test_a_key_set_that_cannot_be_trusted_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigError, match="--jwt-keys here"):
        parse_key_set(content, "here")


@pytest.mark.parametrize(
    "source", ["/nowhere/keys.json", "http://login.example/keys", "ftp://127.0.0.1/x", "http://127.0.0.1:9/keys"]
)
def test_sources_that_cannot_be_used_end_the_start(source: str) -> None:
    with pytest.raises(ConfigError, match="--jwt-keys"):
        TokenKeys(source)


def test_roles_are_given_by_value() -> None:
    assert parse_roles("staff=user, a=b=admin") == {"staff": Role.USER, "a=b": Role.ADMIN}
    for bad in ("", "staff", "staff=root", "=user", "staff=user,"):
        with pytest.raises(ConfigError, match="VALUE=ROLE"):
            parse_roles(bad)
