"""Stop strings: any way of cutting the text gives what a search over the whole text gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openautoglm.text.stop import StopMatcher, StopResult

ALPHABET = "ab世"


def first_match(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The naive search: the stop string that ends first, of those the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            matched = max(ending, key=len)
            return text[: end - len(matched)], matched
    return text, None


def longest_held(text: str, stops: list[str]) -> int:
    """Length of the longest end of `text` that a stop string (not complete) begins with."""
    return max((size for stop in stops for size in range(len(stop)) if text.endswith(stop[:size])), default=0)


@given(
    st.lists(st.text(ALPHABET, max_size=6), max_size=12),
    st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    text, matched = "", None
    for piece in pieces:
        result = matcher.push(piece)
        text, matched = text + result.text, result.matched
        if matched is not None:
            break
    if matched is None:
        text += matcher.flush()
    assert (text, matched) == first_match("".join(pieces), stops)


@given(
    st.lists(st.text(ALPHABET, max_size=4), max_size=12),
    st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_nothing_is_held_back_without_need(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    given_text, out = "", ""
    for piece in pieces:
        given_text += piece
        result = matcher.push(piece)
        out += result.text
        if result.matched is not None:
            return
        assert len(given_text) - len(out) == longest_held(given_text, stops)


def test_a_false_beginning_inside_a_beginning_is_found() -> None:
    matcher = StopMatcher(["aab"])
    assert matcher.push("aa") == StopResult(text="")
    assert matcher.push("ab") == StopResult(text="a", matched="aab")


def test_after_a_match_nothing_more_comes_out() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("x END y") == StopResult(text="x ", matched="END")
    assert matcher.push("more") == StopResult(text="", matched="END")
    assert matcher.flush() == ""


def test_without_stop_strings_text_passes_at_once() -> None:
    matcher = StopMatcher([])
    assert matcher.push("abc") == StopResult(text="abc")
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher([""])
