"""API keys at rest: a JSON file of names, roles, limits and SHA-256 digests; the keys themselves are never kept.

A key is 256 random bits, so one round of SHA-256 is as hard to turn back as many; a slow hash would only let strangers
keep the processor busy with wrong keys.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from openautoglm.errors import ConfigError
from openautoglm.units import MIB

# Each request is compared with all of them.
MAX_KEYS = 1000
_MAX_FILE_BYTES = MIB
_KEY_BYTES = 32
_KEY_PREFIX = "oag-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_Limit = Annotated[int, msgspec.Meta(ge=1, le=1 << 60)]


class Role(StrEnum):
    """What a key opens: generating text, /admin, or /metrics. A key may have several."""

    USER = "user"
    ADMIN = "admin"
    METRICS = "metrics"


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a key may use; None is no limit. `max_requests` are under way at once, `kv_bytes` is KV cache that they can
    come to hold together."""

    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    max_requests: _Limit | None = None
    kv_bytes: _Limit | None = None


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key. `sha256` is the hexadecimal digest of it; `created` and `expires` are seconds since 1970.

    Keys of one `tenant` share cached prefixes; without one a key is a tenant of its own. `queue` is the best one
    that its requests may ask for.
    """

    name: str
    roles: tuple[Role, ...]
    sha256: str
    created: int
    expires: int | None = None
    tenant: str | None = None
    limits: KeyLimits = KeyLimits()
    queue: Literal["high", "normal", "batch"] = "normal"

    @property
    def owner(self) -> str:
        """The tenant that it belongs to."""
        return self.tenant or self.name


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    keys: tuple[KeyRecord, ...]


def key_digest(key: str) -> bytes:
    """Return what is kept of an API key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def new_key() -> str:
    """Return a key that nobody had before and nobody can guess."""
    return _KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def read_keys(file: Path) -> tuple[KeyRecord, ...]:
    """Return the keys of a file; raise `ConfigError` for one that cannot be read, trusted or understood."""
    try:
        with file.open("rb") as source:
            mode = os.fstat(source.fileno()).st_mode
            data = source.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"keys file {file}: {error.strerror or error}: make one with `openautoglm keys`") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"keys file {file} can be written by others, who could let themselves in: chmod 600 it")
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"keys file {file} is larger than {_MAX_FILE_BYTES} bytes: that is no keys file")
    try:
        content = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys file {file} is malformed: {error}: correct it") from error
    if content.version != 1:
        raise ConfigError(
            f"keys file {file} has version {content.version}, and only 1 is known here: use a newer release"
        )
    _check(file, content.keys)
    return content.keys


def change_keys(file: Path, change: Callable[[tuple[KeyRecord, ...]], tuple[KeyRecord, ...]]) -> None:
    """Replace the keys of a file, made if there is none, by what `change` returns; readers see all of it or nothing.

    Raises `ConfigError` as `read_keys` does, and `OSError` where the directory cannot be written.
    """
    file = file.resolve()
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Of two that change it at once the second sees what the first has made.
        fcntl.flock(directory, fcntl.LOCK_EX)
        keys = change(read_keys(file) if file.exists() else ())
        _check(file, keys)
        _replace(file, msgspec.json.format(msgspec.json.encode(_File(version=1, keys=keys)), indent=2) + b"\n")
        os.fsync(directory)
    finally:
        os.close(directory)


def _replace(file: Path, data: bytes) -> None:
    # mkstemp lets nobody else read or write it.
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(descriptor)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _check(file: Path, keys: tuple[KeyRecord, ...]) -> None:
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"keys file {file} has {len(keys)} keys, more than {MAX_KEYS}: revoke some")
    for what, values in (("name", [key.name for key in keys]), ("digest", [key.sha256 for key in keys])):
        twice = {value for value in values if values.count(value) > 1} if len(set(values)) < len(values) else set()
        if twice:
            raise ConfigError(f"keys file {file}: two keys have the {what} {min(twice)}: remove one")
    for key in keys:
        for what, name in (("name", key.name), ("tenant", key.owner)):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"keys file {file}: the {what} {name[:80]!r} must be up to 64 letters, digits, dots, dashes "
                    "or underscores"
                )
        if not _DIGEST.fullmatch(key.sha256):
            raise ConfigError(f"keys file {file}: sha256 of {key.name} must be 64 hexadecimal digits in lower case")
        if not key.roles:
            raise ConfigError(f"keys file {file}: {key.name} has no role: give it one of {', '.join(Role)}")
