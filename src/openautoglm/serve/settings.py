"""What an operator decides about the HTTP edge."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

from openautoglm.errors import ConfigError
from openautoglm.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """Names, keys and limits. `api_key_digest` is SHA-256 of the key; the key itself is not kept. `admin_key_digest`
    is that of the key for /admin; without one these routes are refused.

    `max_requests` are under way at once, `client_seconds` is how long a client may take nothing of its stream.
    `ping_seconds` is how long a stream may be silent before a comment keeps proxies from cutting it. A `strict` server
    refuses what it would otherwise do differently than asked, and say so.
    """

    model_names: tuple[str, ...]
    api_key_digest: bytes | None = None
    admin_key_digest: bytes | None = None
    max_body_bytes: int = MIB
    max_requests: int = 512
    max_json_depth: int = 64
    max_prompts: int = 64
    max_choices: int = 128
    body_seconds: float = 30.0
    ping_seconds: float = 10.0
    status_seconds: float = 2.0
    stalled_seconds: float = 10.0
    client_seconds: float = 60.0
    strict: bool = False

    def accepts_key(self, key: str | None) -> bool:
        """Whether a client's key is right, in a time that does not tell how much of it was; True if none is needed."""
        if self.api_key_digest is None:
            return True
        return key is not None and hmac.compare_digest(key_digest(key), self.api_key_digest)

    def accepts_admin_key(self, key: str | None) -> bool:
        """Whether an operator's key is right; False if there is none to be right."""
        if self.admin_key_digest is None or key is None:
            return False
        return hmac.compare_digest(key_digest(key), self.admin_key_digest)


def key_digest(key: str) -> bytes:
    """Return what is kept of an API key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def check_bind(host: str, api_key: str | None) -> None:
    """Raise `ConfigError` for an address that others can reach while no key is asked for."""
    if api_key is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines in, and no API key is set: set OPENAUTOGLM_API_KEY (or --api-key), "
            "or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
