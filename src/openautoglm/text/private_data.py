"""Finds private data in a text: identity numbers, telephones, bank cards, addresses of mail and network, keys.

Each kind is a pattern of bounded length that can begin only behind certain characters, and a check in code (checksums,
dates, octets). A match depends on at most `REACH` characters before it and `MAX_LENGTH + REACH` from its begin on, so
that a stream can be searched as it comes, and time is linear in the text. Full-width digits, letters and signs, digits
of other scripts, dashes and spaces of all kinds, and invisible characters between digits count as what they look like.

Sources: GB 11643-1999 (identity numbers, ISO 7064 MOD 11-2), GB/T 2260 (provinces), ISO/IEC 7812 (cards, Luhn).
"""

from __future__ import annotations

import datetime as dt
import functools
import ipaddress
import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

# Bounds of what a match depends on, in characters: its own length, and what stands before and behind it.
MAX_LENGTH = 4096
REACH = 32


class Kind(StrEnum):
    """What was found; where several fit, the first one here counts."""

    ID_NUMBER = "id_number"
    EMAIL = "email"
    API_KEY = "api_key"
    BANK_CARD = "bank_card"
    MOBILE = "mobile"
    IP_ADDRESS = "ip_address"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Characters [begin, end) of the text, and what they are once written plainly (no separators, ASCII)."""

    kind: Kind
    begin: int
    end: int
    value: str


# ---- what characters look like; one character stays one character -------------------------------------------------

_JOINER = "\u200b"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_DOTS = "\u3002\uff61\ufe52"


@functools.cache
def _plain_characters() -> dict[int, str]:
    """Return the table of `plain_text`: tens of milliseconds, which only those who redact should pay."""
    plain = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    plain |= {ord(character): "-" for character in _DASHES}
    plain |= {ord(character): " " for character in _SPACES}
    plain |= {ord(character): _JOINER for character in _INVISIBLE}
    plain |= {ord(character): "。" for character in _DOTS}
    for code in range(0x80, sys.maxunicode + 1):
        if unicodedata.category(chr(code)) == "Nd":
            plain[code] = str(unicodedata.digit(chr(code)))
    return plain


def plain_text(text: str) -> str:
    """Return the text with every character as it looks in ASCII, where it looks like one; of equal length."""
    return text if text.isascii() else text.translate(_plain_characters())


# ---- numbers in groups: identity numbers, cards, mobile telephones -------------------------------------------------

_BETWEEN = rf"{_JOINER}{{0,2}}+(?: ?[.\-·] ?| )?{_JOINER}{{0,2}}+"
_DIGITS = re.compile(rf"(?<![0-9])[0-9]{{1,20}}+(?:{_BETWEEN}[0-9]{{1,20}}+){{0,8}}+")
_LAST_X = re.compile(rf"{_BETWEEN}[Xx]")
_DIGIT = frozenset("0123456789")
_GROUP = re.compile(r"[0-9]+")
_WORD_REACH = 16
_WORD_BEFORE = re.compile(r"(?:^|[^0-9A-Za-z])[A-Za-z]{1,15}$")
_WORD_BEHIND = re.compile(r"[A-Za-z]{1,15}(?![0-9A-Za-z])")
_PROVINCES = frozenset(
    (*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83, 91)
)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECKS = "10X98765432"
_ID_DIGITS = 18
_FIRST_YEAR = 1850
_LEAST_DIGITS = 11
_CARD_DIGITS = range(16, 20)
# Issuers of payment cards: MasterCard and Mir in 22 to 27, JCB and Diners in 3, UnionPay in 6, 81 and 9, and so on.
_CARD = re.compile(r"(?:[34569]|2[2-7]|81)")
_MOBILE = re.compile(r"(?:(?:00)?86)?(1[3-9][0-9]{9})")


def _is_id_number(digits: str) -> bool:
    if len(digits) != _ID_DIGITS or int(digits[:2]) not in _PROVINCES:
        return False
    try:
        born = dt.date(int(digits[6:10]), int(digits[10:12]), int(digits[12:14]))
    except ValueError:
        return False
    if born.year < _FIRST_YEAR:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_ID_WEIGHTS, digits, strict=False))
    return _ID_CHECKS[total % 11] == digits[17].upper()


def _is_card(digits: str) -> bool:
    if len(digits) not in _CARD_DIGITS or _CARD.match(digits) is None or len(set(digits)) == 1:
        return False
    total = 0
    for index, digit in enumerate(reversed(digits)):
        doubled = int(digit) << (index & 1)
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def _card_groups(lengths: list[int]) -> bool:
    """Whether a card may be written in such groups: in fours, or in two long ones."""
    if len(lengths) == 1:
        return True
    if all(length == 4 for length in lengths[:-1]) and lengths[-1] <= 4:
        return True
    return len(lengths) == 2 and min(lengths) >= 6


@dataclass(frozen=True, slots=True)
class _Groups:
    """Groups of digits that stand together: where each begins and ends in the text."""

    plain: str
    spans: list[tuple[int, int]]

    def digits(self, count: int) -> str:
        return "".join(self.plain[begin:end] for begin, end in self.spans[:count])

    def lengths(self, count: int) -> list[int]:
        return [end - begin for begin, end in self.spans[:count]]


def _find_number(plain: str, position: int, kinds: Collection[Kind]) -> Iterator[Match]:
    """Yield the numbers that begin at a group of digits at or behind `position`, in order; overlaps are possible."""
    while (found := _DIGITS.search(plain, position)) is not None:
        groups = _Groups(plain, [group.span() for group in _GROUP.finditer(plain, found.start(), found.end())])
        if sum(groups.lengths(len(groups.spans))) >= _LEAST_DIGITS:
            match = _number_at(groups, kinds)
            if match is not None:
                yield match
        position = groups.spans[0][1]


def _number_at(groups: _Groups, kinds: Collection[Kind]) -> Match | None:
    plain, spans = groups.plain, groups.spans
    begin = spans[0][0]
    found: list[tuple[int, Match]] = []
    digits = 0
    for count in range(1, len(spans) + 1):
        end = spans[count - 1][1]
        digits += end - spans[count - 1][0]
        if digits > 20:
            break
        if digits < _LEAST_DIGITS:
            continue
        text, lengths = groups.digits(count), groups.lengths(count)
        for kind, value, stop in _kinds(plain, text, lengths, end, spans[count : count + 1]):
            if kind in kinds and _stands_alone(plain, begin, stop):
                found.append((_ORDER[kind], Match(kind=kind, begin=begin, end=stop, value=value)))
    # The strongest kind; of equal kinds the longest.
    return min(found, key=lambda item: (item[0], -item[1].end), default=(0, None))[1]


def _kinds(
    plain: str, digits: str, lengths: list[int], end: int, following: list[tuple[int, int]]
) -> Iterator[tuple[Kind, str, int]]:
    """Yield what `digits`, written in groups of such lengths up to `end`, may be: kind, plain value, end."""
    if len(digits) == _ID_DIGITS and _is_id_number(digits):
        yield Kind.ID_NUMBER, digits, end
    if len(digits) == _ID_DIGITS - 1:
        last = _LAST_X.match(plain, end)
        if last is not None and _is_id_number(digits + "X"):
            yield Kind.ID_NUMBER, digits + "X", last.end()
    if len(digits) in _CARD_DIGITS and _card_groups(lengths) and _is_card(digits):
        # One more group of four belongs to a row of figures, not to a card.
        row = len(lengths) > 1 and following and following[0][1] - following[0][0] == 4
        if not row:
            yield Kind.BANK_CARD, digits, end
    if len(digits) <= 15:
        mobile = _MOBILE.fullmatch(digits)
        prefix = len(digits) - 11
        inner = lengths[1:] if prefix and len(lengths) > 1 and lengths[0] == prefix else lengths
        if mobile is not None and all(length >= 3 for length in inner):
            yield Kind.MOBILE, mobile[1], end


def _stands_alone(plain: str, begin: int, end: int) -> bool:
    """Whether a number is one by itself: no part of a longer one, of a fraction, or of a word such as a hash."""
    before, behind = plain[begin - 1 : begin], plain[end : end + 1]
    if behind in _DIGIT:
        return False
    if before == "." and plain[begin - 2 : begin - 1] in _DIGIT:
        return False
    if behind == "." and plain[end + 1 : end + 2] in _DIGIT:
        return False
    if before.isascii() and before.isalpha() and not _WORD_BEFORE.search(plain[max(0, begin - _WORD_REACH) : begin]):
        return False
    return not (behind.isascii() and behind.isalpha()) or _WORD_BEHIND.match(plain, end) is not None


# ---- addresses and keys --------------------------------------------------------------------------------------------

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+'-])[A-Za-z0-9._%+'-]{1,64}+@(?:[A-Za-z0-9-]{1,63}+\.){1,8}[A-Za-z]{2,24}+(?![A-Za-z0-9-]|@)"
)
_FILES = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp"})
_API_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"(?:sk|pk|rk)-[A-Za-z0-9_-]{16,256}+"
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,128}+"
    r"|gh[pousr]_[A-Za-z0-9]{20,255}+|github_pat_[A-Za-z0-9_]{20,255}+|glpat-[A-Za-z0-9_-]{16,64}+"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|LTAI[A-Za-z0-9]{12,26}+|AKID[A-Za-z0-9]{13,40}+|AIza[A-Za-z0-9_-]{35}"
    r"|hf_[A-Za-z0-9]{20,64}+|npm_[A-Za-z0-9]{30,64}+|pypi-[A-Za-z0-9_-]{32,255}+|xox[abprs]-[A-Za-z0-9-]{10,255}+"
    r"|SG\.[A-Za-z0-9_-]{16,64}+\.[A-Za-z0-9_-]{16,64}+"
    r"|eyJ[A-Za-z0-9_-]{8,1000}+\.eyJ[A-Za-z0-9_-]{8,2000}+\.[A-Za-z0-9_-]{8,1000}+"
    r"|[0-9a-f]{32}\.[A-Za-z0-9]{16}"
    r")(?![A-Za-z0-9_-])"
)
_NAMED_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:api|access|secret|auth)[_-]?(?:key|token|secret)[\"']? ?[:=][ \"']{0,3}+"
    r"([A-Za-z0-9_+/=-]{16,256}+)(?![A-Za-z0-9_+/=-])",
    re.IGNORECASE,
)
_KEY_NAME = re.compile(r"(?:key|token|secret)[\"']?$", re.IGNORECASE)
_IPV4 = re.compile(
    r"(?<![0-9.。])(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])[.。]){3}"
    r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?![0-9]|[.。][0-9])"
)
_VERSION = re.compile(r"(?:(?:^|[^A-Za-z])(?:v|ver|version|build|release)|版本号?|章节?|第)[ :.=]{0,2}$", re.IGNORECASE)
_IPV6 = re.compile(r"(?<![0-9A-Fa-f:.])[0-9A-Fa-f:]{3,45}+(?:(?<=:)(?:[0-9]{1,3}\.){3}[0-9]{1,3})?(?![0-9A-Fa-f:])")


def _find_email(plain: str, position: int, _kinds: Collection[Kind]) -> Iterator[Match]:
    for found in _EMAIL.finditer(plain, position):
        if found[0].rpartition(".")[2].lower() not in _FILES:
            yield Match(kind=Kind.EMAIL, begin=found.start(), end=found.end(), value=found[0].lower())


def _find_key(plain: str, position: int, _kinds: Collection[Kind]) -> Iterator[Match]:
    for found in _API_KEY.finditer(plain, position):
        yield Match(kind=Kind.API_KEY, begin=found.start(), end=found.end(), value=found[0])


def _find_named_key(plain: str, position: int, _kinds: Collection[Kind]) -> Iterator[Match]:
    for found in _NAMED_KEY.finditer(plain, position):
        key = found[1]
        if any(character.isdigit() for character in key) and any(character.isalpha() for character in key):
            yield Match(kind=Kind.API_KEY, begin=found.start(1), end=found.end(1), value=key)


def _find_ipv4(plain: str, position: int, _kinds: Collection[Kind]) -> Iterator[Match]:
    for found in _IPV4.finditer(plain, position):
        before = plain[max(0, found.start() - _WORD_REACH) : found.start()]
        if _VERSION.search(before) is None:
            yield Match(kind=Kind.IP_ADDRESS, begin=found.start(), end=found.end(), value=found[0].replace("。", "."))


def _find_ipv6(plain: str, position: int, _kinds: Collection[Kind]) -> Iterator[Match]:
    for found in _IPV6.finditer(plain, position):
        text, (begin, end) = found[0], found.span()
        first = text.find(":") + 1
        last = text.rfind(":")
        word_before, word_behind = (_is_word(plain[at : at + 1]) for at in (begin - 1, end))
        # What stands before the first colon or behind the last one may be a word: "id:2001:db8::1".
        for left, right in ((0, len(text)), (first, len(text)), (0, last), (first, last)):
            if (left == 0 and word_before) or (right == len(text) and word_behind):
                continue
            value = _ipv6(text[left:right])
            if value is not None:
                yield Match(kind=Kind.IP_ADDRESS, begin=begin + left, end=begin + right, value=value)
                break


def _is_word(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character == "_")


def _ipv6(text: str) -> str | None:
    """Return an address in its shortest form; None for what is none, or a name in a programming language."""
    if text.count(":") < 2 or sum(character != ":" for character in text) < 4 or not any(map(str.isdigit, text)):
        return None
    try:
        return ipaddress.IPv6Address(text).compressed
    except ValueError:
        return None


_Finder = Callable[[str, int, Collection[Kind]], Iterator[Match]]
_FINDERS: tuple[tuple[frozenset[Kind], _Finder], ...] = (
    (frozenset({Kind.ID_NUMBER, Kind.BANK_CARD, Kind.MOBILE}), _find_number),
    (frozenset({Kind.EMAIL}), _find_email),
    (frozenset({Kind.API_KEY}), _find_key),
    (frozenset({Kind.API_KEY}), _find_named_key),
    (frozenset({Kind.IP_ADDRESS}), _find_ipv4),
    (frozenset({Kind.IP_ADDRESS}), _find_ipv6),
)
_ORDER = {kind: order for order, kind in enumerate(Kind)}


def find_private(plain: str, kinds: Collection[Kind], position: int = 0) -> Iterator[Match]:
    """Yield what is found from `position` on, from left to right, without overlaps: the first, the strongest kind of
    those that begin together, the longest of one kind.

    `plain` is what `plain_text` returns. Where a match may begin depends on no match before it, so that a search may
    go on from the end of any match, or from any place that no match lies across.
    """
    finders = [finder for found, finder in _FINDERS if not found.isdisjoint(kinds)]
    searches = [finder(plain, position, kinds) for finder in finders]
    heads = [next(search, None) for search in searches]
    while any(heads):
        best = min((head for head in heads if head is not None), key=lambda m: (m.begin, _ORDER[m.kind], -m.end))
        yield best
        for index, head in enumerate(heads):
            if head is not None and head.begin < best.end:
                searches[index] = finders[index](plain, best.end, kinds)
                heads[index] = next(searches[index], None)


# ---- where a text that still grows may be cut ----------------------------------------------------------------------

# A character of none of these ends whatever stands before it; what follows cannot change what was found.
_INNER = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ@._%+'-:=/\" ·。" + _JOINER)
_BEFORE_GROUP = frozenset("0123456789.-·:='\" " + _JOINER)
_IN_GROUP = frozenset("0123456789.-· Xx" + _JOINER)


def last_break(plain: str, low: int) -> int:
    """Return the largest b > `low` that no match lies across, whatever comes after the text; `low` if there is none."""
    for index in range(len(plain) - 1, low - 1, -1):
        character = plain[index]
        if character not in _INNER:
            return index + 1
        if character in " 。":
            before, behind = plain[index - 1 : index], plain[index + 1 : index + 2]
            if before and before not in _BEFORE_GROUP:
                named = character == " " and _KEY_NAME.search(plain[max(0, index - 8) : index]) is not None
                if not named or (behind and behind not in ":="):
                    return index + 1
            if before in _DIGIT and behind and behind not in _IN_GROUP:
                return index + 1
    return low
