"""Server-sent events out of the bytes of a stream (WHATWG HTML, section 9.2), their data only."""

from __future__ import annotations

from collections.abc import Iterator

from openautoglm.errors import LoadTestError

MAX_EVENT_BYTES = 8 << 20


class EventReader:
    """Push bytes as they come; complete events come out. What a server sends is hostile: no event is unbounded."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def push(self, data: bytes) -> Iterator[bytes]:
        """Yield the data of each event that `data` completes. Raises `LoadTestError` for one without an end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise LoadTestError(f"an event of the stream has more than {MAX_EVENT_BYTES} bytes")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data.clear()
