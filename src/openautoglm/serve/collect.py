"""Pieces of an answer that is collected, as the bytes that it will be made of: objects would take ten times as much."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from openautoglm.serve.intake import AnswerCharge


class CollectedText:
    """Text as UTF-8."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, text: str, charge: AnswerCharge) -> None:
        """Append; raise `OverloadedError` where there is no room for it."""
        data = text.encode("utf-8", "surrogatepass")
        charge.add(len(data))
        self._data += data

    def text(self) -> str:
        """Return all of it."""
        return self._data.decode("utf-8", "surrogatepass")


class CollectedList:
    """A JSON list."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, items: Iterable[object], charge: AnswerCharge) -> None:
        """Append; raise `OverloadedError` where there is no room for it."""
        for item in items:
            data = msgspec.json.encode(item)
            charge.add(len(data) + 1)
            if self._data:
                self._data += b","
            self._data += data

    def raw(self) -> msgspec.Raw:
        """Return all of it, for an encoder to put into its place."""
        return msgspec.Raw(b"[" + self._data + b"]")
