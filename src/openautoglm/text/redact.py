"""Replaces private data in texts, and in streams of text with the same result however they are cut.

mask   "call 13812345678"  ->  "call [mobile]"
hash                       ->  "call [mobile:kfdocmlnabgipeoh]", the same mark for the same number under one key
block                      ->  the text is refused
"""

from __future__ import annotations

import hashlib
import hmac
import io
import secrets
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from openautoglm.errors import InvalidRequestError, PrivateDataError
from openautoglm.text.private_data import MAX_LENGTH, REACH, Kind, Match, find_private, last_break, plain_text

_MARK_BYTES = 8
# How far a stream without any break is let grow before it is searched again.
_STRIDE = 4096
# Marks are letters alone: hexadecimal ones would now and then be found to be telephone numbers.
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


class Mode(StrEnum):
    """What is done about private data."""

    MASK = "mask"
    HASH = "hash"
    BLOCK = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedactionOptions:
    """What to look for, and what to do about it. `key` makes marks of hashes; without one each start draws its own."""

    mode: Mode = Mode.MASK
    kinds: frozenset[Kind] = frozenset(Kind)
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)


class Redactor:
    """Redacts texts; safe from any thread."""

    def __init__(self, options: RedactionOptions) -> None:
        self._options = options
        plain_text("\u3000")  # makes the table now, not with the first request

    def redact(self, text: str, counts: Counter[str], *, max_matches: int | None = None) -> str:
        """Return the text with private data replaced, adding to `counts` by kind.

        Raises `PrivateDataError` in block mode, and `InvalidRequestError` when `counts` comes to more than
        `max_matches`. Time is linear in the text. Peak: the text three times, and 120 bytes a match.
        """
        # A list of pieces would take ten times a text that is made of nothing but short matches.
        written = io.StringIO()
        position = 0
        for match in find_private(plain_text(text), self._options.kinds):
            written.write(text[position : match.begin])
            written.write(self.replacement(match, counts))
            position = match.end
            if max_matches is not None and counts.total() > max_matches:
                raise InvalidRequestError(f"the text holds more than {max_matches} pieces of private data: send less")
        if position == 0:
            return text
        written.write(text[position:])
        return written.getvalue()

    def replacement(self, match: Match, counts: Counter[str]) -> str:
        """Return what stands for a match, and count it; raise `PrivateDataError` in block mode."""
        counts[match.kind.value] += 1
        if self._options.mode is Mode.BLOCK:
            raise PrivateDataError(
                f"the text holds private data ({match.kind.value}), which this server does not pass on: leave it out",
                kind=match.kind.value,
            )
        if self._options.mode is Mode.MASK:
            return f"[{match.kind.value}]"
        digest = hmac.digest(self._options.key, f"{match.kind.value}:{match.value}".encode(), hashlib.sha256)
        return f"[{match.kind.value}:{digest[:_MARK_BYTES].hex().translate(_LETTERS)}]"

    def stream(self, counts: Counter[str]) -> StreamRedactor:
        """Return a redactor of one text that comes in pieces."""
        return StreamRedactor(self, self._options.kinds, counts)


class StreamRedactor:
    """One text in pieces. Holds back what may be part of a match: a word or a number mostly, 8 KiB at most.

    ... given out | context | held back |
                  ^ REACH   ^ done
    """

    def __init__(self, redactor: Redactor, kinds: Collection[Kind], counts: Counter[str]) -> None:
        self._redactor, self._kinds, self._counts = redactor, kinds, counts
        self._text, self._plain = "", ""
        self._done = 0
        self._searched = 0

    def push(self, text: str) -> str:
        """Take the next piece; return what can no longer change."""
        self._text += text
        self._plain += plain_text(text)
        low = max(self._done, self._searched)
        decided = last_break(self._plain, low)
        if decided <= low:
            # No break in what is new: what lies further back than any match reaches is decided all the same.
            decided = len(self._plain) - MAX_LENGTH - REACH
            if decided < self._done + _STRIDE:
                decided = self._done
        given = self._give(decided) if decided > self._done else ""
        # Whether the last character is a break may be known with the next one.
        self._searched = max(0, len(self._plain) - 1)
        return given

    def flush(self) -> str:
        """Return the rest."""
        return self._give(len(self._plain))

    def _give(self, decided: int) -> str:
        """Give out what lies before `decided`, and matches that begin there."""
        pieces: list[str] = []
        for match in find_private(self._plain, self._kinds, self._done):
            if match.begin >= decided:
                break
            pieces += (self._text[self._done : match.begin], self._redactor.replacement(match, self._counts))
            self._done = match.end
        if decided > self._done:
            pieces.append(self._text[self._done : decided])
            self._done = decided
        cut = max(0, self._done - REACH)
        self._text, self._plain = self._text[cut:], self._plain[cut:]
        self._done -= cut
        return "".join(pieces)
