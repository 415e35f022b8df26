"""Traces of traffic: when requests arrive and how long they are, as a file that load tests and simulations share.

One JSON object a line, times in seconds from the beginning of the trace:

    {"arrival_seconds": 0.25, "prompt_tokens": 180, "output_tokens": 64, "max_tokens": 256, "deadline_seconds": 8}

Only the first three are needed. `output_tokens` is where the answer ends, `max_tokens` all that a server is told of it
(by default the same). Empty lines and lines that begin with # are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from openautoglm.errors import ConfigError

MAX_REQUESTS = 1_000_000
_MAX_TOKENS = 1 << 24
_MAX_SECONDS = 30 * 86400.0

_Tokens = Annotated[int, msgspec.Meta(ge=1, le=_MAX_TOKENS)]


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request. `deadline_seconds` is how long after its arrival it must have ended; None: whenever."""

    arrival_seconds: Annotated[float, msgspec.Meta(ge=0, le=_MAX_SECONDS)]
    prompt_tokens: _Tokens
    output_tokens: _Tokens
    max_tokens: _Tokens | None = None
    deadline_seconds: Annotated[float, msgspec.Meta(gt=0, le=_MAX_SECONDS)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0

    @property
    def limit_tokens(self) -> int:
        """What the server is told of the answer's length."""
        return self.output_tokens if self.max_tokens is None else self.max_tokens


def parse_trace(lines: Iterable[str], *, source: str) -> tuple[TraceRequest, ...]:
    """Return the requests in the order of their arrival; equal times keep the file's order.

    Raises `ConfigError` naming `source` and the line for what is no request, and for a trace without any.
    """
    decoder = msgspec.json.Decoder(TraceRequest)
    requests: list[TraceRequest] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            request = decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise ConfigError(f"{source}, line {number}: {error}: expected one request as JSON") from error
        if request.limit_tokens < request.output_tokens:
            raise ConfigError(
                f"{source}, line {number}: output_tokens {request.output_tokens} is above max_tokens "
                f"{request.max_tokens}: an answer ends at max_tokens"
            )
        requests.append(request)
        if len(requests) > MAX_REQUESTS:
            raise ConfigError(f"{source} has more than {MAX_REQUESTS} requests: cut it into several")
    if not requests:
        raise ConfigError(f"{source} holds no request: write one JSON object a line")
    return tuple(sorted(requests, key=lambda request: request.arrival_seconds))


def format_trace(requests: Iterable[TraceRequest]) -> str:
    """Return the text of a trace file."""
    encoder = msgspec.json.Encoder()
    return "".join(
        encoder.encode(
            {key: value for key, value in msgspec.structs.asdict(request).items() if value is not None}
        ).decode()
        + "\n"
        for request in requests
    )
