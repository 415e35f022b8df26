"""Logprobs in OpenAI's two formats: per token with bytes (chat), parallel lists (plain completions)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openautoglm.engine.client import TokenLogprob
from openautoglm.serve.collect import CollectedList
from openautoglm.serve.intake import AnswerCharge
from openautoglm.text.detokenize import Detokenizer
from openautoglm.text.tokenizer import Tokenizer

# JSON has no infinity; what OpenAI sends for a token that cannot come.
_LOWEST = -9999.0


def chat_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob]) -> dict[str, object]:
    """Return the `logprobs` object of a chat choice or delta."""
    return {"content": list(chat_logprob_entries(tokenizer, logprobs)), "refusal": None}


def chat_logprob_entries(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob]) -> Iterator[dict[str, object]]:
    """Yield the entries of that object, one a token."""
    for entry in logprobs:
        yield {
            **_chat_token(tokenizer, entry.token, entry.logprob),
            "top_logprobs": [_chat_token(tokenizer, token, logprob) for token, logprob in entry.top],
        }


def _chat_token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, object]:
    spelt = tokenizer.token_bytes(token)
    return {"token": spelt.decode("utf-8", "replace"), "logprob": max(logprob, _LOWEST), "bytes": list(spelt)}


class CompletionLogprobs:
    """Logprobs of one choice of a plain completion; keeps the offset of the next token in the choice's text."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool, first_offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens)
        self._offset = first_offset

    def take(self, logprobs: Sequence[TokenLogprob]) -> dict[str, object]:
        """Return the `logprobs` object for the next tokens of the choice."""
        offsets: list[int] = []
        for entry in logprobs:
            offsets.append(self._offset)
            self._offset += len(self._detokenizer.push(entry.token))
        text = self._tokenizer.token_text
        return {
            "tokens": [text(entry.token) for entry in logprobs],
            "token_logprobs": [max(entry.logprob, _LOWEST) for entry in logprobs],
            # Best last into the object: of tokens that look the same (pieces of characters) the best one stays. The
            # chosen token is always there, as at OpenAI: up to one more than was asked for.
            "top_logprobs": [
                {
                    text(token): max(logprob, _LOWEST)
                    for token, logprob in ((entry.token, entry.logprob), *reversed(entry.top))
                }
                for entry in logprobs
            ],
            "text_offset": offsets,
        }


class CollectedLogprobs:
    """The objects of one choice, joined in order."""

    def __init__(self) -> None:
        self._lists = {name: CollectedList() for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}

    def add(self, part: dict[str, object], charge: AnswerCharge) -> None:
        """Append the next object; raise `OverloadedError` where there is no room for it."""
        for name, collected in self._lists.items():
            items = part[name]
            assert isinstance(items, list)
            collected.add(items, charge)

    def whole(self) -> dict[str, object]:
        """Return the joined object."""
        return {name: collected.raw() for name, collected in self._lists.items()}
