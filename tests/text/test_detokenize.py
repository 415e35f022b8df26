"""Token by token equals all at once, for every decoder, and never half a character."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.errors import TokenizerError
from openautoglm.text.detokenize import Detokenizer
from openautoglm.text.tokenizer import Tokenizer
from tests.text.fixtures import all_decoders, unsupported_decoders, write_tokenizer

KINDS = list(all_decoders())


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    made = {}
    for name, backend in all_decoders().items():
        directory = tmp_path_factory.mktemp("tokenizer")
        made[name] = Tokenizer.from_directory(write_tokenizer(directory, backend))
    return made


def detokenize(tokenizer: Tokenizer, tokens: list[int], *, skip: bool) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_tokens_equal_decoding_at_once(tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizers[kind]
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=24))
    skip = data.draw(st.booleans())
    pieces = detokenize(tokenizer, tokens, skip=skip)
    # The oracle is the library's own decoder.
    assert "".join(pieces) == tokenizer._backend.decode(tokens, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["byte level", "llama", "no strip", "metaspace with bytes", "replace behind fuse"])
@settings(max_examples=100, deadline=None)
@given(
    text=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd\N{LOWER ONE EIGHTH BLOCK}"), max_size=40
    )
)
def test_text_comes_back_and_is_never_cut_inside_a_character(
    tokenizers: dict[str, Tokenizer], kind: str, text: str
) -> None:
    tokenizer = tokenizers[kind]
    pieces = detokenize(tokenizer, tokenizer.encode(text), skip=False)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces).strip(" ") == text.strip(" ")


def test_a_character_comes_out_with_its_last_byte(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte level"]
    tokens = tokenizer.encode("🦉")
    assert len(tokens) > 1
    pieces = detokenize(tokenizer, tokens, skip=False)
    assert pieces == [""] * (len(tokens) - 1) + ["🦉", ""]


def test_an_incomplete_character_becomes_a_replacement_at_the_end(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte level"]
    tokens = tokenizer.encode("🦉")[:-1]
    assert detokenize(tokenizer, tokens, skip=False)[-1] == "\ufffd"


def test_special_tokens_are_skipped_only_when_asked(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte level"]
    tokens = tokenizer.encode("a<|user|>b")
    assert "".join(detokenize(tokenizer, tokens, skip=True)) == "ab"
    assert "".join(detokenize(tokenizer, tokens, skip=False)) == "a<|user|>b"


def test_the_cost_of_a_token_does_not_grow_with_the_text(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama"]
    tokens = tokenizer.encode("the quick brown fox ") * 2000

    def seconds(detokenizer: Detokenizer) -> float:
        start = time.perf_counter()
        for token in tokens[:4000]:
            detokenizer.push(token)
        return time.perf_counter() - start

    fresh, used = Detokenizer(tokenizer), Detokenizer(tokenizer)
    for token in tokens:
        used.push(token)
    best = min(seconds(fresh) for _ in range(5))
    assert min(seconds(used) for _ in range(5)) < 4 * best


@pytest.mark.parametrize("name", list(unsupported_decoders()))
def test_a_decoder_that_cannot_be_followed_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(TokenizerError, match="cannot follow token by token"):
        Tokenizer.from_directory(write_tokenizer(tmp_path, unsupported_decoders()[name]))
