"""`ChoiceText`: the text of one choice while it grows, with stop strings held back and matched."""

from __future__ import annotations

from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.detokenize import Detokenizer, TokenSource
from openautoglm.text.stop import StopMatcher


class ChoiceText:
    """Detokenises one choice. After `matched` is set nothing more comes out."""

    def __init__(self, tokenizer: TokenSource, sampling: SamplingParams) -> None:
        self._detokenizer = Detokenizer(tokenizer, sampling.skip_special_tokens)
        self._matcher = StopMatcher(sampling.stop)
        self._include_stop = sampling.include_stop
        self.matched: str | None = None

    def push(self, token: int, *, match_stops: bool) -> str:
        """Take a token; return the text that is now final. Text taken with `match_stops` False ends nothing."""
        text = self._detokenizer.push(token)
        return self._match(text) if match_stops else text

    def finish(self) -> str:
        """End the choice; return the rest of its text. An incomplete character becomes U+FFFD."""
        if self.matched is not None:
            return ""
        text = self._match(self._detokenizer.flush())
        return text if self.matched is not None else text + self._matcher.flush()

    def _match(self, text: str) -> str:
        result = self._matcher.push(text)
        if result.matched is None:
            return result.text
        self.matched = result.matched
        return result.text + (result.matched if self._include_stop else "")
