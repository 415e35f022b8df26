"""Redaction over a real socket: what the engine gets, what the client is told, and what answers may hold."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from openautoglm.log import ROOT_LOGGER_NAME, configure_logging, rewrite_log_lines
from openautoglm.serve.privacy import MAX_MATCHES, Privacy, PrivacyOptions
from openautoglm.text.redact import Mode, RedactionOptions
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, events_of, live_server

MOBILE, CARD = "13812345678", "4111 1111 1111 1111"
TEXT = f"电话{MOBILE}，卡{CARD}。"


def options(mode: Mode, *, answers: bool = False) -> PrivacyOptions:
    return PrivacyOptions(redaction=RedactionOptions(mode=mode, key=b"k"), answers=answers)


@pytest.fixture(scope="module")
def masked(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer, privacy=options(Mode.MASK)) as live:
        yield live


@pytest.fixture(scope="module")
def blocked(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer, privacy=options(Mode.BLOCK, answers=True)) as live:
        yield live


@pytest.fixture(scope="module")
def answering(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer, privacy=options(Mode.MASK, answers=True)) as live:
        yield live


def engine_read(server: Live) -> str:
    return server.tokenizer.decode(server.engine.requests[-1].prompt_tokens)


def test_nothing_is_redacted_unless_asked(server: Live) -> None:
    answer = server.chat(TEXT)
    assert MOBILE in engine_read(server)
    assert "openautoglm" not in answer.json()


def test_a_chat_is_redacted_before_the_model(masked: Live) -> None:
    body = {
        "messages": [
            {"role": "system", "content": f"call {MOBILE}"},
            {"role": "user", "content": [{"type": "text", "text": TEXT}, {"type": "text", "text": "a@b.com"}]},
            {
                "role": "assistant",
                "content": "ok",
                "tool_calls": [
                    {"type": "function", "function": {"name": "dial", "arguments": f'{{"to": {MOBILE}, "x": 5}}'}}
                ],
            },
        ]
    }
    answer = masked.post("/v1/chat/completions", body).json()
    read = engine_read(masked)
    assert MOBILE not in read
    assert "4111" not in read
    assert '"to": "[mobile]", "x": 5' in read
    assert "电话[mobile]，卡[bank_card]。" in read
    assert answer["openautoglm"]["redacted"] == {"prompt": {"mobile": 3, "bank_card": 1, "email": 1}}
    assert MOBILE not in json.dumps(answer)


def test_a_stream_tells_in_its_first_chunk(masked: Live) -> None:
    chunks = [json.loads(event) for event in events_of(masked.chat(TEXT, stream=True).text) if event != "[DONE]"]
    assert chunks[0]["openautoglm"]["redacted"] == {"prompt": {"mobile": 1, "bank_card": 1}}


@pytest.mark.parametrize("as_tokens", [False, True])
def test_completions_are_redacted_as_text_and_as_tokens(masked: Live, as_tokens: bool) -> None:
    prompts = [f"call {MOBILE}", "nothing here"]
    sent = [masked.tokenizer.encode(prompt) for prompt in prompts] if as_tokens else prompts
    answer = masked.post("/v1/completions", {"prompt": sent, "max_tokens": 60, "echo": True}).json()
    assert {masked.tokenizer.decode(r.prompt_tokens) for r in masked.engine.requests[-2:]} >= {"call [mobile]"}
    assert MOBILE not in json.dumps(answer)
    assert answer["openautoglm"]["redacted"] == {"prompt": {"mobile": 1}}


def test_block_refuses_and_repeats_nothing(blocked: Live) -> None:
    num_requests = len(blocked.engine.requests)
    answer = blocked.chat(TEXT)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "private_data"
    assert "mobile" in answer.json()["error"]["message"]
    assert MOBILE not in answer.text
    assert len(blocked.engine.requests) == num_requests
    blocked.still_answers()


def test_a_body_of_nothing_but_numbers_is_refused(masked: Live) -> None:
    answer = masked.chat("1.1.1.1 " * (MAX_MATCHES + 1))
    assert answer.status_code == 400
    assert "pieces of private data" in answer.json()["error"]["message"]
    masked.still_answers()


# The engine answers "0:" and the prompt: seven groups become the eight of an address, token by token.
SEVEN_GROUPS = "1:2:3:4:5:6:7"


def test_a_whole_answer_is_redacted(answering: Live) -> None:
    answer = answering.chat(SEVEN_GROUPS).json()
    assert engine_read(answering) == SEVEN_GROUPS
    assert answer["choices"][0]["message"]["content"] == "[ip_address]"
    assert answer["openautoglm"]["redacted"] == {"answer": {"ip_address": 1}}


def test_a_stream_is_redacted_and_its_last_chunk_tells(answering: Live) -> None:
    answer = answering.chat(SEVEN_GROUPS, stream=True, n=2)
    chunks = [json.loads(event) for event in events_of(answer.text) if event != "[DONE]"]
    for index in range(2):
        pieces = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(pieces) == "[ip_address]"
    told = [chunk["openautoglm"]["redacted"] for chunk in chunks if "openautoglm" in chunk]
    assert told == [{"answer": {"ip_address": 2}}]
    assert "1:2:3" not in answer.text


def test_a_blocked_answer_ends_with_an_error(blocked: Live) -> None:
    whole = blocked.chat(SEVEN_GROUPS)
    assert whole.status_code == 400
    assert whole.json()["error"]["code"] == "private_data"
    events = events_of(blocked.chat(SEVEN_GROUPS, stream=True).text)
    assert json.loads(events[-1])["error"]["code"] == "private_data"
    assert not any("1:2:3" in event for event in events)
    blocked.still_answers()


def test_logprobs_of_redacted_answers_are_refused(answering: Live, masked: Live) -> None:
    answer = answering.chat("hello", logprobs=True)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logprobs"
    assert masked.chat("hello", logprobs=True).status_code == 200


def test_the_log_is_redacted_with_its_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger(ROOT_LOGGER_NAME)
    before = logger.handlers[:], logger.propagate, logger.level
    try:
        configure_logging("info")
        rewrite_log_lines(Privacy(options(Mode.BLOCK)).log_line)
        try:
            raise ValueError(f"bad {MOBILE}")
        except ValueError:
            logging.getLogger(f"{ROOT_LOGGER_NAME}.x").exception("card %s", CARD)
        written = capsys.readouterr().err
    finally:
        logger.handlers[:], logger.propagate = before[0], before[1]
        logger.setLevel(before[2])
    assert MOBILE not in written
    assert "4111" not in written
    assert "ValueError: bad [mobile]" in written
    assert "card [bank_card]" in written
