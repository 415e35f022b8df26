"""Compiling constraints: what the child says of them, that it survives them, and what masks allow."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import openautoglm.demo
from openautoglm.errors import ConstraintError, ConstraintLimitError, EngineError
from openautoglm.spec.constraint import Constraint, ConstraintKind
from openautoglm.text.grammar import Grammar, GrammarCompiler
from openautoglm.text.tokenizer import Tokenizer

VOCAB = 4096
EOS = 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(Path(openautoglm.demo.__file__).parent)


@pytest.fixture(scope="module")
def compiler(tokenizer) -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(tokenizer, vocab_size=VOCAB, eos_token_ids=(EOS,))
    yield made
    made.close()


def make(kind: str, text: str) -> Constraint:
    return Constraint(kind=ConstraintKind(kind), text=text, param="field")


def compiled(compiler: GrammarCompiler, constraint: Constraint) -> Grammar:
    return compiler.compile(compiler.check(constraint, max_new_tokens=50))


def allowed(grammar: Grammar) -> set[int]:
    return set(np.unpackbits(grammar.allowed.view(np.uint8), bitorder="little")[:VOCAB].nonzero()[0].tolist())


def test_masks_allow_exactly_the_tokens_that_begin_a_match(compiler, tokenizer):
    """By brute force: a token may come if some text of the language goes on with its bytes."""
    language = [f"{a}{b}" for a in ("on", "off", "once") for b in ("e", " line", "")]
    grammar = compiled(compiler, make("regex", "(on|off|once)(e| line)?"))
    taken = b""
    for text in ("o", "n"):
        special = tokenizer.special_token_ids
        spelt = {token: tokenizer.token_bytes(token) for token in range(VOCAB) if token not in special}
        texts = [text.encode() for text in language]
        expected = {
            token for token, data in spelt.items() if data and any(one.startswith(taken + data) for one in texts)
        }
        expected |= {EOS} if taken in texts else set()
        assert allowed(grammar) == expected
        (token,) = tokenizer.encode(text)
        grammar.accept(token)
        taken += text.encode()
    assert EOS in allowed(grammar)


def test_a_copy_goes_its_own_way(compiler, tokenizer):
    grammar = compiled(compiler, make("regex", "a(b|c)d"))
    grammar.accept(tokenizer.encode("a")[0])
    other = grammar.copy()
    assert allowed(other) == allowed(grammar)
    grammar.accept(tokenizer.encode("b")[0])
    assert allowed(other) != allowed(grammar)
    other.accept(tokenizer.encode("c")[0])
    assert allowed(other) == allowed(grammar)
    other.accept(tokenizer.encode("d")[0])
    assert other.stopped
    assert not grammar.stopped


def test_special_tokens_come_by_name_or_number_and_never_as_text(compiler, tokenizer):
    user = tokenizer.token_id("<|user|>")
    assert allowed(compiled(compiler, make("grammar", 'start: <|user|> "x"'))) == {user}
    assert allowed(compiled(compiler, make("grammar", 'start: <[300]> "x"'))) == {300}
    assert not allowed(compiled(compiler, make("json_schema", '{"type":"string"}'))) & tokenizer.special_token_ids


def test_a_model_without_an_end_ends_with_the_match(tokenizer):
    compiler = GrammarCompiler(tokenizer, vocab_size=VOCAB, eos_token_ids=())
    try:
        grammar = compiled(compiler, make("regex", "ab?"))
        grammar.accept(tokenizer.encode("a")[0])
        assert allowed(grammar) == {tokenizer.encode("b")[0]}
        assert grammar.allowed.shape == (VOCAB // 32,)
    finally:
        compiler.close()


WRONG = {
    "a broken regex": ("regex", "(a"),
    "a lookahead": ("regex", "(?=a)b"),
    "no JSON": ("json_schema", "{"),
    "a list": ("json_schema", "[]"),
    "deep JSON": ("json_schema", '{"not":' * 20_000 + "{}" + "}" * 20_000),
    "not a number": ("json_schema", '{"minimum": NaN}'),
    "an unknown keyword": ("json_schema", '{"type": "object", "unevaluatedProperties": false}'),
    "a remote schema": ("json_schema", '{"$ref": "http://127.0.0.1:9/x"}'),
    "no start": ("grammar", "a: b"),
    "an endless rule": ("grammar", "start: start"),
    "deep parentheses": ("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    "a token that is not there": ("grammar", "start: <[99999]>"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_followed_is_refused_and_the_next_is_tried(compiler, name):
    kind, text = WRONG[name]
    with pytest.raises(ConstraintError) as caught:
        compiled(compiler, make(kind, text))
    assert caught.value.param == "field"
    assert len(str(caught.value)) < 500
    assert allowed(compiled(compiler, make("regex", "x")))


def test_a_limit_ends_the_try_within_its_time(compiler):
    hostile = json.dumps({"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(30)]})
    begin = time.monotonic()
    with pytest.raises(ConstraintLimitError, match=r"more memory|more processor time"):
        compiled(compiler, make("json_schema", hostile))
    assert time.monotonic() - begin < 20
    assert allowed(compiled(compiler, make("regex", "x")))


def test_a_child_that_was_killed_is_replaced(compiler):
    compiled(compiler, make("regex", "x"))
    process = compiler._process
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process._process is not None and process._process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert allowed(compiled(compiler, make("regex", "x")))
    assert process.pid not in (None, first)


def test_a_closed_compiler_says_so(tokenizer):
    compiler = GrammarCompiler(tokenizer, vocab_size=VOCAB, eos_token_ids=(EOS,))
    compiler.close()
    compiler.close()
    with pytest.raises(EngineError, match="was closed"):
        compiled(compiler, make("regex", "x"))
