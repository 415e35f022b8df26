"""Who may use what: callers, known by their keys, and the role that each path needs. What is not listed is closed."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from openautoglm.errors import ConfigError
from openautoglm.log import get_logger
from openautoglm.serve.keys import KeyLimits, KeyRecord, Role, key_digest, read_keys
from openautoglm.serve.replies import ErrorReply
from openautoglm.serve.token_options import TokenOptions
from openautoglm.spec.scheduling import Queue

if TYPE_CHECKING:
    from openautoglm.serve.tokens import TokenVerifier

# Open without a key, and answered while the server drains.
OPEN_PATHS = frozenset({"/health"})
# Path -> role; one that ends in a slash stands for all below. Decided on the string that routes match.
_ROLES = {
    "/v1/": Role.USER,
    "/tokenize": Role.USER,
    "/detokenize": Role.USER,
    "/openapi.json": Role.USER,
    "/metrics": Role.METRICS,
    "/admin": Role.ADMIN,
    "/admin/": Role.ADMIN,
}
_EXACT = {path: role for path, role in _ROLES.items() if not path.endswith("/")}
_BELOW = tuple((path, role) for path, role in _ROLES.items() if path.endswith("/"))
_SINGLE_KEYS = {
    # One key was enough for all but /admin before there were roles, and still is.
    "api-key": frozenset({Role.USER, Role.METRICS}),
    "admin-key": frozenset({Role.ADMIN}),
    "metrics-key": frozenset({Role.METRICS}),
}
_LOOK_SECONDS = 1.0
_UNLIMITED = KeyLimits()

_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request: a key's name, its roles and limits, the best queue that it may ask for, and where its cached
    prefixes are."""

    name: str
    roles: frozenset[Role]
    namespace: str = ""
    limits: KeyLimits = _UNLIMITED
    queue: Queue = Queue.NORMAL


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessOptions:
    """Where keys come from: single ones, a file of many, and tokens of an identity provider. Without `api_key`,
    `keys_file` and `tokens` everybody may generate and read metrics, which only loopback allows; /admin needs a key
    always."""

    api_key: str | None = field(default=None, repr=False)
    admin_key: str | None = field(default=None, repr=False)
    metrics_key: str | None = field(default=None, repr=False)
    keys_file: Path | None = None
    tokens: TokenOptions | None = None

    @property
    def guarded(self) -> bool:
        """Whether strangers are kept out."""
        return self.api_key is not None or self.keys_file is not None or self.tokens is not None


def role_of(path: str) -> Role | None:
    """Return the role that a path needs; None for one that nobody gets."""
    return _EXACT.get(path) or next((role for start, role in _BELOW if path.startswith(start)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    digest: bytes
    caller: Caller
    expires: int | None = None


class Access:
    """Knows the keys and decides."""

    def __init__(self, options: AccessOptions | None = None) -> None:
        """Read the keys; raise `ConfigError` for a source that cannot be used."""
        options = options or AccessOptions()
        self._file = options.keys_file
        self._secret = secrets.token_bytes(32)
        # One key may be given for several things.
        given: dict[str, list[str]] = {}
        for name, key in zip(_SINGLE_KEYS, (options.api_key, options.admin_key, options.metrics_key), strict=True):
            if key is not None:
                given.setdefault(key, []).append(name)
        self._single = [
            _Key(
                digest=key_digest(key),
                caller=self._caller(names[0], frozenset().union(*map(_SINGLE_KEYS.__getitem__, names)), names[0]),
            )
            for key, names in given.items()
        ]
        self._keys = self._single
        unguarded = {Role.USER} if options.metrics_key is not None else {Role.USER, Role.METRICS}
        self._stranger = Caller(
            name="stranger", roles=frozenset(() if options.guarded else unguarded), queue=Queue.HIGH
        )
        self._tokens = _verifier(options.tokens)
        self._stamp: tuple[int, ...] = ()
        if self._file is not None:
            self._stamp = _stamp(self._file)
            self._take(read_keys(self._file))

    def decide(self, path: str, authorization: bytes | None) -> Caller | ErrorReply:
        """Return who calls, or why not; how long it takes tells nothing of the keys."""
        if path in OPEN_PATHS:
            return self._stranger
        caller = self._find(_bearer_key(authorization))
        role = role_of(path)
        if role is not None and role in caller.roles:
            return caller
        if (
            role is Role.ADMIN
            and self._tokens is None
            and not any(Role.ADMIN in key.caller.roles for key in self._keys)
        ):
            return ErrorReply(
                status=403,
                message="this server has no admin key: start it with OPENAUTOGLM_ADMIN_KEY (or --admin-key), or with a "
                "--keys-file that has one, for /admin",
                code="no_admin_key",
            )
        if caller is self._stranger and (role is not None or not caller.roles):
            needed = "its API key" if role in (None, Role.USER) else f"a key with the role {role}"
            return ErrorReply(
                status=401,
                message=f"this server needs {needed} here: send Authorization: Bearer <key> (or X-Api-Key)",
                code="invalid_api_key",
                headers=(("WWW-Authenticate", "Bearer"),),
            )
        if role is None:
            return ErrorReply(status=404, message="there is no such path on this server", code="not_found")
        return ErrorReply(
            status=403, message=f"this path needs the role {role}, which this key does not have", code="missing_role"
        )

    @property
    def may_change(self) -> bool:
        """Whether keys come from where they may change."""
        return self._file is not None or self._tokens is not None

    def reload_if_changed(self, *, force: bool = False) -> bool:
        """Read the keys file again if it has changed; return whether that was done.

        One that cannot be used is told in the log, and the keys stay: a slip of an editor must not lock everybody out.
        """
        if self._file is None:
            return False
        stamp = _stamp(self._file)
        if stamp == self._stamp and not force:
            return False
        self._stamp = stamp
        try:
            self._take(read_keys(self._file))
        except ConfigError as error:
            _logger.error("the keys stay as they were: %s", error)
            return False
        _logger.warning("the keys were read again: %d in %s", len(self._keys) - len(self._single), self._file)
        return True

    def _find(self, text: str | None) -> Caller:
        """Return whose key it is; all are compared, whichever is right."""
        found = self._stranger
        if text is None:
            return found
        digest = key_digest(text)
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest) and (key.expires is None or time.time() < key.expires):
                found = key.caller
        if found is self._stranger and self._tokens is not None:
            identity = self._tokens.verify(text)
            if identity is not None:
                # An issuer's tenants are not those of the keys file, whatever they are called.
                return self._caller(f"jwt:{identity.name}", identity.roles, f"jwt:{identity.tenant}")
        return found

    def refresh_tokens(self) -> bool:
        """Read the keys of tokens again if that is due; return whether it was done."""
        return self._tokens is not None and self._tokens.keys.refresh()

    def _take(self, records: tuple[KeyRecord, ...]) -> None:
        self._keys = [
            *self._single,
            *(
                _Key(
                    digest=bytes.fromhex(record.sha256),
                    caller=self._caller(
                        f"key:{record.name}",
                        frozenset(record.roles),
                        f"key:{record.owner}",
                        record.limits,
                        record.queue,
                    ),
                    expires=record.expires,
                )
                for record in records
            ),
        ]

    def _caller(
        self,
        name: str,
        roles: frozenset[Role],
        tenant: str,
        limits: KeyLimits = _UNLIMITED,
        queue: str = Queue.HIGH.label,
    ) -> Caller:
        # Nobody who does not know the secret can name another tenant's prefixes; each start has a new one.
        namespace = hmac.digest(self._secret, tenant.encode(), "sha256").hex()
        return Caller(name=name, roles=roles, namespace=namespace, limits=limits, queue=Queue[queue.upper()])


async def keep_current(access: Access) -> None:
    """Follow the keys for ever."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        await asyncio.to_thread(access.reload_if_changed)
        await asyncio.to_thread(access.refresh_tokens)


def _verifier(options: TokenOptions | None) -> TokenVerifier | None:
    if options is None:
        return None
    options.check()

    from openautoglm.serve.tokens import TokenVerifier  # needs an extra

    return TokenVerifier(options)


def _stamp(file: Path) -> tuple[int, ...]:
    """Return what changes when the file does; what is not there has no stamp."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ino, status.st_size


def _bearer_key(authorization: bytes | None) -> str | None:
    scheme, _, key = (authorization or b"").decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
