"""What an operator decides about the HTTP edge."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from openautoglm.errors import ConfigError
from openautoglm.serve.answer_options import AnswerOptions
from openautoglm.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """Names and limits.

    A request's head has `header_seconds` to arrive, its body `body_seconds`; connections may idle for `idle_seconds`.
    `max_requests` are under way at once, `client_seconds` is how long a client may take nothing of its stream.
    `ping_seconds` is how long a stream may be silent before a comment keeps proxies from cutting it. A `strict` server
    refuses what it would otherwise do differently than asked, and say so. Responses that a client asked to have
    stored are kept for `stored_seconds`, at most `max_stored_responses` of each tenant.
    """

    model_names: tuple[str, ...]
    max_body_bytes: int = MIB
    max_requests: int = 512
    max_json_depth: int = 64
    max_prompts: int = 64
    max_choices: int = 128
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 30.0
    ping_seconds: float = 10.0
    status_seconds: float = 2.0
    stalled_seconds: float = 10.0
    client_seconds: float = 60.0
    max_stored_responses: int = 256
    stored_seconds: float = 3600.0
    strict: bool = False
    answers: AnswerOptions = field(default_factory=AnswerOptions)


def check_bind(host: str, *, guarded: bool) -> None:
    """Raise `ConfigError` for an address that others can reach while no key is asked for."""
    if not guarded and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines in, and no API key is set: set OPENAUTOGLM_API_KEY (or --api-key), or "
            "a --keys-file, or --jwt-issuer, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
