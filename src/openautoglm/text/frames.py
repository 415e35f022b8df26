"""Frames over the pipes of a helper process, as its parent writes and reads them: up to a deadline, never for ever.

A frame is JSON behind a length of four bytes, big-endian. The descriptors do not block.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time

_LENGTH = struct.Struct(">I")
_READ_BYTES = 1 << 16


def write_frame(descriptor: int, value: object, deadline: float) -> int:
    """Write one frame; return the bytes of its JSON. Raises TimeoutError, or BrokenPipeError where nobody reads."""
    data = json.dumps(value).encode("ascii")
    rest = memoryview(_LENGTH.pack(len(data)) + data)
    while rest:
        _wait(descriptor, select.POLLOUT, deadline)
        rest = rest[os.write(descriptor, rest) :]
    return len(data)


def read_frame(descriptor: int, deadline: float, *, max_bytes: int) -> dict[str, object]:
    """Read one frame; raise TimeoutError at the deadline, EOFError at the end or for more than `max_bytes`."""
    size: int = _LENGTH.unpack(_read(descriptor, _LENGTH.size, deadline))[0]
    if size > max_bytes:
        raise EOFError
    value = json.loads(_read(descriptor, size, deadline))
    assert isinstance(value, dict)
    return value


def _wait(descriptor: int, event: int, deadline: float) -> None:
    """Wait until `descriptor` is ready; raise TimeoutError at the deadline."""
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _read(descriptor: int, size: int, deadline: float) -> bytes:
    pieces: list[bytes] = []
    while size:
        _wait(descriptor, select.POLLIN, deadline)
        piece = os.read(descriptor, min(size, _READ_BYTES))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
