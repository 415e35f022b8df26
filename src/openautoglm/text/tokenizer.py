"""Text to tokens and back, by the checkpoint's tokenizer.json."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from openautoglm.errors import InvalidRequestError, TokenizerError
from openautoglm.text.byte_level import token_bytes as byte_level_bytes
from openautoglm.text.detokenize import byte_of_fallback_token, check_decoder
from openautoglm.text.special_tokens import AddedToken, SpecialTokens, read_special_tokens
from openautoglm.text.tokenizer_process import TokenizerCheck, TokenizerFacts

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

T = TypeVar("T")

_PIECE_CHARS = 1 << 16
# Offsets are objects, so that they are had of smaller pieces.
_OFFSET_CHARS = 1 << 13
_METASPACE = "▁"
_MAX_TOKEN_ID = (1 << 32) - 1
# A normaliser may shorten text (composing characters, say), so the bound on what fits is loosened behind one.
_NORMALISER_SLACK = 4


class Tokenizer:
    """A checkpoint's tokenizer. Immutable once made; safe from any thread."""

    def __init__(self, backend: Backend, facts: TokenizerFacts, special: SpecialTokens) -> None:
        """Use `from_directory`."""
        self._backend = backend
        self._longest_token_bytes = facts.longest_token_bytes
        added = backend.get_added_tokens_decoder()
        self._vocab_size = max(facts.vocab_size, max(added, default=-1) + 1)
        self._special_token_ids = frozenset(token for token, entry in added.items() if entry.special)
        self._named = dict(special.named)
        decoder = backend.decoder
        self._decoder_rules: Mapping[str, object] | None = (
            json.loads(decoder.__getstate__()) if decoder is not None else None
        )
        check_decoder(self._decoder_rules)
        self._byte_level = b'"ByteLevel"' in (decoder.__getstate__() if decoder is not None else b"")

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Read tokenizer.json and tokenizer_config.json.

        The file is hostile: it can make the native parser panic, recurse or eat memory, so a child with limits
        parses it first; what passes there is parsed here from the same bytes. (A panic reaches Python as an
        exception, but an abort or a runaway allocation would take this process along. The child costs one more
        parse: about 0.1 s for a small vocabulary, a second for the largest.) Peak memory is the file and the
        tables made from it, about ten times the file. Raises `TokenizerError`, or `CheckpointFormatError` for a file
        that is too large or no file.
        """
        return cls.from_check(TokenizerCheck(directory))

    @classmethod
    def from_check(cls, check: TokenizerCheck) -> Tokenizer:
        """Make the tokenizer whose file is being tried, and close the check; otherwise as `from_directory`."""
        with check:
            facts, data = check.facts(), check.data
        from tokenizers import Tokenizer as Backend

        backend: Backend = _guard(lambda: Backend.from_buffer(data), "tokenizer.json cannot be used")
        # Settings of a training run; they would cut prompts in silence.
        backend.no_truncation()
        backend.no_padding()
        special = read_special_tokens(check.directory)
        _declare_added_tokens(backend, special.added)
        return cls(backend, facts, special)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the tokens of `text`; special tokens written in the text become themselves.

        `add_special_tokens` adds what the post-processor of tokenizer.json puts around a plain text (a
        beginning-of-sequence token, mostly; as in transformers, add_bos_token of tokenizer_config.json does not
        count); a rendered chat template has them already. Raises `InvalidRequestError` for text that is not
        Unicode (a lone surrogate).
        """
        _check_unicode(text)
        tokens: list[int] = _guard(
            lambda: self._backend.encode(text, add_special_tokens=add_special_tokens).ids,
            "the tokenizer failed on the text",
        )
        return tokens

    def token_begins(self, text: str) -> array[int]:
        """Return the character that each token of a text begins in, ascending, for an estimate of its tokens anywhere.

        The text is encoded in pieces, which may cut a token in two. Peak: 4 bytes per token, and 2 MiB for a piece's.
        Raises as `encode` does.
        """
        begins = array("I")
        for first in range(0, len(text), _OFFSET_CHARS):
            piece = text[first : first + _OFFSET_CHARS]
            _check_unicode(piece, first)
            encoding = _guard(
                lambda piece=piece: self._backend.encode(piece, add_special_tokens=False),  # type: ignore[misc]
                "the tokenizer failed on the text",
            )
            last = 0
            for begin, _ in encoding.offsets:
                # A normaliser may give a token of its own no place, (0, 0).
                last = max(last, begin)
                begins.append(first + last)
        return begins

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `tokens`; ids without a token (a vocabulary is often padded) give no text."""
        for token in tokens:
            if not 0 <= token <= _MAX_TOKEN_ID:
                raise InvalidRequestError(f"{token} is not a token id: ids are 0 to {self._vocab_size - 1}")
        text: str = _guard(
            lambda: self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens),
            "the tokenizer failed to decode tokens",
        )
        return text

    @property
    def vocab_size(self) -> int:
        """The largest token id and one; a model's vocabulary is as large, or larger where it is padded."""
        return self._vocab_size

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids of tokens that are marks, not text."""
        return self._special_token_ids

    @property
    def opening_token_ids(self) -> frozenset[int]:
        """Ids of the tokens that a text of this model begins with: beginning of sequence and the like, no roles."""
        own = {*self.encode("", add_special_tokens=True), self.bos_token_id} - {self.eos_token_id, None}
        return frozenset(token for token in own if token is not None)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Named special tokens ("bos_token", "eos_token", …) and their text."""
        return self._named

    @property
    def bos_token_id(self) -> int | None:
        """The beginning-of-sequence token."""
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-sequence token of the tokenizer's own files; the model's generation config may have more."""
        return self._named_id("eos_token")

    @property
    def decoder_rules(self) -> Mapping[str, object] | None:
        """The decoder as tokenizer.json writes it."""
        return self._decoder_rules

    def token_id(self, text: str) -> int | None:
        """Return the id of the token spelt `text`, None if there is none."""
        token: int | None = self._backend.token_to_id(text)
        return token

    def raw_token(self, token: int) -> str | None:
        """Return the token as the vocabulary spells it, None for an id without a token."""
        raw: str | None = self._backend.id_to_token(token)
        return raw

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that one token stands for, which need not be whole characters.

        Empty for an id inside a padded vocabulary that has no token.
        """
        raw = self.raw_token(token)
        if raw is None:
            return b""
        if token in self._special_token_ids:
            return raw.encode("utf-8")
        if self._byte_level:
            return byte_level_bytes(raw)
        byte = byte_of_fallback_token(raw)
        if byte is not None:
            return bytes([byte])
        return raw.replace(_METASPACE, " ").encode("utf-8")

    def token_text(self, token: int) -> str:
        """Return one token as text; an incomplete character shows as U+FFFD."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def check_vocabulary(self, model_vocab_size: int) -> None:
        """Raise `TokenizerError` if the tokenizer has ids that the model has no embedding for."""
        if self._vocab_size > model_vocab_size:
            raise TokenizerError(
                f"the tokenizer has token ids up to {self._vocab_size - 1}, but the model's vocabulary ends at "
                f"{model_vocab_size - 1}: tokenizer.json belongs to another model"
            )

    def encode_at_most(self, text: str, most_tokens: int, *, add_special_tokens: bool = False) -> list[int] | None:
        """Return `encode`'s tokens, or None for a text of clearly more than `most_tokens`.

        Peak memory is bounded by `most_tokens` and not by the text: one that could be longer is first counted in
        pieces, which may cut a token in two, so that the count of pieces is only believed from a quarter more on.
        """
        if len(text) > most_tokens:
            if len(text) > self._max_text_chars(most_tokens):
                return None
            allowed, counted = most_tokens + most_tokens // 4, 0
            for begin in range(0, len(text), _PIECE_CHARS):
                counted += len(self.encode(text[begin : begin + _PIECE_CHARS]))
                if counted > allowed:
                    return None
        return self.encode(text, add_special_tokens=add_special_tokens)

    def _max_text_chars(self, num_tokens: int) -> int:
        """Return a length above which a text cannot fit `num_tokens`, known before anything is encoded."""
        slack = 1 if self._backend.normalizer is None else _NORMALISER_SLACK
        return num_tokens * max(1, self._longest_token_bytes) * slack

    def _named_id(self, name: str) -> int | None:
        return self.token_id(self._named[name]) if name in self._named else None


def _check_unicode(text: str, first: int = 0) -> None:
    """Raise `InvalidRequestError` for a lone surrogate; `first` is the text's place in a longer one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {first + error.start}, which "
            "stands for nothing: send valid Unicode"
        ) from None


def _guard(call: Callable[[], T], what: str) -> T:
    """Call into the native tokenizer; turn its errors and panics into `TokenizerError`."""
    try:
        return call()
    except Exception as error:
        raise TokenizerError(f"{what}: {error}") from error
    except BaseException as error:
        # A panic of the native code is a BaseException, and its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: its native code panicked: {error}") from error


def _declare_added_tokens(backend: Backend, tokens: Sequence[AddedToken]) -> None:
    """Add tokens of tokenizer_config.json that tokenizer.json lacks; they must get the ids they were trained with."""
    from tokenizers import AddedToken as BackendToken

    for added in tokens:
        if backend.token_to_id(added.content) is None:
            backend.add_tokens([BackendToken(added.content, special=added.special, normalized=False)])
        found = backend.token_to_id(added.content)
        if found != added.token:
            raise TokenizerError(
                f"tokenizer_config.json gives the token {added.content!r} the id {added.token}, "
                f"but by tokenizer.json it has {found}"
            )
