"""Tokens to text, one token at a time: the pieces joined equal what decoding all tokens at once gives.

The decoder of a `tokenizer.json` is a chain of small rules. Each rule is rebuilt here as a stage that takes one
token's text and hands on what can no longer change, so a token costs the same however long the text already is.
Half a character never comes out: bytes wait for the rest of it, and what stays incomplete becomes U+FFFD at the end,
as in the decoder itself. Source of the rules: the `tokenizers` library, src/decoders and src/pre_tokenizers.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from openautoglm.errors import TokenizerError
from openautoglm.text.byte_level import token_bytes as byte_level_bytes

_BYTE_TOKEN_LENGTH = len("<0x00>")


class TokenSource(Protocol):
    """What a detokenizer asks of a tokenizer."""

    @property
    def decoder_rules(self) -> Mapping[str, object] | None:
        """The decoder as tokenizer.json writes it, or None."""
        ...

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids of tokens that are marks, not text."""
        ...

    def raw_token(self, token: int) -> str | None:
        """The token as the vocabulary spells it, None for an id that it does not know."""
        ...


class _Stage(Protocol):
    def push(self, piece: str) -> list[str]: ...

    def flush(self) -> list[str]: ...


class _MapStage:
    """Maps each token by itself."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self._function = function

    def push(self, piece: str) -> list[str]:
        return [self._function(piece)]

    def flush(self) -> list[str]:
        return []


class _ByteLevelStage:
    """Every character of a token stands for a byte; bytes come out as UTF-8, character by character."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, piece: str) -> list[str]:
        text = self._utf8.decode(byte_level_bytes(piece))
        return [text] if text else []

    def flush(self) -> list[str]:
        text = self._utf8.decode(b"", final=True)
        return [text] if text else []


class _ByteFallbackStage:
    """Runs of <0xNN> tokens are UTF-8; a run that is not valid becomes one U+FFFD per byte.

    Whether a run is valid is known only where it ends, so a run is held until then.
    """

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, piece: str) -> list[str]:
        byte = byte_of_fallback_token(piece)
        if byte is None:
            return [*self.flush(), piece]
        self._run.append(byte)
        return []

    def flush(self) -> list[str]:
        if not self._run:
            return []
        run, self._run = self._run, bytearray()
        try:
            return [run.decode("utf-8")]
        except UnicodeDecodeError:
            return ["\N{REPLACEMENT CHARACTER}"] * len(run)


class _MetaspaceStage:
    """The replacement character is a space, except in the first token, where it was put by the tokenizer."""

    def __init__(self, replacement: str, *, drops_first: bool) -> None:
        self._replacement = replacement
        self._first = drops_first

    def push(self, piece: str) -> list[str]:
        text = piece.replace(self._replacement, "" if self._first else " ")
        self._first = False
        return [text]

    def flush(self) -> list[str]:
        return []


class _StripTextStage:
    """Removes up to `start` leading characters of the whole text (Strip behind Fuse)."""

    def __init__(self, content: str, start: int) -> None:
        self._content, self._start = content, start

    def push(self, piece: str) -> list[str]:
        while self._start and piece:
            if piece[0] != self._content:
                self._start = 0
            else:
                piece, self._start = piece[1:], self._start - 1
        return [piece]

    def flush(self) -> list[str]:
        return []


class _JoinStage:
    """A tokenizer without a decoder joins its tokens with spaces."""

    def __init__(self) -> None:
        self._first = True

    def push(self, piece: str) -> list[str]:
        text = piece if self._first else " " + piece
        self._first = False
        return [text]

    def flush(self) -> list[str]:
        return []


class Detokenizer:
    """One sequence's text. Ids that the vocabulary does not know give no text, as in decoding at once."""

    def __init__(self, tokenizer: TokenSource, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset[int]()
        self._stages = _build_stages(tokenizer.decoder_rules)

    def push(self, token: int) -> str:
        """Take the next token; return the text that is now certain (often a whole word, sometimes nothing)."""
        if token in self._skipped:
            return ""
        raw = self._tokenizer.raw_token(token)
        if raw is None:
            return ""
        return "".join(self._run([raw], 0))

    def flush(self) -> str:
        """End the sequence; return the rest, an incomplete character as U+FFFD."""
        text: list[str] = []
        for index, stage in enumerate(self._stages):
            text += self._run(stage.flush(), index + 1)
        return "".join(text)

    def _run(self, pieces: list[str], first: int) -> list[str]:
        """Send pieces through the stages from `first` on."""
        for stage in self._stages[first:]:
            if not pieces:
                return pieces
            pieces = [after for piece in pieces for after in stage.push(piece)]
        return pieces


def byte_of_fallback_token(piece: str) -> int | None:
    """Return the byte that a token such as <0x0A> stands for, None for any other token."""
    if len(piece) != _BYTE_TOKEN_LENGTH or not piece.startswith("<0x") or not piece.endswith(">"):
        return None
    digits = piece[3:5]
    # int() would also take "+1", "_" and digits of other scripts.
    return int(digits, 16) if all(digit in "0123456789abcdefABCDEF" for digit in digits) else None


def check_decoder(rules: Mapping[str, object] | None) -> None:
    """Raise `TokenizerError` if the rules cannot be followed one token at a time."""
    _build_stages(rules)


def _build_stages(rules: Mapping[str, object] | None) -> tuple[_Stage, ...]:
    if rules is None:
        return (_JoinStage(),)
    flat = _flatten(rules)
    stages: list[_Stage] = []
    fused = False
    for rule in flat:
        kind = rule.get("type")
        if kind == "Fuse":
            fused = True
            continue
        stages.append(_build_stage(rule, fused=fused))
        # What ByteLevel hands on is one text, whatever the tokens were.
        fused = fused or kind == "ByteLevel"
    return tuple(stages)


def _build_stage(rule: Mapping[str, object], *, fused: bool) -> _Stage:
    kind = rule.get("type")
    if kind == "ByteLevel" and not fused:
        return _ByteLevelStage()
    if kind == "ByteFallback" and not fused:
        return _ByteFallbackStage()
    if kind == "Metaspace" and not fused:
        replacement, scheme = rule.get("replacement"), rule.get("prepend_scheme", "always")
        if isinstance(replacement, str) and len(replacement) == 1:
            return _MetaspaceStage(replacement, drops_first=scheme != "never")
    if kind == "Replace":
        pattern, content = rule.get("pattern"), rule.get("content")
        text = pattern.get("String") if isinstance(pattern, Mapping) else None
        # Behind Fuse a longer pattern could lie across two tokens.
        if isinstance(text, str) and isinstance(content, str) and text and (len(text) == 1 or not fused):
            return _replace_stage(text, content)
    if kind == "Strip":
        content, start = rule.get("content"), rule.get("start")
        # No model strips the end, and the library panics when it should on a short text.
        if isinstance(content, str) and len(content) == 1 and isinstance(start, int) and rule.get("stop") == 0:
            return _StripTextStage(content, start) if fused else _strip_stage(content, start)
    raise TokenizerError(
        f"tokenizer.json has the decoder {dict(rule)!r}, which this version cannot follow token by token: "
        "supported are ByteLevel, Metaspace, Replace (of a plain string), ByteFallback, Fuse and Strip (of the start)"
    )


def _replace_stage(pattern: str, content: str) -> _Stage:
    return _MapStage(lambda piece: piece.replace(pattern, content))


def _strip_stage(content: str, start: int) -> _Stage:
    return _MapStage(lambda piece: "".join(_StripTextStage(content, start).push(piece)))


def _flatten(rules: Mapping[str, object]) -> Sequence[Mapping[str, object]]:
    if rules.get("type") != "Sequence":
        return (rules,)
    inner = rules.get("decoders")
    if not isinstance(inner, list):
        raise TokenizerError("tokenizer.json has a Sequence decoder without a list of decoders")
    if not all(isinstance(rule, Mapping) for rule in inner):
        raise TokenizerError("tokenizer.json has a Sequence decoder whose parts are not objects")
    return [flat for rule in inner for flat in _flatten(rule)]
