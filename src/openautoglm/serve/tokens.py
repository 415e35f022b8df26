"""JSON web tokens (RFC 7519) as OpenID Connect providers sign them: who calls, by a signature of an asymmetric key.

The key decides which algorithms it may be used with, never the token: `none`, and the text of a public key as a shared
secret, are no algorithms here. Keys come from the operator's set alone; what a token's head says of other places (jku,
x5u, jwk) is not looked at.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import jwt

from openautoglm.serve.keys import Role
from openautoglm.serve.token_keys import TokenKeys
from openautoglm.serve.token_options import TokenOptions

MAX_TOKEN_CHARACTERS = 8192
_LEEWAY_SECONDS = 30
_TYPES = {"jwt", "at+jwt", "application/at+jwt"}
_REQUIRED = ["exp", "iss", "aud", "sub"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MAX_ROLE_VALUES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whom a token names: a name fit for logs, its tenant, and its roles."""

    name: str
    tenant: str
    roles: frozenset[Role]


class TokenVerifier:
    """Believes tokens of one issuer, meant for this server, while they last."""

    def __init__(self, options: TokenOptions, keys: TokenKeys | None = None) -> None:
        """Read the keys; raise `ConfigError` where that is not possible."""
        self._options = options
        self.keys = TokenKeys(options.keys) if keys is None else keys

    def verify(self, token: str) -> Identity | None:
        """Return whom a token names; None for one that cannot be believed, whatever is wrong with it."""
        if len(token) > MAX_TOKEN_CHARACTERS or token.count(".") != 2:
            return None
        try:
            claims = self._claims(token)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            # Whatever strangers send must be no error of ours.
            return None
        return None if claims is None else self._identity(claims)

    def _claims(self, token: str) -> dict[str, Any] | None:
        head = jwt.get_unverified_header(token)
        if "crit" in head or str(head.get("typ", "JWT")).lower() not in _TYPES:
            return None
        key, algorithm = self.keys.find(head.get("kid")), head.get("alg")
        if key is None or algorithm not in key.algorithms:
            return None
        return jwt.decode(
            token,
            key.public,
            algorithms=[algorithm],
            audience=self._options.audience,
            issuer=self._options.issuer,
            leeway=_LEEWAY_SECONDS,
            options={"require": _REQUIRED},
        )

    def _identity(self, claims: dict[str, Any]) -> Identity | None:
        subject, tenant = claims["sub"], _claim(claims, self._options.tenant_claim)
        if not isinstance(subject, str) or not subject or isinstance(claims["exp"], bool | str):
            return None
        if not isinstance(tenant, str) or not tenant:
            # Without one it would share the cached prefixes of all others without one.
            return None
        return Identity(name=_log_name(subject), tenant=tenant, roles=self._roles(claims))

    def _roles(self, claims: dict[str, Any]) -> frozenset[Role]:
        values = _claim(claims, self._options.role_claim)
        if isinstance(values, str):
            values = values.split()  # as in `scope`
        if not isinstance(values, list):
            return frozenset()
        roles = self._options.roles
        return frozenset(
            roles[value] for value in values[:_MAX_ROLE_VALUES] if isinstance(value, str) and value in roles
        )


def _claim(claims: dict[str, Any], path: str) -> object:
    """Return a claim; one whose name has dots may be an URL, else it is a path into objects."""
    if path in claims:
        return claims[path]
    value: object = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _log_name(subject: str) -> str:
    """Return a subject as logs may have it: free text of whoever registered is told by its digest."""
    return subject if _NAME.fullmatch(subject) else "sha256-" + hashlib.sha256(subject.encode()).hexdigest()[:32]
