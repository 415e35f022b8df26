"""Tokenizer and template that are begun before the load: nothing is left behind, nothing wrong is said too early."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from openautoglm.errors import TemplateError, TokenizerError
from openautoglm.probe.process_memory import process_tree
from openautoglm.text.ahead import TextAhead
from openautoglm.text.tokenizer import Tokenizer
from openautoglm.text.tokenizer_process import TokenizerCheck
from tests.text.fixtures import byte_level, write_tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, byte_level())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    return tmp_path


def children() -> set[int]:
    return set(process_tree(os.getpid())) - {os.getpid()}


def test_what_was_begun_is_what_is_read_from_the_start(directory: Path) -> None:
    with TextAhead(str(directory), chat=True) as text:
        text.settle()
        check, template = text.open(directory)
        begun, read = Tokenizer.from_check(check), Tokenizer.from_directory(directory)
    assert begun.encode("Hello, world") == read.encode("Hello, world")
    assert begun.vocab_size == read.vocab_size
    assert template is not None
    with template:
        assert template.render([{"role": "user", "content": "Hi"}]) == "Hi!"


def test_the_bytes_that_were_tried_are_those_that_are_used(directory: Path) -> None:
    with TokenizerCheck(directory) as check:
        (directory / "tokenizer.json").write_text("{}")
        assert (
            Tokenizer.from_check(check).vocab_size
            == Tokenizer.from_directory(write_tokenizer(directory, byte_level())).vocab_size
        )


def test_nothing_runs_on_when_the_load_was_given_up(directory: Path) -> None:
    before = children()
    with TextAhead(str(directory), chat=True):
        assert len(children() - before) == 2
    deadline = time.monotonic() + 10
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children() <= before


def test_what_is_wrong_is_said_when_it_is_asked_for(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")
    with TextAhead(str(directory), chat=True) as text:
        text.settle()
        with pytest.raises(TokenizerError, match="not a usable tokenizer"):
            text.open(directory)
    (directory / "tokenizer.json").unlink()
    with TextAhead(str(directory), chat=False) as text, pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        text.open(directory)


def test_a_chat_needs_a_template_and_a_continuation_does_not(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    with TextAhead(str(directory), chat=True) as text, pytest.raises(TemplateError, match="no chat template"):
        text.open(directory)
    with TextAhead(str(directory), chat=False) as text:
        assert text.open(directory)[1] is None


def test_a_model_of_the_hub_begins_when_its_directory_is_known(directory: Path) -> None:
    with TextAhead("org/name", chat=True) as text:
        text.settle()
        check, template = text.open(directory)
        assert check.facts().vocab_size > 0
        assert template is not None
        template.close()
