"""`ThinkSplitter`: tells `<think>…</think>` from the answer behind it (GLM-4.5, Qwen3, DeepSeek-R1)."""

from __future__ import annotations

from openautoglm.text.answer_parts import ContentPart, ReasoningPart

OPEN, CLOSE = "<think>", "</think>"


def opens_reasoning(prompt: str) -> bool:
    """Whether a rendered prompt ends inside reasoning, as some templates open it for the model."""
    return prompt.rstrip().endswith(OPEN)


class ThinkSplitter:
    """Splits one answer, however it is cut into pieces.

    Reasoning stands at the beginning, once. `inside` at first for a prompt that has opened it. Line ends next to the
    marks belong to them, as templates write them. Reasoning that never ends is reasoning.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self.inside = inside
        self._begun = inside
        self._ended = False
        self._trims = inside
        self._held = ""

    def push(self, text: str) -> list[ReasoningPart | ContentPart]:
        """Take the next piece."""
        if self._ended and not self._trims:
            return [ContentPart(text=text)]
        self._held += text
        parts: list[ReasoningPart | ContentPart] = []
        if not self._begun:
            bare = self._held.lstrip()
            if not bare.startswith(OPEN):
                if not OPEN.startswith(bare):
                    self._ended = True
                    return self._release()
                return []
            self._begun = self.inside = self._trims = True
            self._held = bare[len(OPEN) :]
        if self.inside:
            parts += self._reasoning()
        if self._ended:
            parts += self._release()
        return parts

    def finish(self) -> list[ReasoningPart | ContentPart]:
        """Return what was held back."""
        held, self._held = self._held, ""
        if self.inside:
            held = held.lstrip("\n") if self._trims else held
            return [ReasoningPart(text=held)] if held else []
        return [ContentPart(text=held)] if held and not self._trims else []

    def _reasoning(self) -> list[ReasoningPart | ContentPart]:
        """Return reasoning up to the mark that closes it, or up to what may be the line ends and the mark."""
        if self._trims:
            self._held = self._held.lstrip("\n")
            self._trims = not self._held
        end = self._held.find(CLOSE)
        if end >= 0:
            text, self._held = self._held[:end].rstrip("\n"), self._held[end + len(CLOSE) :]
            self.inside, self._ended, self._trims = False, True, True
        else:
            keep = len(self._held) - partial_mark(self._held, CLOSE)
            keep = len(self._held[:keep].rstrip("\n"))
            text, self._held = self._held[:keep], self._held[keep:]
        return [ReasoningPart(text=text)] if text else []

    def _release(self) -> list[ReasoningPart | ContentPart]:
        """Return content, without the line ends behind the mark."""
        if self._trims:
            self._held = self._held.lstrip("\n")
            self._trims = not self._held
        text, self._held = self._held, ""
        return [ContentPart(text=text)] if text else []


def partial_mark(text: str, mark: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `mark`."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
