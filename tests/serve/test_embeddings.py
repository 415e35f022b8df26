"""/v1/embeddings: what the openai package reads, in both encodings, and how it is refused."""

from __future__ import annotations

import base64
import math
import struct

import openai
import pytest

from openautoglm.engine.client import Pooling
from openautoglm.serve.access import AccessOptions
from openautoglm.serve.keys import KeyLimits, KeyRecord, Role, change_keys, key_digest
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server
from tests.serve.small_engine import CACHED_TOKENS, NO_VECTOR, overloaded

PATH = "/v1/embeddings"


def unit(numbers: list[int]) -> list[float]:
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def expected(server: Live, text: str) -> list[float]:
    return unit([*server.tokenizer.encode(text, add_special_tokens=True)[:4], 0, 0, 0][:4])


def test_texts_as_the_client_reads_them(server: Live) -> None:
    # The package asks for base64 unless told otherwise.
    answer = server.client().embeddings.create(model="small", input=["hello", "there"])
    assert [item.index for item in answer.data] == [0, 1]
    for item, text in zip(answer.data, ("hello", "there"), strict=True):
        assert item.embedding == pytest.approx(expected(server, text), abs=1e-6)
    num_tokens = sum(len(server.tokenizer.encode(text, add_special_tokens=True)) for text in ("hello", "there"))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens, answer.model) == (num_tokens, num_tokens, "small")
    assert {request.pooling for request in server.engine.requests} == {Pooling.LAST}
    floats = server.client().embeddings.create(model="small", input="hello", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-7)


def test_the_plain_answer(server: Live) -> None:
    answer = server.post(PATH, {"input": [[5, 6, 7], [8]], "pooling": "mean", "priority": 3}).json()
    assert answer["object"] == "list"
    assert answer["data"][0]["object"] == "embedding"
    assert [item["embedding"] for item in answer["data"]] == [
        pytest.approx([-number for number in unit([5, 6, 7, 0])], abs=1e-6), [-1.0, 0.0, 0.0, 0.0],
    ]  # fmt: skip
    assert answer["usage"] == {
        "prompt_tokens": 4, "total_tokens": 4, "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS + 1},
    }  # fmt: skip
    request = server.engine.requests[0]
    assert (request.pooling, request.priority, request.prompt_tokens) == (Pooling.MEAN, 3, (5, 6, 7))


def test_base64_is_little_endian_float32(server: Live) -> None:
    answer = server.post(PATH, {"input": [3, 4], "encoding_format": "base64"}).json()
    found = struct.unpack("<4f", base64.b64decode(answer["data"][0]["embedding"]))
    assert found == pytest.approx((0.6, 0.8, 0, 0))


def test_fewer_dimensions_are_a_unit_vector_again(server: Live) -> None:
    answer = server.post(PATH, {"input": [3, 4, 12, 5], "dimensions": 2}).json()
    assert answer["data"][0]["embedding"] == pytest.approx([0.6, 0.8], abs=1e-6)
    refused = server.post(PATH, {"input": [3, 4], "dimensions": 5})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": [10**9]}, "input"),
        ({"input": ["x"] * 65}, "input"),
        ({"input": "word " * 300}, "input"),
        ({"input": "x", "pooling": "max"}, "pooling"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_what_is_refused_is_named(server: Live, fields: dict[str, object], named: str) -> None:
    response = server.post(PATH, fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == named
    assert not server.engine.requests


def test_states_that_are_no_vector_fail_the_request(server: Live) -> None:
    response = server.post(PATH, {"input": [NO_VECTOR, [5]]})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "generation_failed")
    server.still_answers()


def test_errors_and_room(server: Live) -> None:
    server.engine.refuse = overloaded()
    assert server.post(PATH, {"input": "x"}).status_code == 429
    server.engine.refuse = None
    server.engine.seconds_before_first = 0.2
    with pytest.raises(openai.APITimeoutError):
        server.client().with_options(timeout=0.05).embeddings.create(model="small", input="x")
    server.wait_until_idle()
    assert server.context.intake.answers.in_use_bytes == 0
    assert server.engine.aborted


def test_tokens_count_against_the_keys_limit(tokenizer: Tokenizer, tmp_path) -> None:
    file = tmp_path / "keys.json"
    record = KeyRecord(
        name="k", roles=(Role.USER,), sha256=key_digest("k").hex(), created=0, limits=KeyLimits(tokens_per_minute=20)
    )
    change_keys(file, lambda _: (record,))
    with live_server(tokenizer, access=AccessOptions(keys_file=file)) as server:
        client = server.client("k")
        client.embeddings.create(model="small", input=[5] * 15)
        with pytest.raises(openai.RateLimitError):
            client.embeddings.create(model="small", input=[5] * 15)
