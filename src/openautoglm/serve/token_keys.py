"""The keys that tokens are signed with: a JSON Web Key Set (RFC 7517) from a file or an address, kept current.

An address is asked at the start, every five minutes, and sooner when a token names a key that nobody knows, but never
more often than twice a minute: strangers decide how many such tokens come.
"""

from __future__ import annotations

import ipaddress
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from openautoglm.errors import ConfigError
from openautoglm.log import get_logger
from openautoglm.units import KIB

_MAX_BYTES = 256 * KIB
_MAX_KEYS = 64
_MIN_RSA_BITS = 2048
_FETCH_SECONDS = 5.0
_REFRESH_SECONDS = 300.0
_LEAST_SECONDS = 30.0
# An address that has not answered for so long may have revoked what is remembered of it.
_MAX_AGE_SECONDS = 86_400.0
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}

_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A public key, and the algorithms that it may be used with: none of them works with a shared secret."""

    identity: str | None
    public: RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
    algorithms: frozenset[str]


class TokenKeys:
    """The keys of `source`, a path or an address. `find` is for the event loop, `refresh` for a thread."""

    def __init__(self, source: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the keys; raise `ConfigError` where that is not possible."""
        self._source = source
        self._clock = clock
        self._remote = "://" in source
        if self._remote:
            _check_address(source)
        self._stamp = self._file_stamp()
        self._keys = self._read()
        self._asked = self._confirmed = clock()
        self._wanted = False

    def find(self, identity: object) -> TokenKey | None:
        """Return the key that a token names; one that names none gets the only key, if there is only one."""
        if self._remote and self._clock() - self._confirmed > _MAX_AGE_SECONDS:
            return None
        if identity is None:
            return self._keys[0] if len(self._keys) == 1 else None
        found = next((key for key in self._keys if key.identity == identity), None)
        if found is None:
            self._wanted = True
        return found

    def refresh(self) -> bool:
        """Read the keys again if that is due; return whether it was done. Keys stay as they are where it fails."""
        if not self._due():
            return False
        try:
            self._keys = self._read()
        except ConfigError as error:
            _logger.warning("the keys of tokens stay as they were: %s", error)
            return False
        self._confirmed = self._clock()
        return True

    def _due(self) -> bool:
        if not self._remote:
            stamp, self._stamp = self._stamp, self._file_stamp()
            return stamp != self._stamp
        now = self._clock()
        if now - self._asked < (_LEAST_SECONDS if self._wanted else _REFRESH_SECONDS):
            return False
        self._asked, self._wanted = now, False
        return True

    def _file_stamp(self) -> tuple[int, ...]:
        if self._remote:
            return ()
        try:
            status = Path(self._source).stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_ino, status.st_size

    def _read(self) -> tuple[TokenKey, ...]:
        try:
            data = _fetch(self._source) if self._remote else _read_file(Path(self._source))
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise ConfigError(
                f"--jwt-keys {self._source} cannot be read: {reason}: correct it, or start that server"
            ) from None
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"--jwt-keys {self._source} is larger than {_MAX_BYTES} bytes: that is no key set")
        return parse_key_set(data, self._source)


def parse_key_set(data: bytes, source: str) -> tuple[TokenKey, ...]:
    """Return the keys of a set that can verify signatures; raise `ConfigError` for a set that cannot be trusted."""
    try:
        entries = msgspec.json.decode(data, type=dict[str, Any])["keys"]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("no list of keys")
    except (msgspec.MsgspecError, RecursionError, KeyError, ValueError) as error:
        raise ConfigError(f"--jwt-keys {source} is no JSON Web Key Set ({error}): see RFC 7517") from None
    keys = tuple(key for entry in entries[: _MAX_KEYS + 1] if (key := _parse_key(entry, source)) is not None)
    if not keys or len(keys) > _MAX_KEYS:
        raise ConfigError(f"--jwt-keys {source} has {len(keys)} keys for signatures: 1 to {_MAX_KEYS} are expected")
    names = [key.identity for key in keys]
    if len(set(names)) < len(names):
        raise ConfigError(f"--jwt-keys {source} has two keys with one name (kid): which is meant cannot be known")
    return keys


def _parse_key(entry: dict[str, Any], source: str) -> TokenKey | None:
    """Return a key; None for one of a kind that is not for us, such as for encryption."""
    if entry.get("use", "sig") != "sig" or not _algorithms(entry):
        return None
    identity = entry.get("kid")
    if "d" in entry:
        raise ConfigError(f"--jwt-keys {source}: the key {str(identity)[:64]!r} is a private one: give the public half")
    try:
        public = jwt.PyJWK(entry, algorithm=min(_algorithms(entry))).key
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise ConfigError(f"--jwt-keys {source}: the key {str(identity)[:64]!r} is malformed: {error}") from None
    if isinstance(public, RSAPublicKey) and public.key_size < _MIN_RSA_BITS:
        raise ConfigError(f"--jwt-keys {source}: RSA keys need {_MIN_RSA_BITS} bits, one has {public.key_size}")
    if identity is not None and not isinstance(identity, str):
        raise ConfigError(f"--jwt-keys {source}: the name (kid) of a key must be text")
    return TokenKey(identity=identity, public=public, algorithms=_algorithms(entry))


def _algorithms(entry: dict[str, Any]) -> frozenset[str]:
    """Return what a key may be used with: what it says itself, within what its kind can do. Empty for secrets."""
    match entry.get("kty"):
        case "RSA":
            possible = _RSA
        case "EC":
            possible = frozenset({_CURVES[entry["crv"]]}) if entry.get("crv") in _CURVES else frozenset()
        case "OKP":
            possible = frozenset({"EdDSA"}) if entry.get("crv") == "Ed25519" else frozenset()
        case _:
            possible = frozenset()
    return possible & {entry["alg"]} if "alg" in entry else possible


def _check_address(source: str) -> None:
    address = urlsplit(source)
    try:
        local = address.hostname == "localhost" or ipaddress.ip_address(address.hostname or "").is_loopback
    except ValueError:
        local = False
    if address.scheme != "https" and not (address.scheme == "http" and local):
        raise ConfigError(f"--jwt-keys {source}: an address must begin with https://, as whoever answers decides")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The address is the operator's word; another one is not."""

    def redirect_request(self, *arguments: object, **named: object) -> None:
        """Follow nothing."""


def _fetch(source: str) -> bytes:
    opener = urllib.request.build_opener(_NoRedirects)
    with opener.open(source, timeout=_FETCH_SECONDS) as reply:
        data: bytes = reply.read(_MAX_BYTES + 1)
    return data


def _read_file(file: Path) -> bytes:
    with file.open("rb") as source:
        return source.read(_MAX_BYTES + 1)
