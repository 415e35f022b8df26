"""The W3C's `traceparent` header (https://www.w3.org/TR/trace-context/): which trace a request belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass

# version, trace id, id of the caller's span, flags; later versions may append more.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """Ids in hexadecimal digits: of the trace, and of the span that `traceparent` names."""

    trace_id: str
    span_id: str
    sampled: bool

    def header(self) -> str:
        """Return the value of a `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_traceparent(value: bytes | None) -> TraceContext | None:
    """Return what a header says; None for one that is missing or malformed, which the standard has ignored."""
    found = _TRACEPARENT.fullmatch((value or b"").decode("latin-1").strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id=trace_id, span_id=span_id, sampled=bool(int(flags, 16) & _SAMPLED))
