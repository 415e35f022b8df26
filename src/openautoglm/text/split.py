"""Cuts a long document into pieces of at most so many tokens, where its meaning pauses.

    document   | piece 0 ......... | piece 1 ............ | piece 2 ... |
    text of 1             | overlap | piece 1 ............ |

The pieces without their overlap, joined, are the document. A piece ends at the strongest boundary of its last part: of
equal ones at the latest (see `boundaries` for what they are). Code blocks and rows of tables stay whole; one that alone
is larger than the budget is cut between its lines, cells or words, and the pieces say so.

Tokens are counted twice: once over the whole document, to know where about a piece ends, and once over each piece, as
the same text may have more tokens by itself. Time is linear in the document.
"""

from __future__ import annotations

import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from openautoglm.errors import InvalidRequestError
from openautoglm.text.boundaries import TABLE_ROW, Boundary, Structure, find_structure

# Below this a single character may not fit.
MIN_TOKENS = 32
# The share of the budget that a piece must fill before it may end at such a boundary, from the strongest on.
_LEAST_FILL = (
    (Boundary.SECTION, 0.5), (Boundary.PARAGRAPH, 0.4), (Boundary.ITEM, 0.4), (Boundary.SENTENCE, 0.15),
    (Boundary.CLAUSE, 0.3), (Boundary.LINE, 0.3),
)  # fmt: skip
# How far a cut between words or characters may move back for a better place.
_WORD_REACH = 64
_MARK_REACH = 16
_JOINER = "\u200d"
_WIDE = "\u2e80"


class TokenCounter(Protocol):
    """What splitting asks of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        ...

    def token_begins(self, text: str) -> array[int]:
        """Return the character that each token begins in, ascending."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Characters [begin, end) of the document; its text begins at `overlap_begin`, and has `num_tokens`.

    `boundary` is where it ends. `broken` is "code_block" or "table_row" if it ends inside one that alone exceeds the
    budget.
    """

    begin: int
    end: int
    overlap_begin: int
    num_tokens: int
    boundary: Boundary
    broken: str | None = None


def split_text(
    text: str, tokens: TokenCounter, *, max_tokens: int, overlap_tokens: int = 0, max_pieces: int | None = None
) -> list[Piece]:
    """Return the pieces of a document, in order; none of an empty one.

    `max_tokens` bounds a piece with its overlap, `overlap_tokens` the overlap: whole sentences at the end of the piece
    before, where they fit. Raises `InvalidRequestError` for numbers that cannot be, for text that is not Unicode, for a
    character that alone exceeds the budget, and for more than `max_pieces`. Peak: 4 bytes for each of the document's
    tokens, 5 for each boundary.
    """
    if max_tokens < MIN_TOKENS:
        raise InvalidRequestError(f"max_tokens must be {MIN_TOKENS} or more, got {max_tokens}", param="max_tokens")
    if not 0 <= overlap_tokens <= max_tokens // 2:
        raise InvalidRequestError(
            f"overlap_tokens must be from 0 to half of max_tokens, {max_tokens // 2}, got {overlap_tokens}",
            param="overlap_tokens",
        )
    splitter = _Splitter(text, tokens, max_tokens, overlap_tokens)
    pieces: list[Piece] = []
    while splitter.begin < len(text):
        if max_pieces is not None and len(pieces) == max_pieces:
            raise InvalidRequestError(
                f"the text makes more than {max_pieces} pieces of {max_tokens} tokens: raise max_tokens, or send less",
                param="max_tokens",
            )
        pieces.append(splitter.next())
    return pieces


class _Splitter:
    def __init__(self, text: str, tokens: TokenCounter, max_tokens: int, overlap_tokens: int) -> None:
        self._text, self._tokens = text, tokens
        self._max_tokens, self._overlap_tokens = max_tokens, overlap_tokens
        self._begins = tokens.token_begins(text)
        self._structure = find_structure(text)
        # A block that is being cut: where it ends, what it is, and the boundaries inside.
        self._broken_until, self._broken_kind = 0, ""
        self._inner = Structure()
        self.begin = 0

    def next(self) -> Piece:
        """Return the next piece."""
        for overlap_begin in dict.fromkeys((self._overlap_begin(), self.begin)):
            room = self._max_tokens
            attempts = 0
            while True:
                end, boundary, broken = self._end(overlap_begin, room)
                if end <= self.begin:
                    break
                num_tokens = len(self._tokens.encode(self._text[overlap_begin:end]))
                if num_tokens <= self._max_tokens:
                    piece = Piece(
                        begin=self.begin, end=end, overlap_begin=overlap_begin, num_tokens=num_tokens,
                        boundary=boundary, broken=broken,
                    )  # fmt: skip
                    self.begin = end
                    return piece
                attempts += 1
                fewer = room - (num_tokens - self._max_tokens)
                room = fewer if attempts < 4 and fewer > 0 else room // 2
        raise InvalidRequestError(
            f"U+{ord(self._text[self.begin]):04X} alone is more than {self._max_tokens} tokens: raise max_tokens",
            param="max_tokens",
        )

    def _end(self, overlap_begin: int, room: int) -> tuple[int, Boundary, str | None]:
        """Return where a piece of about `room` tokens ends, and how; `begin` or less if nothing fits."""
        text, first = self._text, self._token_at(overlap_begin)
        limit = self._char_at(first + room)
        if limit >= len(text):
            return len(text), Boundary.END, None
        least = [(level, self._char_at(first + int(share * room))) for level, share in _LEAST_FILL]
        if self.begin >= self._broken_until:
            found = _best(self._structure, self.begin, limit, least)
            if found is not None:
                return *found, None
            if overlap_begin < self.begin:
                return self.begin, Boundary.CHARACTER, None
            block = self._structure.block_at(self.begin)
            if block is None:
                return *_word_end(text, self.begin, limit), None
            if not self._exceeds(block[1]):
                return block[1], Boundary.PARAGRAPH, None
            self._broken_until, self._broken_kind = block[1], block[2]
            self._inner = _inner_structure(text, *block)
        if limit >= self._broken_until:
            return *(_best(self._structure, self.begin, limit, least) or (self._broken_until, Boundary.PARAGRAPH)), None
        return *(_best(self._inner, self.begin, limit, least) or _word_end(text, self.begin, limit)), self._broken_kind

    def _exceeds(self, block_end: int) -> bool:
        """Whether a block, whose tokens were only estimated, is really larger than the budget."""
        estimate = self._token_at(block_end) - self._token_at(self.begin)
        if estimate > 2 * self._max_tokens:
            return True
        return len(self._tokens.encode(self._text[self.begin : block_end])) > self._max_tokens

    def _overlap_begin(self) -> int:
        """Return where the overlap with the piece before begins: `begin` for none."""
        if not self._overlap_tokens or self.begin < self._broken_until:
            return self.begin
        first = max(0, self._token_at(self.begin) - self._overlap_tokens)
        low = self._char_at(first)
        positions, levels = self._structure.positions, self._structure.levels
        left, right = bisect_left(positions, low), bisect_left(positions, self.begin)
        inside = range(left, right)
        start = [0] if first == 0 else []
        candidates = [positions[index] for index in inside if levels[index] >= Boundary.SENTENCE]
        candidates = start + (candidates or [positions[index] for index in inside])
        if not candidates:
            word = self._text.find(" ", low, self.begin) + 1
            block = self._structure.block_at(word)
            candidates = [word] if word and (block is None or block[0] == word) else []
        for candidate in candidates[:3]:
            if len(self._tokens.encode(self._text[candidate : self.begin])) <= self._overlap_tokens:
                return candidate
        return self.begin

    def _token_at(self, position: int) -> int:
        return bisect_left(self._begins, position)

    def _char_at(self, token: int) -> int:
        return self._begins[token] if token < len(self._begins) else len(self._text)


def _best(
    structure: Structure, begin: int, limit: int, least: Sequence[tuple[Boundary, int]]
) -> tuple[int, Boundary] | None:
    """Return the boundary in (begin, limit] to end at: the strongest that fills a piece enough, else the last."""
    positions, levels = structure.positions, structure.levels
    low, high = bisect_right(positions, begin), bisect_right(positions, limit)
    latest: dict[int, int] = {}
    floor = min(position for _, position in least)
    for index in range(high - 1, low - 1, -1):
        latest.setdefault(levels[index], positions[index])
        if positions[index] < floor:
            break
    for level, floor in least:
        enough = [(position, other) for other, position in latest.items() if other >= level and position >= floor]
        if enough:
            position, other = max(enough)
            return position, Boundary(other)
    if not latest:
        return None
    position, other = max((position, other) for other, position in latest.items())
    return position, Boundary(other)


def _inner_structure(text: str, begin: int, end: int, kind: str) -> Structure:
    """Return the boundaries inside a block that must be cut: cells of a row; empty lines, and lines, of code."""
    found = Structure()
    sign = "|" if kind == TABLE_ROW else "\n"
    position = begin
    while 0 <= (position := text.find(sign, position, end)) < end - 1:
        position += 1
        blank = sign == "\n" and text[position] == "\n"
        found.add(position, Boundary.PARAGRAPH if blank else Boundary.LINE)
    return found


def _word_end(text: str, begin: int, limit: int) -> tuple[int, Boundary]:
    """Return the end of a piece that has no boundary: between two words, or else between two characters."""
    for position in range(limit, max(begin, limit - _WORD_REACH), -1):
        if text[position - 1].isspace() or (text[position - 1] >= _WIDE and text[position] >= _WIDE):
            if _joined(text, position):
                continue
            return position, Boundary.WORD
    for position in range(limit, max(begin, limit - _MARK_REACH), -1):
        if not _joined(text, position):
            return position, Boundary.CHARACTER
    return limit, Boundary.CHARACTER


def _joined(text: str, position: int) -> bool:
    """Whether a cut here would part what is read as one character."""
    before, behind = text[position - 1], text[position]
    return (
        (before == "\r" and behind == "\n")
        or _JOINER in (before, behind)
        or unicodedata.category(behind) in ("Mn", "Me", "Mc")
        or "\U0001f3fb" <= behind <= "\U0001f3ff"
        or ("\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= behind <= "\U0001f1ff")
    )
