"""Where a text may be cut: boundaries with a strength, and blocks that stay whole, found in one pass over its lines.

    # Heading          <- SECTION before it
    A sentence. The    <- SENTENCE after "sentence. "; CLAUSE behind commas; LINE where only the line ends
    next one.
                       <- PARAGRAPH behind empty lines, and around code blocks and tables
    - an item          <- ITEM before it

Blocks are Markdown's: fenced code, code indented by four columns behind an empty line, and rows of tables (lines
between pipes, or below a row of dashes). Chinese and English punctuation are known. A boundary stands behind the white
space that follows the sign, so that pieces begin with text. Time is linear in the text.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import IntEnum


class Boundary(IntEnum):
    """How strong a boundary is; END is that of the document."""

    CHARACTER = 0
    WORD = 1
    LINE = 2
    CLAUSE = 3
    SENTENCE = 4
    ITEM = 5
    PARAGRAPH = 6
    SECTION = 7
    END = 8


CODE_BLOCK, TABLE_ROW = "code_block", "table_row"

_LINE = re.compile(r"[^\n]*+\n?+")
_FENCE = re.compile(r"[ \t]*+(`{3,}+|~{3,}+)([^\n]*)")
_HEADING = re.compile(
    r" {0,3}#{1,6}[ \t]|[一二三四五六七八九十]{1,3}+、"
    r"|[ \t\u3000]*+第[0-9〇零一二三四五六七八九十百千]{1,9}+[章节回部篇卷]"
)
_UNDERLINE = re.compile(r"([=\-~^*])\1{2,}+[ \t]*+$")
_ITEM = re.compile(
    r"[ \t\u3000]*+(?:[-*+•][ \t]|[0-9]{1,3}+[.)][ \t]|[0-9]{1,3}+[、．）]"
    r"|[(（][0-9一二三四五六七八九十]{1,3}+[)）])"
)
_DASHES = re.compile(r"[ \t]*+\|?+(?:[ \t]*+:?+-++:?+[ \t]*+\|)*+[ \t]*+(?::?+-++:?+)?+[ \t]*+$")
_CLOSERS = "\"'*_”’»)\\]」』）】》〉"
_STOP = re.compile(
    rf"(?P<stop>[。！？]++[。！？…{_CLOSERS}]*+)[ \t\u3000]*+"
    rf"|(?P<point>[.!?]++[{_CLOSERS}]*+)(?:[ \t\u3000]++|$)"
    rf"|[，；：、…—]++[{_CLOSERS}]*+[ \t\u3000]*+"
    rf"|[,;:][{_CLOSERS}]*+[ \t]++"
)
_WORD_BEFORE = 16
_LAST_WORD = re.compile(r"[\w.]*$")
_ABBREVIATIONS = frozenset({
    "mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "vs", "no", "vol", "fig", "figs", "eq", "sec", "ch",
    "pp", "ed", "eds", "al", "cf", "ca", "approx", "dept", "inc", "ltd", "co", "corp", "e.g", "i.e", "a.m",
    "p.m", "u.s", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec",
})  # fmt: skip


@dataclass(slots=True)
class Structure:
    """Boundaries of a text in ascending order, none of them inside a block, and its blocks."""

    positions: array[int] = field(default_factory=lambda: array("I"))
    levels: bytearray = field(default_factory=bytearray)
    block_begins: array[int] = field(default_factory=lambda: array("I"))
    block_ends: array[int] = field(default_factory=lambda: array("I"))
    block_kinds: list[str] = field(default_factory=list)

    def block_at(self, position: int) -> tuple[int, int, str] | None:
        """Return begin, end and kind of the block that [position, position + 1) lies in."""
        index = bisect_right(self.block_begins, position) - 1
        if index < 0 or position >= self.block_ends[index]:
            return None
        return self.block_begins[index], self.block_ends[index], self.block_kinds[index]

    def add(self, position: int, level: Boundary) -> None:
        """Add a boundary at or behind the last one."""
        if self.positions and self.positions[-1] == position:
            self.levels[-1] = max(self.levels[-1], level)
        elif position:
            self.positions.append(position)
            self.levels.append(level)

    def drop(self, position: int) -> None:
        """Remove the last boundary if it stands here."""
        if self.positions and self.positions[-1] == position:
            self.positions.pop()
            self.levels.pop()

    def add_block(self, begin: int, end: int, kind: str) -> None:
        """Add a block behind the last one."""
        self.block_begins.append(begin)
        self.block_ends.append(end)
        self.block_kinds.append(kind)


def find_structure(text: str) -> Structure:
    """Return the boundaries and blocks of a text. Peak: 5 bytes per boundary."""
    return _Scanner(text).scan()


class _Scanner:
    """One pass over the lines; the state is what kind of line came before."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found = Structure()
        # An open fence: where its block began, and what closes it.
        self._fence: tuple[int, str] | None = None
        # Indented code: where it began, and the end of its last line with text.
        self._indented: tuple[int, int] | None = None
        self._in_table = False
        self._behind_blank = True
        # The line before: begin, end, and whether it is ordinary text.
        self._before: tuple[int, int] | None = None

    def scan(self) -> Structure:
        begin = 0
        while begin < len(self._text):
            match = _LINE.match(self._text, begin)
            assert match is not None
            end = match.end()
            self._line(begin, end, self._text[begin:end].rstrip("\r\n"))
            begin = end
        if self._fence is not None:
            self._found.add_block(self._fence[0], len(self._text), CODE_BLOCK)
        self._end_indented()
        return self._found

    def _line(self, begin: int, end: int, line: str) -> None:
        if self._fence is not None:
            self._inside_fence(end, line)
            return
        if not line or line.isspace():
            self._blank(begin)
            return
        behind_blank, self._behind_blank = self._behind_blank, False
        if line.startswith(("    ", "\t")) and (self._indented is not None or behind_blank):
            self._code_line(begin, end)
            return
        self._end_indented()
        if behind_blank:
            self._found.add(begin, Boundary.PARAGRAPH)
        fence = _FENCE.match(line)
        if fence is not None and not (fence[1][0] == "`" and "`" in fence[2]):
            self._found.add(begin, Boundary.PARAGRAPH)
            self._fence = (begin, fence[1])
            self._in_table, self._before = False, None
        elif self._is_row(line):
            self._row(begin, end)
        else:
            self._text_line(begin, end, line)

    def _inside_fence(self, end: int, line: str) -> None:
        assert self._fence is not None
        begin, mark = self._fence
        closing = line.strip(" \t")
        if len(closing) >= len(mark) and closing == mark[0] * len(closing):
            self._found.add_block(begin, end, CODE_BLOCK)
            self._found.add(end, Boundary.PARAGRAPH)
            self._fence = None

    def _blank(self, begin: int) -> None:
        if not self._behind_blank and self._indented is None:
            # The boundary moves behind the empty lines.
            self._found.drop(begin)
        self._behind_blank, self._in_table, self._before = True, False, None

    def _code_line(self, begin: int, end: int) -> None:
        if self._indented is None:
            self._found.add(begin, Boundary.PARAGRAPH)
            self._indented = (begin, end)
        else:
            self._indented = (self._indented[0], end)
        self._in_table, self._before = False, None

    def _end_indented(self) -> None:
        if self._indented is not None:
            self._found.add_block(*self._indented, CODE_BLOCK)
            self._found.add(self._indented[1], Boundary.PARAGRAPH)
            self._indented = None

    def _is_row(self, line: str) -> bool:
        stripped = line.strip(" \t")
        if stripped.startswith("|") and "|" in stripped[1:]:
            return True
        if "|" not in line:
            return False
        return self._in_table or (self._before is not None and _DASHES.match(line) is not None)

    def _row(self, begin: int, end: int) -> None:
        if not self._in_table and self._before is not None and "|" in self._text[self._before[0] : self._before[1]]:
            # This is the row of dashes: what stood above it was the header.
            self._remove_inside(*self._before)
            self._found.add_block(*self._before, TABLE_ROW)
            self._found.add(begin, Boundary.SENTENCE)
        else:
            self._found.add(begin, Boundary.SENTENCE if self._in_table else Boundary.PARAGRAPH)
        self._found.add_block(begin, end, TABLE_ROW)
        self._in_table, self._before = True, None

    def _remove_inside(self, begin: int, end: int) -> None:
        while self._found.positions and begin < self._found.positions[-1]:
            self._found.drop(self._found.positions[-1])
        self._found.add(begin, Boundary.PARAGRAPH)

    def _text_line(self, begin: int, end: int, line: str) -> None:
        if self._in_table:
            self._found.add(begin, Boundary.PARAGRAPH)
            self._in_table = False
        if _HEADING.match(line):
            self._found.add(begin, Boundary.SECTION)
        elif _ITEM.match(line):
            self._found.add(begin, Boundary.ITEM)
        elif self._before is not None and _UNDERLINE.match(line):
            self._remove_inside(*self._before)
            self._found.add(self._before[0], Boundary.SECTION)
        self._sentences(begin, begin + len(line), end)
        self._before = (begin, end)

    def _sentences(self, begin: int, stop: int, end: int) -> None:
        """Add the boundaries of the line [begin, end), whose text ends at `stop`."""
        text, last = self._text, Boundary.LINE
        for match in _STOP.finditer(text, begin, stop):
            position = match.end()
            if match["stop"]:
                level = Boundary.SENTENCE
            elif match["point"]:
                if not self._ends_sentence(match, begin, end if position == stop else position):
                    continue
                level = Boundary.SENTENCE
            else:
                level = Boundary.CLAUSE
            if position < stop:
                self._found.add(position, level)
            else:
                # A line of Chinese that ends with a sentence is mostly a paragraph.
                last = Boundary.ITEM if match["stop"] else level
        self._found.add(end, last)

    def _ends_sentence(self, match: re.Match[str], begin: int, behind: int) -> bool:
        """Whether a full stop ends a sentence: not behind an abbreviation, an initial or an item's number."""
        text, signs = self._text, match["point"]
        if signs == ".":
            word = _LAST_WORD.search(text[max(begin, match.start() - _WORD_BEFORE) : match.start()])
            assert word is not None
            before = word[0].lower()
            at_begin = match.start() - len(before) == begin
            if before in _ABBREVIATIONS or (len(before) == 1 and before.isalpha()) or (before.isdigit() and at_begin):
                return False
        return behind >= len(text) or not text[behind].islower()
