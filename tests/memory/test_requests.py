"""What requests take while they are under way, measured by tracemalloc, is within what they are charged."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import pytest

from openautoglm.engine.admission import AdmissionLimits, make_request
from openautoglm.engine.client import GenerationEvent, GenerationRequest, TokenLogprob
from openautoglm.engine.request import Request
from openautoglm.engine.wire import SERVER_DECODER, Events, decode_payload, encode_frame
from openautoglm.memory.requests import (
    BODY_COPIES,
    OBJECT_BYTES,
    TEMPLATE_BYTES,
    event_bytes,
    request_bytes,
    request_space,
)
from openautoglm.serve.body import check_structure, parse_json
from openautoglm.serve.parsing import parse
from openautoglm.serve.schemas import ChatBody, CompletionBody
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.tokenizer import Tokenizer
from openautoglm.units import MIB
from tests.text.fixtures import byte_level, write_tokenizer

T = TypeVar("T")
LIMITS = AdmissionLimits(
    context_tokens=8192, block_tokens=16, vocab_size=400, eos_token_ids=frozenset({1}), fingerprint="x"
)


def peak_bytes(work: Callable[[], T]) -> tuple[int, T]:
    """What is held at most while `work` runs, and what it returned."""
    gc.collect()
    tracemalloc.start()
    try:
        result = work()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_directory(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), byte_level()))


@pytest.mark.parametrize(
    ("num_prompt", "num_new", "num_choices"),
    [(1, 1, 1), (1000, 100, 1), (4000, 4000, 1), (500, 1000, 16), (1, 8000, 4)],
)
def test_a_request_in_the_engine(tokenizer: Tokenizer, num_prompt: int, num_new: int, num_choices: int):
    generation = GenerationRequest(
        request_id="r",
        prompt_tokens=tuple([65] * num_prompt),
        sampling=SamplingParams(max_tokens=num_new, n=num_choices),
    )

    def work() -> Request:
        request = make_request(generation, LIMITS, tokenizer, arrival=0, now_seconds=0.0)
        for sequence in request.sequences:
            for token in range(num_new):
                sequence.append(token % 300 + 50)
                sequence.text.push(token % 300 + 50, match_stops=True)
            for index in range(-(-sequence.num_tokens // 16)):
                sequence.attach([100_000 + index])
                sequence.keys.append(bytes(32 * [index % 256]))
        return request

    work()
    taken, _ = peak_bytes(work)
    assert taken <= request_bytes(num_prompt, num_new, num_choices)


@pytest.mark.parametrize("num_top", [0, 5, 20])
def test_an_event_that_waits(num_top: int):
    top = tuple((10_000 + index, -1.5 * index) for index in range(num_top))
    logprobs = (TokenLogprob(token=70_000, logprob=-0.25, top=top),) if num_top else ()
    event = GenerationEvent(
        request_id="chatcmpl-0123456789abcdef0123456789abcdef-0", choice=3, text="文字 and", tokens=(70_000,),
        logprobs=logprobs, prompt_tokens=5000, cached_tokens=300, completion_tokens=4000, queue_seconds=0.5,
        prefill_seconds=0.25,
    )  # fmt: skip
    payload = encode_frame(Events(events=(event,) * 200))[4:]
    taken, _ = peak_bytes(lambda: decode_payload(payload, SERVER_DECODER))
    num_logprobs = num_top + 1 if num_top else 0
    assert taken <= 200 * event_bytes(num_logprobs, len(event.text))


BODIES = {
    "text": json.dumps({"messages": [{"role": "user", "content": "word " * 100_000}]}),
    "Chinese": json.dumps({"messages": [{"role": "user", "content": "字" * 160_000}]}, ensure_ascii=False),
    "one wide character": json.dumps(
        {"messages": [{"role": "user", "content": "😀" + "word " * 100_000}]}, ensure_ascii=False
    ),
    "small numbers": '{"prompt": [' + ",".join(["1"] * 250_000) + "]}",
    "large numbers": '{"prompt": [' + ",".join(["100000"] * 70_000) + "]}",
    "many messages": json.dumps({"messages": [{"role": "user", "content": "x"}] * 8_000}, separators=(",", ":")),
    "many fields": json.dumps({"prompt": "x", "y": [{}] * 24_000}, separators=(",", ":")),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_read(name: str):
    """Read, parsed, and as the frames that a template's worker gets and answers, or as the tuple of a prompt."""
    data = BODIES[name].encode()
    assert len(data) <= MIB

    def work() -> tuple[int, *tuple[object, ...]]:
        received = b"".join([data[:1000], data[1000:]])
        kind = ChatBody if b"messages" in received[:20] else CompletionBody
        num_objects = check_structure(received, 64)
        body = parse(kind, parse_json(received))
        del received
        if isinstance(body, CompletionBody):
            return num_objects, tuple(body.prompt)
        messages = [{"role": message.role, "content": message.content} for message in body.messages]
        frame = json.dumps({"messages": messages}).encode("ascii")
        return num_objects, messages, b"1234" + frame

    work()
    taken, result = peak_bytes(work)
    assert taken <= len(data) * BODY_COPIES + result[0] * OBJECT_BYTES


def test_shares_are_within_the_headroom_and_a_body_within_its_share():
    for headroom in (64 * MIB, 100 * MIB, 2000 * MIB):
        space = request_space(headroom)
        shares = space.engine_bytes + space.body_bytes + space.answer_bytes + space.event_bytes + TEMPLATE_BYTES

        assert shares <= headroom
        assert space.max_body_bytes * BODY_COPIES <= space.body_bytes
    assert request_space(64 * MIB).max_body_bytes >= MIB
