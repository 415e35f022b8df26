"""tokenizer.json: transformers' tokens, and a clear error for every bad file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from openautoglm.errors import CheckpointFormatError, InvalidRequestError, TokenizerError
from openautoglm.text.tokenizer import Tokenizer
from openautoglm.text.tokenizer_process import MAX_TOKENIZER_BYTES
from tests.text.fixtures import CORPUS, byte_level, sentencepiece, write_tokenizer

CONFIG: dict[str, object] = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>", "lstrip": False}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_directory(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), byte_level(), CONFIG))


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}])
def test_tokens_are_those_of_transformers(
    tmp_path: Path, make: Callable[[], Backend], flags: dict[str, object]
) -> None:
    backend = make()
    bos, eos = ("<|endoftext|>", "<|user|>") if make is byte_level else ("<s>", "</s>")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, **flags}
    write_tokenizer(tmp_path, backend, config)
    ours, theirs = Tokenizer.from_directory(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in [*CORPUS, "", " ", f"a{bos}b", "\n\n\n"]:
        for add_special_tokens in (False, True):
            expected = theirs.encode(text, add_special_tokens=add_special_tokens)
            assert ours.encode(text, add_special_tokens=add_special_tokens) == expected
        tokens = ours.encode(text)
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path, backend))
    assert tokenizer.decode(tokenizer.encode(CORPUS[0])) == CORPUS[0]


def test_added_tokens_of_the_config_get_their_ids(tmp_path: Path) -> None:
    backend = byte_level()
    size = backend.get_vocab_size()
    added = {str(size): {"content": "<|observation|>", "special": True}}
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path, backend, {"added_tokens_decoder": added}))
    assert tokenizer.encode("<|observation|>") == [size]
    assert size in tokenizer.special_token_ids
    assert tokenizer.vocab_size == size + 1


def test_added_tokens_that_contradict_the_file_are_refused(tmp_path: Path) -> None:
    added = {"3": {"content": "<|user|>", "special": True}}
    with pytest.raises(TokenizerError, match=r"the id 3, but by tokenizer\.json it has"):
        Tokenizer.from_directory(write_tokenizer(tmp_path, byte_level(), {"added_tokens_decoder": added}))


def test_bytes_of_tokens_joined_are_the_bytes_of_the_text(tokenizer: Tokenizer) -> None:
    for text in CORPUS:
        assert b"".join(tokenizer.token_bytes(token) for token in tokenizer.encode(text)) == text.encode()


def test_bytes_of_sentencepiece_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path, sentencepiece()))
    text = "the fox 你😀"
    assert b"".join(tokenizer.token_bytes(token) for token in tokenizer.encode(text)) == b" " + text.encode()
    assert tokenizer.token_text(tokenizer.encode("你")[-1]) == "\ufffd"


def test_an_id_without_a_token_has_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""


@pytest.mark.parametrize("token", [-1, 1 << 32])
def test_what_is_no_id_is_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(InvalidRequestError, match="is not a token id"):
        tokenizer.decode([token])


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match=r"lone surrogate, U\+D800, at character 2"):
        tokenizer.encode("ab\ud800")


def test_a_vocabulary_larger_than_the_models_is_refused(tokenizer: Tokenizer) -> None:
    tokenizer.check_vocabulary(tokenizer.vocab_size)
    tokenizer.check_vocabulary(tokenizer.vocab_size + 100)
    with pytest.raises(TokenizerError, match="belongs to another model"):
        tokenizer.check_vocabulary(tokenizer.vocab_size - 1)


def test_a_text_within_the_limit_is_encoded_and_one_beyond_is_not(tokenizer: Tokenizer) -> None:
    for text in CORPUS:
        tokens = tokenizer.encode(text)
        assert tokenizer.encode_at_most(text, len(tokens)) == tokens
    # A million characters that make few tokens a piece, and as many that make one each.
    long = (CORPUS[0] * (1_000_000 // len(CORPUS[0]) + 1))[:1_000_000]
    tokens = tokenizer.encode(long)
    assert tokenizer.encode_at_most(long, len(tokens)) == tokens
    assert tokenizer.encode_at_most(long, len(tokens) // 2) is None
    assert tokenizer.encode_at_most("\x01" * 1_000_000, 100_000) is None


def test_what_opens_a_text_is_no_role(tokenizer: Tokenizer) -> None:
    opening = tokenizer.opening_token_ids
    assert opening <= tokenizer.special_token_ids
    assert not opening & {tokenizer.token_id(role) for role in ("<|user|>", "<|assistant|>", "<|system|>")}


def test_a_missing_file_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json: convert"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
    with pytest.raises(TokenizerError, match=r"it has tokenizer\.model, a format that is not read here"):
        Tokenizer.from_directory(tmp_path)


def _mutated(**changes: Any) -> bytes:
    return json.dumps(json.loads(byte_level().to_str()) | changes).encode()


HOSTILE = {
    "empty": b"",
    "not JSON": b"{{{{",
    "not UTF-8": b'{"version": "\xff"}',
    "deep": b'{"a":' * 100_000,
    "no model": b"{}",
    "wrong model": _mutated(model={"type": "BPE", "vocab": 3, "merges": []}),
    "merges outside the vocabulary": _mutated(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}),
    # These three make the native code panic.
    "normaliser that panics": _mutated(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "decoder that panics": _mutated(decoder={"type": "Strip", "content": "a", "start": 5, "stop": 5}),
    "post-processor that panics": _mutated(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_file_is_a_typed_error(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer.json").write_bytes(HOSTILE[name])
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    # The panic happened in the child: no trace of it here.
    assert "panicked" not in capfd.readouterr().err


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(CheckpointFormatError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
