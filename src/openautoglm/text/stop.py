"""Stop strings over a stream of text: finds the first one and holds back what might be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StopResult:
    """Text that is final, without the stop string, and the stop string that matched (None: go on)."""

    text: str
    matched: str | None = None


class StopMatcher:
    """Finds the stop string that ends first (of several that end together, the longest), however the text is cut.

    One Knuth-Morris-Pratt automaton per stop string: a character costs amortised O(1) for each, and the state of an
    automaton is also how much of the end of the text must be held back, so nothing is searched twice.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("stop strings must not be empty")
        # Longest first, so that of two that end at the same character the longer one is found.
        self._stops = tuple(sorted(stops, key=len, reverse=True))
        self._failures = tuple(_failure_table(stop) for stop in self._stops)
        self._states = [0] * len(self._stops)
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> StopResult:
        """Take the next piece; after a match nothing more comes out."""
        if self._matched is not None:
            return StopResult(text="", matched=self._matched)
        if not self._stops:
            return StopResult(text=text)
        window = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            matched = self._advance(character)
            if matched is not None:
                self._held, self._matched = "", matched
                return StopResult(text=window[: end - len(matched)], matched=matched)
        keep = max(self._states)
        self._held = window[len(window) - keep :]
        return StopResult(text=window[: len(window) - keep])

    def flush(self) -> str:
        """Return what was held back; call when the text has ended without a match."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held

    def _advance(self, character: str) -> str | None:
        """Feed one character to every automaton; return the stop string that is now complete."""
        for index, stop in enumerate(self._stops):
            failure, state = self._failures[index], self._states[index]
            while state and stop[state] != character:
                state = failure[state - 1]
            if stop[state] == character:
                state += 1
            if state == len(stop):
                return stop
            self._states[index] = state
        return None


def _failure_table(pattern: str) -> tuple[int, ...]:
    """Return, for each prefix of `pattern`, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = table[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        table[index] = length
    return tuple(table)
